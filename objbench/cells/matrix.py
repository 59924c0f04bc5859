"""What to run: models x data sets x seeds as cells, each with the identity that its directory is named by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from objbench.cells.code import Code, changed_files, clustering_code, code_of, digest, numerics_of
from objbench.cells.files import canonical
from objbench.cells.identity import MIXTURE, OWN, Cell, MixtureConfig, Training, identity_of, plain
from objbench.cells.overrides import Overrides, build_model_config, build_source_config
from objbench.cells.protocols import Protocol
from objbench.cells.result import CellResult
from objbench.errors import UsageError, unknown
from objbench.guarded import Ask, PluginFailed, ask_here, calling
from objbench.hookspecs import ModelSpec
from objbench.options import as_json, build
from objbench.plugins import Registry, load_target

if TYPE_CHECKING:
    from objbench.detector import Detector
    from objbench.scenes import SceneShape


def matrix(
    registry: Registry,
    models: Sequence[str],
    data: Sequence[str],
    seeds: Iterable[int],
    protocol: Protocol,
    overrides: Overrides,
    ask: Ask = ask_here,
    failures: list[CellResult] | None = None,
) -> list[Cell]:
    """The cells of models x data x seeds; all of the first seed come first.

    ask: how plugins are asked for what a cell depends on. failures: is given a failed result for each cell of a
    plugin that cannot say it; without it, PluginFailed is raised. Raises UsageError on unknown names and options, and
    on options of what is not in the matrix.
    """
    mixture = [MIXTURE] if any(not registry.model(m).clusters for m in models) else []
    for name in data:
        registry.source(name)
    _check_owners(registry, [*models, *data, *mixture], overrides)
    mixture_config = dataclasses.asdict(build(MixtureConfig, MIXTURE, overrides.get(MIXTURE, {})))
    of_protocol = {k: v for k, v in dataclasses.asdict(protocol).items() if k != "summary"}
    seeds = list(dict.fromkeys(seeds))
    cells = []
    for data_name in dict.fromkeys(data):
        source, unknown_source = None, None
        try:
            source = ask(f"'{data_name}'", _ask_source, registry, data_name, protocol.name, overrides)
        except PluginFailed as error:
            unknown_source = error
        for model in dict.fromkeys(models):
            try:
                if source is None:
                    assert unknown_source is not None
                    raise unknown_source
                shape = source["shape"]
                detector = ask(
                    f"'{model}'", _ask_detector, registry, model, data_name, shape, protocol.name, overrides
                )
                with calling(f"'{model}'", "its source code"):
                    code = code_now(registry, model, data_name)
            except PluginFailed as error:
                if failures is None:
                    raise
                failures += [
                    CellResult("", model, data_name, protocol.name, seed, "failed", error=str(error))
                    for seed in seeds
                ]
                continue
            clusterer = clusterer_of(registry.model(model), mixture_config)
            of_both = source["identity"] | detector["identity"] | {"protocol": of_protocol} | _digests(code)
            for seed in seeds:
                training = Training(
                    plain(of_both | {"seed": seed}), detector["config"], source["config"], code
                )
                cells.append(Cell(training, clusterer))
    return sorted(cells, key=lambda cell: seeds.index(cell.training.identity["seed"]))


def _ask_source(registry: Registry, name: str, protocol: str, overrides: Overrides) -> dict[str, Any]:
    """What of a cell depends on the data set, as JSON values: its `identity`, whole `config`, and `shape`."""
    who = f"'{name}'"
    with calling(who, "its module"):
        source_class = load_target(registry.source(name).target)
    with calling(who, "its settings"):
        config = build_source_config(registry, name, protocol, overrides)
    with calling(who, "its constructor"):
        source = source_class(config, 0)
    with calling(who, "its fingerprint"):
        fingerprint = plain(source.fingerprint())
        canonical(fingerprint)  # TypeError when it is not JSON
    with calling(who, "its shape"):
        shape = [int(size) for size in source.shape]
    identity = {"data": name, "data_config": identity_of(config), "fingerprint": fingerprint}
    return {"identity": identity, "config": as_json(config), "shape": shape}


def _ask_detector(
    registry: Registry, name: str, data: str, shape: list[int], protocol: str, overrides: Overrides
) -> dict[str, Any]:
    """What of a cell depends on the detector, as JSON values: its `identity` and whole `config`."""
    from objbench.scenes import SceneShape

    who = f"'{name}'"
    with calling(who, "its module"):
        detector_class = load_target(registry.model(name).target)
    with calling(who, "its settings"):
        config = build_model_config(registry, name, protocol, data, overrides)
    with calling(who, "its constructor"):
        check_fit(detector_class, config, SceneShape(*shape), name, data)
    return {"identity": {"model": name, "model_config": identity_of(config)}, "config": as_json(config)}


def as_it_is_now(registry: Registry, old: Cell) -> Cell:
    """The same cell by the plugins, the data and the harness as they are now; its key differs if they have changed."""
    then = old.training
    model, data = then.identity["model"], registry.source(then.identity["data"])
    with calling(f"'{data.name}'", "its constructor"):
        source_class = load_target(data.target)
        source = source_class(build(source_class.Config, data.name, then.data_config), 0)
    with calling(f"'{data.name}'", "its fingerprint"):
        fingerprint = plain(source.fingerprint())
    code = code_now(registry, model, data.name)
    identity = then.identity | _digests(code) | {"fingerprint": fingerprint}
    clusterer = clusterer_of(registry.model(model), old.clusterer.get("config", {}))
    return Cell(dataclasses.replace(then, identity=identity, code=code), clusterer)


def code_now(registry: Registry, model: str, data: str) -> dict[str, Code]:
    """The code that a training of the model on the data depends on, as it stands now; see `Training.code`."""
    targets = registry.model(model).target, registry.source(data).target
    return {
        "model_code": code_of(targets[0]),
        "data_code": code_of(targets[1]),
        "harness_code": numerics_of(*targets),
    }


def changes_of_code(registry: Registry, training: Training) -> list[str]:
    """The files behind a training that are not as they were when it was planned."""
    now = code_now(registry, training.identity["model"], training.identity["data"])
    return [file for name, then in training.code.items() for file in changed_files(then, now[name])]


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
    except Exception:
        return


def _digests(code: Mapping[str, Code]) -> dict[str, str]:
    return {name: digest(files) for name, files in code.items()}


def clusterer_of(spec: ModelSpec, mixture: Mapping[str, Any]) -> dict[str, Any]:
    """What clusters for a detector: itself, or a mixture with this config; as `Cell.clusterer`."""
    if spec.clusters:
        return {"name": OWN}
    return {"name": MIXTURE, "config": plain(mixture), "code": digest(clustering_code())}


def _check_owners(registry: Registry, used: list[str], overrides: Overrides) -> None:
    for owner in overrides:
        if owner not in used:
            if owner in registry.models or owner in registry.data or owner == MIXTURE:
                raise UsageError(f"-o {owner}...: nothing in this run uses it (it has {', '.join(used)})")
            raise unknown("model or data set", owner, used)
