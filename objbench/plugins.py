"""Loads plugins: entry points of the group "objbench" and `--plugin FILE`. A broken plugin does not affect others.

`OBJBENCH_PLUGINS` is a comma-separated list of the plugins or distributions to load. If it is empty, only
objbench's own plugins are loaded.
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
from objbench.hookspecs import ClustererSpec, DataSpec, MetricSpec, ModelSpec, Published

LOAD_LIMIT_S = 10.0
"""Time limit in seconds for importing an installed plugin."""
FILE_LIMIT_S = 60.0
"""Time limit in seconds for importing a file of `--plugin`; longer, because it often imports torch."""
GRACE_S = 1.0
"""Seconds between two interrupts of a plugin that continues after the first interrupt."""
INTERRUPTS = 5
"""After this number of interrupts the program ends."""

OWN = "objbench"
"""objbench's own distribution: its plugins are loaded first, and other plugins cannot use their names."""
_folders: list[str] = []
"""Folders of plugin files that were added to `sys.path`."""
HOOKS = {name for name in vars(hookspecs) if name.startswith("objbench_")}

NAMES = {
    "model": (r"[^\s.,=+]+", "a name holds no dots, commas, spaces, = or +"),  # --models NAME+NAME,NAME
    "data set": (r"[^\s.,=]+", "a name holds no dots, commas, spaces or ="),  # -o NAME.KEY=VALUE
    "metric": (r"[^\s.,=]+", "a name holds no dots, commas, spaces or ="),
    # It is part of the name of a cell's folder, where "own" says that the detector clusters.
    "clusterer": (r"(?!own$)[A-Za-z0-9_-]+", "a name holds letters, digits, - and _ alone, and is not 'own'"),
}
"""Kind -> the names that it can have, as a regular expression and in words."""

Spec = TypeVar("Spec", ModelSpec, DataSpec, MetricSpec, ClustererSpec)


@dataclass(frozen=True)
class Plugin:
    """One plugin and the result of loading it."""

    name: str
    source: str
    """The plugin's distribution and version, or its file."""
    module: str
    error: str = ""
    """Empty if it was loaded; otherwise the reason why not, in one line."""


@dataclass
class Registry:
    """All specs of the loaded plugins. Names map to specs, in the order of loading."""

    plugins: list[Plugin] = field(default_factory=list)
    models: dict[str, ModelSpec] = field(default_factory=dict)
    data: dict[str, DataSpec] = field(default_factory=dict)
    metrics: dict[str, MetricSpec] = field(default_factory=dict)
    clusterers: dict[str, ClustererSpec] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)
    owners: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(kind, name) -> the plugins that register it. More than one is a clash, reported when the name is used.

    All metrics are used without being selected by name. So a metric with a clash is only in `owners`: the order of
    loading is arbitrary, and no figure may depend on it.
    """

    def model(self, name: str) -> ModelSpec:
        """The detector of that name. Raises UsageError if there is none, or more than one."""
        return self._find("model", name, self.models)

    def data_spec(self, name: str) -> DataSpec:
        """The data set of that name. Raises UsageError if there is none, or more than one."""
        return self._find("data set", name, self.data)

    def metric(self, name: str) -> MetricSpec:
        """The metric of that name. Raises UsageError if there is none, or more than one."""
        return self._find("metric", name, self.metrics)

    def clusterer(self, name: str) -> ClustererSpec:
        """The clusterer of that name. Raises UsageError if there is none, or more than one."""
        return self._find("clusterer", name, self.clusterers)

    @property
    def columns(self) -> dict[str, str]:
        """Metric value -> heading: the columns of the main table, in the order of registration."""
        return {name: heading for spec in self.metrics.values() for name, heading in spec.columns.items()}

    @property
    def metric_versions(self) -> dict[str, int]:
        """Metric name -> version of its definition; figures of another version are out of date."""
        return {name: spec.version for name, spec in self.metrics.items()}

    def up_to_date(self, versions: Mapping[str, int]) -> bool:
        """Whether figures with these metric versions are current for all registered metrics.

        A metric that is no longer registered cannot be computed, so it never causes a recomputation.
        """
        return self.metric_versions.items() <= versions.items()

    def is_gone(self, kind: str, name: str) -> bool:
        """True if no plugin registers the name. kind: as in `owners`."""
        known: dict[str, Mapping[str, Any]] = {
            "model": self.models,
            "data set": self.data,
            "metric": self.metrics,
            "clusterer": self.clusterers,
        }
        return name not in known[kind] and (kind, name) not in self.owners

    def clashes(self, kind: str) -> dict[str, list[str]]:
        """Names of this kind that several plugins register -> those plugins."""
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
    """Loads every installed plugin, and the plugins in `files`.

    An installed plugin that is broken or uses a name of objbench's own plugins is recorded in `Registry.plugins`.
    A broken file in `files` raises UsageError, because the user selected it.
    """
    manager = pluggy.PluginManager("objbench")
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    allowed = os.environ.get("OBJBENCH_PLUGINS")
    wanted = None if allowed is None else {_normal(w) for w in allowed.split(",") if w.strip()}
    missing = dict.fromkeys(wanted or ())
    # objbench's own plugins first, in their listed order; then distributions by name, not in the disk's order.
    names = {e: e.dist.name if e.dist is not None else "" for e in entry_points(group="objbench")}
    for entry in sorted(names, key=lambda e: (names[e] != OWN, names[e])):
        called = {_normal(names[entry]), _normal(entry.name)}
        if wanted is not None and names[entry] != OWN and not called & wanted:
            continue
        for name in called:
            missing.pop(name, None)
        source = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "unknown"
        error = _register(manager, registry, entry.name, source, entry.load, LOAD_LIMIT_S)
        if error.startswith(TooSlow.__name__):  # every command waits for it: the user must know why
            print(f"objbench: the plugin '{entry.name}' of {source} is left out: {error}", file=sys.stderr)
        registry.plugins.append(Plugin(entry.name, source, entry.value, error))
    for name in missing:
        registry.plugins.append(
            Plugin(name, "OBJBENCH_PLUGINS", "", "no such plugin or package is installed")
        )
    while _folders:  # of files loaded before (in tests): a name may now be in another folder
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
    """The name as pip compares it: case and the choice between - _ . do not matter."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def load_target(target: str) -> Any:
    """Imports and returns the object "package.module:Name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _load_file(path: Path) -> Any:
    """Imports a file as a module named after the file, so that its specs can use "my_detector:MyDetector".

    The file's folder is appended to `sys.path`. So the file can import modules next to it, and so can its
    multiprocessing processes, which receive `sys.path`; but these modules never replace an installed module.
    Raises UsageError if Python cannot import the name, or if another module has it.
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
    importlib.invalidate_caches()  # the file may be newer than Python's cached listing of its folder
    found = None if stem in sys.modules else importlib.util.find_spec(stem)
    if stem in sys.modules or (found is not None and not _same_file(found.origin, path)):
        raise UsageError(f"a module named '{stem}' already exists; rename the file")
    if found is None:
        raise UsageError("not a Python file; its name must end in .py")
    return importlib.import_module(stem)


def _lies_at(module: str, path: Path) -> bool:
    """Whether the module of that name is already imported from that file."""
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
    """Loads one plugin and registers all of its specs, or none; returns the error, or ""."""
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
                ("clusterer", "objbench_clusterers", registry.clusterers, ClustererSpec),
            ):
                for spec in answers.get(hook, ()):
                    if not isinstance(spec, type_):
                        raise TypeError(f"{hook} must return {type_.__name__} objects, got {spec!r}")
                    pattern, rule = NAMES[kind]
                    if not re.fullmatch(pattern, spec.name):
                        raise ValueError(f"a {kind} cannot be named '{spec.name}': {rule}")
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
    """Returns the result of one plugin's hook; pluggy would mix the results of all plugins."""
    answers: list[Any] = [impl.function() for impl in caller.get_hookimpls() if impl.plugin is module]
    return [spec for answer in answers for spec in answer]


class TooSlow(BaseException):
    """A plugin exceeded its time limit. Not an Exception, because plugins often catch Exception and continue."""

    def __str__(self) -> str:
        return f"took longer than {self.args[0]:g} s to import"


@contextlib.contextmanager
def _time_limit(who: str, seconds: float) -> Iterator[None]:
    """Raises TooSlow in the block after `seconds`, if possible (POSIX, main thread).

    Code that catches TooSlow is interrupted again every GRACE_S. If it continues after INTERRUPTS interrupts, the
    program ends with one line that names the plugin.
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
        if interrupts:  # it caught TooSlow and then ended: its specs may be incomplete
            raise TooSlow(seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
