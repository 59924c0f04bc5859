"""What to run: models with their clusterers x data sets x seeds as cells, each with the identity that its directory is
named by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from objbench.cells.about import (
    KINDS,
    about,
    about_clusterer,
    is_registered,
    own_of_clusterer,
    own_of_detector,
    own_of_source,
)
from objbench.cells.code import Code, changed_files, clusterer_code_of, code_of, digest, numerics_of
from objbench.cells.files import canonical
from objbench.cells.identity import EVALUATED, OWN, START, USES, Cell, Training, identity_of, plain
from objbench.cells.origin import check_weights, find_training, finished, origin_of
from objbench.cells.overrides import (
    Overrides,
    build_clusterer_config,
    build_model_config,
    build_source_config,
)
from objbench.cells.protocols import Protocol
from objbench.cells.result import CellResult
from objbench.cells.store import Store
from objbench.errors import UsageError, error_line, unknown
from objbench.guarded import Ask, PluginFailed, ask_here, calling
from objbench.hookspecs import ClustererSpec, ModelSpec
from objbench.options import as_json, build, describe
from objbench.plugins import Registry, load_target

if TYPE_CHECKING:
    from objbench.clusterer import Clusterer
    from objbench.detector import Detector
    from objbench.scenes import SceneShape

USUAL = "gmm"
"""The clusterer of a detector that does not cluster, where `--models` names none."""


class Entry(NamedTuple):
    """One word of `--models`."""

    model: str
    clusterer: str
    """OWN where the detector clusters."""


def entries(registry: Registry, words: Iterable[str]) -> list[Entry]:
    """What the words of `--models` mean, each MODEL or MODEL+CLUSTERER.

    UsageError on an unknown name, on a word that is not of that form, and where two words mean the same.
    """
    found: dict[Entry, str] = {}
    for word in words:
        model, plus, clusterer = (part.strip() for part in word.partition("+"))
        known = ", ".join(registry.clusterers)
        if plus and not model:
            raise UsageError(f"--models {word}: a detector is missing before the +; write DETECTOR+CLUSTERER")
        if plus and not clusterer:
            raise UsageError(
                f"--models {word}: a clusterer is missing after the +; write {model} alone, or one of: {known}"
            )
        if "+" in clusterer:
            both = ",".join(f"{model}+{part.strip()}" for part in clusterer.split("+"))
            raise UsageError(
                f"--models {word}: a detector takes one clusterer; write {both} for several rows"
            )
        spec = registry.model(model)
        if clusterer or not spec.clusters:
            clusterer = registry.clusterer(clusterer or USUAL).name
        entry = Entry(model, clusterer or OWN)
        if entry in found:
            words_ = " and ".join(f"'{w}'" for w in dict.fromkeys((found[entry], word)))
            raise UsageError(f"--models names the same thing twice, as {words_}; name it once")
        found[entry] = word
    return list(found)


def matrix(
    registry: Registry,
    models: Sequence[str],
    data: Sequence[str],
    seeds: Iterable[int],
    protocol: Protocol,
    overrides: Overrides,
    ask: Ask = ask_here,
    failures: list[CellResult] | None = None,
    out: str = "runs",
) -> list[Cell]:
    """The cells of models x data x seeds; all of the first seed come first, and those of one training together.

    models: words of `--models`; see `entries`. ask: how plugins are asked for what a cell depends on. failures: is
    given a failed result for each cell of a plugin that cannot say it; without it, PluginFailed is raised. out: the
    store where `start_from` looks for trainings. Raises UsageError on unknown names and options, and on options of what
    is not in the matrix.
    """
    clusterers_of: dict[str, list[str]] = {}
    for entry in entries(registry, models):
        clusterers_of.setdefault(entry.model, []).append(entry.clusterer)
    for name in data:
        registry.data_spec(name)
    named = [name for names in clusterers_of.values() for name in names if name != OWN]
    _check_owners(registry, list(dict.fromkeys([*clusterers_of, *data, *named])), overrides)
    of_protocol = {k: v for k, v in dataclasses.asdict(protocol).items() if k != "summary"}
    seeds = list(dict.fromkeys(seeds))
    cells = []

    def failed(error: PluginFailed, model: str, data_name: str, clusterers: Iterable[str]) -> None:
        """Takes a failed result for each cell of these. Raises the error where nobody wants it."""
        if failures is None:
            raise error
        failures.extend(
            CellResult(
                "", model, data_name, protocol.name, seed, "failed", error=str(error), clusterer=clusterer
            )
            for seed in seeds
            for clusterer in clusterers
        )

    for data_name in dict.fromkeys(data):
        source, unknown_source = None, None
        try:
            source = ask(f"'{data_name}'", ask_source, registry, data_name, protocol.name, overrides)
        except PluginFailed as error:
            unknown_source = error
        for model, clusterers in clusterers_of.items():
            try:
                if source is None:
                    assert unknown_source is not None
                    raise unknown_source
                shape = source["shape"]
                detector = ask(
                    f"'{model}'",
                    _ask_detector,
                    registry,
                    model,
                    data_name,
                    shape,
                    protocol.name,
                    overrides,
                    out,
                )
                with calling(f"'{model}'", "its source code"):
                    code = code_now(registry, model, data_name, detector["identity"].get(USES, ()))
            except PluginFailed as error:
                failed(error, model, data_name, clusterers)
                continue
            of_both = source["identity"] | detector["identity"] | {"protocol": of_protocol} | digests(code)
            known = about(registry, model, data_name, protocol.name, detector["own"], source["own"])
            parts = []
            for clusterer in clusterers:
                try:
                    parts.append(
                        _clusterer_of(
                            registry, clusterer, model, data_name, shape, protocol.name, overrides, ask
                        )
                    )
                except PluginFailed as error:
                    failed(error, model, data_name, [clusterer])
            for seed in seeds:
                identity = plain(of_both | {"seed": seed})
                training = Training(
                    identity, detector["config"], source["config"], code, known, detector["weights_from"]
                )
                cells += [
                    Cell(training, clusterer_, clusterer_about) for clusterer_, clusterer_about in parts
                ]
    return sorted(cells, key=lambda cell: seeds.index(cell.training.identity["seed"]))


def ask_source(registry: Registry, name: str, protocol: str, overrides: Overrides) -> dict[str, Any]:
    """What of a cell depends on the data set, as JSON values: its `identity`, whole `config`, and `shape`."""
    who = f"'{name}'"
    with calling(who, "its module"):
        source_class = load_target(registry.data_spec(name).target)
    with calling(who, "its settings"):
        config = build_source_config(registry, name, protocol, overrides)
    with calling(who, "its constructor"):
        source = source_class(config, 0)
    with calling(who, "its fingerprint"):
        fingerprint = plain(source.fingerprint())
        canonical(fingerprint)  # TypeError when it is not JSON
    with calling(who, "its shape"):
        shape = [int(size) for size in source.shape]
    with calling(who, "its settings"):
        own = own_of_source(registry, name, protocol, config)
    identity = {"data": name, "data_config": identity_of(config), "fingerprint": fingerprint}
    return {"identity": identity, "config": as_json(config), "shape": shape, "own": own}


def _ask_detector(
    registry: Registry,
    name: str,
    data: str,
    shape: list[int],
    protocol: str,
    overrides: Overrides,
    out: str,
) -> dict[str, Any]:
    """What of a cell depends on the detector, as JSON values: its `identity`, whole `config` and `weights_from`."""
    from objbench.scenes import SceneShape

    who = f"'{name}'"
    with calling(who, "its module"):
        detector_class = load_target(registry.model(name).target)
    start = _start(detector_class, name, overrides)
    if start:
        overrides = {**overrides, name: {k: v for k, v in overrides[name].items() if k != START}}
    with calling(who, "its settings"):
        config = build_model_config(registry, name, protocol, data, overrides)
    check_options(registry.model(name), config, SceneShape(*shape), given=overrides.get(name, {}))
    origin: dict[str, Any] = {}
    weights_from = ""
    with calling(who, "its constructor"):
        check_fit(detector_class, config, SceneShape(*shape), name, data)
        if start:
            folder = _start_folder(detector_class, config, SceneShape(*shape), name, start, Store(out))
            origin, weights_from = {START: origin_of(folder)}, str(folder)
    with calling(who, "its settings"):
        own = own_of_detector(registry, name, protocol, data, config)
    with calling(who, "its uses"):
        uses = list(detector_class.uses(config))
        for clusterer in uses:
            registry.clusterer(clusterer)
    identity = {"model": name, "model_config": identity_of(config)} | origin | ({USES: uses} if uses else {})
    return {"identity": identity, "config": as_json(config), "own": own, "weights_from": weights_from}


def _start(detector: type[Detector], model: str, overrides: Overrides) -> str:
    """What the user's `start_from` says; "" when there is none, or it is an option of the detector's own.

    UsageError when the detector's training has no first step.
    """
    from objbench.detector import DetectorConfig, trains_by_steps

    start = overrides.get(model, {}).get(START, "")
    is_own = START in [row.name for row in describe(detector.Config, model)]
    if not start or (is_own and not issubclass(detector.Config, DetectorConfig)):
        return ""
    if not trains_by_steps(detector):
        raise UsageError(f"-o {model}.{START}: {model} does not train by steps, so it starts from no weights")
    return start


def _start_folder(
    detector: type[Detector], config: Any, shape: SceneShape, model: str, start: str, store: Store
) -> Path:
    """The folder of the training that `start` names. UsageError unless its weights can be used."""
    what = f"{model}.{START}={start}"
    try:
        folder = find_training(store, start)
        there = finished(folder).identity["model"]
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    if there != model:
        raise UsageError(f"{what}: training {folder.name} is of model '{there}', not of '{model}'")
    check_weights(folder, detector, config, shape, what)
    return folder


def _clusterer_of(
    registry: Registry,
    name: str,
    model: str,
    data: str,
    shape: list[int],
    protocol: str,
    overrides: Overrides,
    ask: Ask,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`Cell.clusterer` and `Cell.about` of a clusterer that is to cluster for a model."""
    if name == OWN:
        return {"name": OWN}, {}
    asked = ask(f"'{name}'", _ask_clusterer, registry, name, data, shape[0], protocol, overrides)
    with calling(f"'{name}'", "its source code"):
        code = digest(clusterer_code_of(registry.clusterer(name).target))
    clusterer_about = about_clusterer(registry, name, model, protocol, asked["own"]) | {
        "config": asked["config"]
    }
    return {"name": name, "config": plain(asked["identity"]), "code": code}, clusterer_about


def _ask_clusterer(
    registry: Registry, name: str, data: str, channels: int, protocol: str, overrides: Overrides
) -> dict[str, Any]:
    """What of a cell depends on the clusterer, as JSON values: its `identity`, whole `config`, and `own`."""
    who = f"'{name}'"
    with calling(who, "its module"):
        clusterer_class = load_target(registry.clusterer(name).target)
    with calling(who, "its settings"):
        config = build_clusterer_config(registry, name, protocol, data, overrides)
    check_options(registry.clusterer(name), config, given=overrides.get(name, {}))
    check_clusterer(clusterer_class, config, channels, name, data)
    with calling(who, "its settings"):
        own = own_of_clusterer(registry, name, protocol, data, config)
    return {"identity": identity_of(config), "config": as_json(config), "own": own}


def as_it_is_now(registry: Registry, old: Cell) -> Cell:
    """The same cell by the plugins, the data and the harness as they are now; its key differs if they have changed."""
    then = old.training
    model, data = then.identity["model"], registry.data_spec(then.identity["data"])
    with calling(f"'{data.name}'", "its constructor"):
        source_class = load_target(data.target)
        source = source_class(build(source_class.Config, data.name, then.data_config), 0)
    with calling(f"'{data.name}'", "its fingerprint"):
        fingerprint = plain(source.fingerprint())
    code = code_now(registry, model, data.name, then.identity.get(USES, ()))
    identity = then.identity | digests(code) | {"fingerprint": fingerprint}
    clusterer, clusterer_about = clusterer_now(registry, old, identity["protocol"]["name"])
    own = [{k: then.about.get(kind, {}).get(k, {}) for k in ("settings", "given")} for kind in KINDS]
    known = about(registry, model, data.name, identity["protocol"]["name"], *own)
    return Cell(
        dataclasses.replace(then, identity=identity, code=code, about=known), clusterer, clusterer_about
    )


def clusterer_now(registry: Registry, old: Cell, protocol: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`Cell.clusterer` and `Cell.about` of a cell by the clusterer as it is now, under a protocol.

    UsageError when its config is not one of the plugin as it is now.
    """
    clusterer, clusterer_about = dict(old.clusterer), dict(old.about)
    if (name := clusterer["name"]) != OWN:
        config_of_clusterer(registry, old)
        clusterer["code"] = digest(clusterer_code_of(registry.clusterer(name).target))
        kept = {key: value for key, value in clusterer_about.items() if key in CHOSEN}
        clusterer_about = about_clusterer(registry, name, old.training.identity["model"], protocol, kept)
    return clusterer, clusterer_about


CHOSEN = ("settings", "given", "config")
"""What of `Cell.about` does not follow from the plugin's spec."""


def config_of_clusterer(registry: Registry, cell: Cell) -> Any:
    """The config of a cell's clusterer. UsageError when it is not one of the plugin as it is now."""
    name = cell.clusterer["name"]
    clusterer_class = load_target(registry.clusterer(name).target)
    try:
        return build(clusterer_class.Config, name, cell.about.get("config", cell.clusterer["config"]))
    except UsageError as error:
        raise UsageError(
            f"cell {cell.key} was clustered by another version of '{name}' ({error}); run it again"
        ) from None


def clusterer_changed(registry: Registry, cell: Cell) -> bool:
    """Whether the code of a cell's clusterer is not what it was when the cell was planned.

    UsageError when no plugin registers the clusterer, or several do.
    """
    name = cell.clusterer["name"]
    if name == OWN:
        return False
    return bool(digest(clusterer_code_of(registry.clusterer(name).target)) != cell.clusterer["code"])


def code_now(registry: Registry, model: str, data: str, uses: Iterable[str] = ()) -> dict[str, Code]:
    """The code that a training of the model on the data depends on, as it stands now; see `Training.code`.

    uses: names of the clusterers that the model runs itself.
    """
    targets = [registry.model(model).target, *(registry.clusterer(name).target for name in uses)]
    source = registry.data_spec(data).target
    return {
        "model_code": _joined(targets),
        "data_code": code_of(source),
        "harness_code": numerics_of(*targets, source),
    }


def codes_now(registry: Registry, training: Training) -> dict[str, str]:
    """The digests of `code_now` by their names in an identity, as far as the plugins are there to be read."""
    model, data, uses = (training.identity.get(key, "") for key in ("model", "data", USES))
    found: dict[str, str] = {}
    with contextlib.suppress(UsageError, ModuleNotFoundError):
        found["data_code"] = digest(code_of(registry.data_spec(data).target))
    with contextlib.suppress(UsageError, ModuleNotFoundError):
        of_model = registry.model(model).target, *(registry.clusterer(name).target for name in uses)
        found["model_code"] = digest(_joined(of_model))
        if "data_code" in found:
            found["harness_code"] = digest(numerics_of(*of_model, registry.data_spec(data).target))
    return found


def _joined(targets: Iterable[str]) -> Code:
    """The code of several plugins."""
    return {file: known for target in targets for file, known in code_of(target).items()}


def is_current(registry: Registry, cell: Cell, contents: dict[str, Any]) -> bool:
    """Whether a cell is what a run with its options would give today: by code, and by the content of its data set.

    False when a plugin is gone. contents: fingerprints that earlier calls have found; a data set is constructed only
    where the code is the same, and once. UsageError when it cannot be constructed.
    """
    training, identity = cell.training, cell.training.identity
    if not all(is_registered(registry, kind, identity[kind]) for kind in KINDS):
        return False
    name = cell.clusterer["name"]
    if name != OWN and (not is_registered(registry, "clusterer", name) or clusterer_changed(registry, cell)):
        return False
    if not identity.items() >= codes_now(registry, training).items():
        return False
    if EVALUATED in identity:
        then = Training(identity[EVALUATED]["identity"], {}, {}, {})
        if not then.identity.items() >= codes_now(registry, then).items():
            return False
    name = identity["data"]
    key = canonical([name, training.data_config])
    if key not in contents:
        with calling(f"'{name}'", "its constructor"):
            source_class = load_target(registry.data_spec(name).target)
            source = source_class(build(source_class.Config, name, training.data_config), 0)
            contents[key] = plain(source.fingerprint())
    return bool(contents[key] == identity["fingerprint"])


def changes_of_code(registry: Registry, training: Training) -> list[str]:
    """The files behind a training that are not as they were when it was planned."""
    identity = training.identity
    now = code_now(registry, identity["model"], identity["data"], identity.get(USES, ()))
    changed = [file for name, then in training.code.items() for file in changed_files(then, now[name])]
    return list(dict.fromkeys(changed))  # a model and a data set may share files


def check_options(spec: ModelSpec | ClustererSpec, *known: Any, given: Iterable[str]) -> None:
    """UsageError when the `check` of a spec finds that options do not go together.

    known: what it gets: the config, and of a detector the shape of images. given: names of the options that the user
    set. PluginFailed when the check fails.
    """
    if not spec.check:
        return
    with calling(f"'{spec.name}'", "the check of its options"):
        fault = load_target(spec.check)(*known, frozenset(given))
    if fault:
        raise UsageError(f"{spec.name}: {fault}")


def check_fit(detector: type[Detector], config: Any, shape: SceneShape, model: str, data: str) -> None:
    """UsageError when the detector refuses images of this shape: better reported now than by a failed cell.

    It is built without memory for its parameters; what does not work without is left for the cell to meet.
    """
    import torch  # here, because tables, which are to be quick, need this module too

    try:
        with torch.device("meta"):
            detector(config, shape)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"'{model}' on '{data}': {error}") from None
    except ArithmeticError as error:  # of plain numbers: the options are out of range, with or without memory
        raise UsageError(f"'{model}' on '{data}': its options lead to {error_line(error)}") from None
    except Exception:
        return


def check_clusterer(clusterer: type[Clusterer], config: Any, channels: int, name: str, data: str) -> None:
    """UsageError when the clusterer asks for glimpses that cannot be cut, or refuses objects of so many channels.

    PluginFailed when its `cut` raises. It is built without memory for its parameters, and not at all if it needs
    what-latents, whose number only the detector knows.
    """
    import torch

    from objbench.clusterer import ObjectShape, cut_fault

    who = f"'{name}'"
    with calling(who, "its cut"):
        cut = clusterer.cut(config)
    if fault := cut_fault(cut):
        raise UsageError(f"{who}: its cut is wrong: {fault}")
    if clusterer.needs_what:
        return
    with calling(who, "its constructor"):
        try:
            with torch.device("meta"):
                clusterer(config, ObjectShape(channels, cut.size if cut else 0, 0))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{who} on '{data}': {error}") from None
        except Exception:
            return


def digests(code: Mapping[str, Code]) -> dict[str, str]:
    """What an identity says of the code."""
    return {name: digest(files) for name, files in code.items()}


def _check_owners(registry: Registry, used: list[str], overrides: Overrides) -> None:
    for owner in overrides:
        if owner not in used:
            if owner in registry.models or owner in registry.data or owner in registry.clusterers:
                raise UsageError(f"-o {owner}...: nothing in this run uses it (it has {', '.join(used)})")
            raise unknown("model, data set or clusterer", owner, used)
