"""Finds plugins: entry points of the group "objbench" and `--plugin FILE`. A broken one breaks nothing else.

`OBJBENCH_PLUGINS` holds the names of the plugins to load, or of their distributions, comma-separated; when it is
set to nothing, only objbench's own are loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import keyword
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from objbench import hookspecs
from objbench.errors import UsageError, error_line, unknown
from objbench.guarded import unmoved
from objbench.hookspecs import DataSpec, MetricSpec, ModelSpec, Published

LOAD_LIMIT_S = 10.0
"""An installed plugin that takes longer than this to import is given up."""
FILE_LIMIT_S = 60.0
"""The same for a file that the user named, which may well import torch."""
GRACE_S = 1.0
"""Seconds between two interrupts of a plugin that went on after the first."""
INTERRUPTS = 5
"""After so many of them the program ends."""

OWN = "objbench"
"""The distribution whose plugins are loaded first, and whose names nobody else may take."""
_folders: list[str] = []
"""Of files, those that were added to `sys.path`."""
HOOKS = {name for name in vars(hookspecs) if name.startswith("objbench_")}

Spec = TypeVar("Spec", ModelSpec, DataSpec, MetricSpec)


@dataclass(frozen=True)
class Plugin:
    """One plugin and what became of it."""

    name: str
    source: str
    """The distribution and version it came from, or the file."""
    module: str
    error: str = ""
    """Empty when it loaded; else one line of why not."""


@dataclass
class Registry:
    """Everything the loaded plugins registered. Names map to specs in the order of loading."""

    plugins: list[Plugin] = field(default_factory=list)
    models: dict[str, ModelSpec] = field(default_factory=dict)
    data: dict[str, DataSpec] = field(default_factory=dict)
    metrics: dict[str, MetricSpec] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)
    owners: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(kind, name) -> the plugins that claim it; more than one is a clash, reported when the name is used.

    Metrics are used without being named, so one that clashes is in `owners` alone: which of the two was
    loaded first is chance, and no figure may depend on it.
    """

    def model(self, name: str) -> ModelSpec:
        """The detector of that name. UsageError when there is none, or two."""
        return self._find("model", name, self.models)

    def data_spec(self, name: str) -> DataSpec:
        """The data set of that name. UsageError when there is none, or two."""
        return self._find("data set", name, self.data)

    def metric(self, name: str) -> MetricSpec:
        """The metric of that name. UsageError when there is none, or two."""
        return self._find("metric", name, self.metrics)

    @property
    def columns(self) -> dict[str, str]:
        """Metric value -> heading: the columns of the main table, in the order of registration."""
        return {name: heading for spec in self.metrics.values() for name, heading in spec.columns.items()}

    @property
    def metric_versions(self) -> dict[str, int]:
        """The version of each metric's definition, by the metric's name; figures of another are out of date."""
        return {name: spec.version for name, spec in self.metrics.items()}

    def up_to_date(self, versions: Mapping[str, int]) -> bool:
        """Whether figures by metrics of these versions are as all metrics here would give them.

        A metric that no plugin registers any more cannot be asked, so it is no reason to compute anything again.
        """
        return self.metric_versions.items() <= versions.items()

    def is_gone(self, kind: str, name: str) -> bool:
        """Whether no plugin registers a name. kind: as in `owners`."""
        known: dict[str, Mapping[str, Any]] = {
            "model": self.models,
            "data set": self.data,
            "metric": self.metrics,
        }
        return name not in known[kind] and (kind, name) not in self.owners

    def clashes(self, kind: str) -> dict[str, list[str]]:
        """The names of a kind that several plugins claim, and which do."""
        return {name: o for (k, name), o in self.owners.items() if k == kind and len(o) > 1}

    def _find(self, kind: str, name: str, known: dict[str, Spec]) -> Spec:
        if owners := self.clashes(kind).get(name):
            raise UsageError(
                f"{len(owners)} plugins register a {kind} named '{name}': {', '.join(owners)}; "
                "remove one, or choose with OBJBENCH_PLUGINS"
            )
        if name not in known:
            hint = "; a plugin in a file needs --plugin FILE"
            if broken := sum(bool(plugin.error) for plugin in self.plugins):
                hint += f"; {broken} did not load, objbench plugins says why"
            raise UsageError(f"{unknown(kind, name, known)}{hint}")
        return known[name]


def load_plugins(files: tuple[str, ...] = ()) -> Registry:
    """Loads every plugin that is installed, and those in `files`.

    A broken installed plugin is recorded in `Registry.plugins`, and so is one that takes a name of objbench's own;
    a broken file, which the user named, raises UsageError.
    """
    manager = pluggy.PluginManager("objbench")
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    allowed = os.environ.get("OBJBENCH_PLUGINS")
    wanted = None if allowed is None else {_normal(w) for w in allowed.split(",") if w.strip()}
    missing = dict.fromkeys(wanted or ())
    # Our own first, in the order in which they are listed; then distributions by name, not as a disk has them.
    names = {e: e.dist.name if e.dist is not None else "" for e in entry_points(group="objbench")}
    for entry in sorted(names, key=lambda e: (names[e] != OWN, names[e])):
        called = {_normal(names[entry]), _normal(entry.name)}
        if wanted is not None and names[entry] != OWN and not called & wanted:
            continue
        for name in called:
            missing.pop(name, None)
        source = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "unknown"
        error = _register(manager, registry, entry.name, source, entry.load, LOAD_LIMIT_S)
        if error.startswith(TooSlow.__name__):  # every command waits for it: one should know for what
            print(f"objbench: the plugin '{entry.name}' of {source} is left out: {error}", file=sys.stderr)
        registry.plugins.append(Plugin(entry.name, source, entry.value, error))
    for name in missing:
        registry.plugins.append(
            Plugin(name, "OBJBENCH_PLUGINS", "", "no such plugin or package is installed")
        )
    while _folders:  # of files that were loaded before, in tests say: a name may lie elsewhere now
        with contextlib.suppress(ValueError):
            sys.path.remove(_folders.pop())
    for file in files:
        path = Path(file).resolve()
        if not path.is_file():
            what = "that is a folder; give the file" if path.is_dir() else "there is no such file"
            raise UsageError(f"--plugin {shlex.quote(file)}: {what}")
        if any(
            _lies_at(plugin.module.partition(":")[0], path) for plugin in registry.plugins if not plugin.error
        ):
            continue  # given twice, or installed
        error = _register(manager, registry, path.stem, str(path), partial(_load_file, path), FILE_LIMIT_S)
        if error:
            raise UsageError(f"--plugin {shlex.quote(file)}: {error}")
        registry.plugins.append(Plugin(path.stem, str(path), path.stem))
        for (kind, name), owners in registry.owners.items():
            if len(owners) > 1 and str(path) in owners:
                raise UsageError(
                    f"--plugin {shlex.quote(file)}: a {kind} named '{name}' exists already "
                    f"(from {owners[0]}); rename one"
                )
    for name in registry.clashes("metric"):
        del registry.metrics[name]
    return registry


def _normal(name: str) -> str:
    """As pip compares names: case, and which of - _ . it is, tell nothing apart."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def load_target(target: str) -> Any:
    """The object that "package.module:Name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _load_file(path: Path) -> Any:
    """Imports a file as a module under its own stem, so that its specs may say "my_detector:MyDetector".

    Its folder goes to the end of `sys.path`: the file can import what lies beside it, and so can processes that it
    starts by multiprocessing, which hands them `sys.path`; but nothing there takes the place of an installed module.
    UsageError when the name is not one that Python can import, or is another module's.
    """
    stem, folder = path.stem, str(path.parent)
    if _lies_at(stem, path):
        return sys.modules[stem]
    if not stem.isidentifier() or keyword.iskeyword(stem) or stem == "__init__":
        name = (
            "plugin"
            if stem == "__init__"
            else re.sub(r"^(?=\d)|\W", "_", stem) + "_" * keyword.iskeyword(stem)
        )
        raise UsageError(f"Python cannot import a module named '{stem}'; rename the file, to {name}.py say")
    if folder not in sys.path:
        sys.path.append(folder)
        _folders.append(folder)
    importlib.invalidate_caches()  # the file may be newer than what Python remembers of its folder
    found = None if stem in sys.modules else importlib.util.find_spec(stem)
    if stem in sys.modules or (found is not None and not _same_file(found.origin, path)):
        raise UsageError(f"a module named '{stem}' already exists; rename the file")
    if found is None:
        raise UsageError("not a Python file; its name must end in .py")
    return importlib.import_module(stem)


def _lies_at(module: str, path: Path) -> bool:
    """Whether the module of that name is imported already, from that file."""
    return _same_file(getattr(sys.modules.get(module), "__file__", None), path)


def _same_file(file: str | None, path: Path) -> bool:
    return file is not None and os.path.exists(file) and os.path.samefile(file, path)


def _register(
    manager: pluggy.PluginManager,
    registry: Registry,
    name: str,
    source: str,
    load: Callable[[], Any],
    limit_s: float,
) -> str:
    """Loads one plugin and takes its specs into the registry, all or none; returns the error, or ""."""
    try:
        who = f"the plugin '{name}' of {source}"
        with unmoved(), _time_limit(who, limit_s), contextlib.redirect_stdout(sys.stderr):
            module = load()
            manager.register(module, name=f"{source}:{name}")
            answers = {
                caller.name: _answer(caller, module) for caller in manager.get_hookcallers(module) or ()
            }
            if strange := sorted(answers.keys() - HOOKS):
                raise unknown("hook", strange[0], HOOKS)
            found: list[tuple[str, dict[str, Any], Any]] = []
            for kind, hook, table, type_ in (
                ("model", "objbench_models", registry.models, ModelSpec),
                ("data set", "objbench_data", registry.data, DataSpec),
                ("metric", "objbench_metrics", registry.metrics, MetricSpec),
            ):
                for spec in answers.get(hook, ()):
                    if not isinstance(spec, type_):
                        raise TypeError(f"{hook} must return {type_.__name__} objects, got {spec!r}")
                    if not re.fullmatch(r"[^\s.,=]+", spec.name):  # -o NAME.KEY=VALUE, --models NAME,NAME
                        raise ValueError(
                            f"a {kind} cannot be named '{spec.name}': a name holds no dots, commas, spaces or ="
                        )
                    owner = registry.owners.get((kind, spec.name), [""])[0]
                    if owner.startswith(f"{OWN} ") and owner != source:
                        raise ValueError(
                            f"a {kind} named '{spec.name}' exists already (from {owner}); rename one"
                        )
                    found.append((kind, table, spec))
            published = answers.get("objbench_published", [])
            if wrong := [row for row in published if not isinstance(row, Published)]:
                raise TypeError(f"objbench_published must return Published objects, got {wrong[0]!r}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may even call sys.exit
        return error_line(error)
    for kind, table, spec in found:
        table.setdefault(spec.name, spec)
        registry.owners.setdefault((kind, spec.name), []).append(source)
    registry.published.extend(published)
    return ""


def _answer(caller: pluggy.HookCaller, module: Any) -> list[Any]:
    """What one plugin's implementation of a hook returns; pluggy would mix the answers of all."""
    answers: list[Any] = [impl.function() for impl in caller.get_hookimpls() if impl.plugin is module]
    return [spec for answer in answers for spec in answer]


class TooSlow(BaseException):
    """A plugin was interrupted because its time was over. Not an Exception: it could catch that and go on."""

    def __str__(self) -> str:
        return f"took longer than {self.args[0]:g} s to import"


@contextlib.contextmanager
def _time_limit(who: str, seconds: float) -> Iterator[None]:
    """Raises TooSlow in the block after `seconds`, where that can be done (POSIX, main thread).

    Code that catches even that is interrupted again every GRACE_S. When it still goes on after INTERRUPTS of them,
    nothing is left but to end the program, with one line that names the plugin.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = 0

    def give_up(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > INTERRUPTS:
            os.write(2, f"objbench: {who} does not end its import; remove it, or leave it out with "
                        "OBJBENCH_PLUGINS (set to nothing: no plugins but objbench's own)\n".encode())  # fmt: skip
            os._exit(2)
        raise TooSlow(seconds)

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, GRACE_S)
    try:
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        if interrupts:  # it caught that, and ended all the same: what it registered may be half of it
            raise TooSlow(seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
