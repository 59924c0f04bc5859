"""What to run: models x data sets x seeds as cells, each with the identity that its directory is named by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objbench.cells.code import Code, changed_files, clustering_code, code_of, digest, numerics_of
from objbench.cells.identity import MIXTURE, OWN, START, Cell, MixtureConfig, Training, identity_of, plain
from objbench.cells.origin import check_weights, find_training, finished, origin_of
from objbench.cells.overrides import Overrides, build_model_config, build_source_config
from objbench.cells.protocols import Protocol
from objbench.cells.store import Store
from objbench.errors import UsageError, told, unknown
from objbench.hookspecs import ModelSpec
from objbench.options import as_json, build, describe
from objbench.plugins import Registry, load_target

if TYPE_CHECKING:
    from objbench.detector import Detector
    from objbench.scenes import SceneShape


def matrix(
    registry: Registry,
    models: Sequence[str],
    data: Sequence[str],
    seeds: int,
    protocol: Protocol,
    overrides: Overrides,
    store: Store | None = None,
) -> list[Cell]:
    """The cells of models x data x seeds 0..seeds-1; all of the first seed come first.

    store: where `start_from` looks for trainings by the beginnings of their keys; runs/ when not given.
    Raises UsageError on unknown names and options, and on options of what is not in the matrix.
    """
    mixture = [MIXTURE] if any(not registry.model(m).clusters for m in models) else []
    _check_owners(registry, [*models, *data, *mixture], overrides)
    mixture_config = dataclasses.asdict(build(MixtureConfig, MIXTURE, overrides.get(MIXTURE, {})))
    cells = []
    for data_name in dict.fromkeys(data):
        with blaming(data_name):
            target = registry.source(data_name).target
            source_config = build_source_config(registry, data_name, protocol.name, overrides)
            source = load_target(target)(source_config, 0)
            of_data = {
                "data": data_name,
                "data_config": identity_of(source_config),
                "fingerprint": source.fingerprint(),
                "protocol": {k: v for k, v in dataclasses.asdict(protocol).items() if k != "summary"},
            }
        for model in dict.fromkeys(models):
            with blaming(model):
                spec = registry.model(model)
                detector = load_target(spec.target)
                refuse_start(detector, model, overrides)
                config = build_model_config(registry, model, protocol.name, data_name, overrides)
                check_fit(detector, config, source.shape, model, data_name)
                of_model = {"model": model, "model_config": identity_of(config)}
                start = None
                if starts(detector, config):
                    start = start_of(detector, config, source.shape, model, store or Store("runs"))
                    config = dataclasses.replace(config, start_from=start.name)
                    of_model[START] = origin_of(start)
                code = code_now(registry, model, data_name)
            clusterer = clusterer_of(spec, mixture_config)
            model_config, data_config = as_json(config), as_json(source_config)
            for seed in range(seeds):
                identity = plain(of_data | of_model | digests(code) | {"seed": seed})
                training = Training(identity, model_config, data_config, code, str(start or ""))
                cells.append(Cell(training, clusterer))
    return sorted(cells, key=lambda cell: int(cell.training.identity["seed"]))


def as_it_is_now(registry: Registry, old: Cell) -> Cell:
    """The same cell by the plugins, the data and the harness as they are now; its key differs if they have changed."""
    then = old.training
    model, data = then.identity["model"], registry.source(then.identity["data"])
    source_class = load_target(data.target)
    source = source_class(build(source_class.Config, data.name, then.data_config), 0)
    code = code_now(registry, model, data.name)
    identity = then.identity | digests(code) | {"fingerprint": plain(source.fingerprint())}
    clusterer = clusterer_of(registry.model(model), old.clusterer.get("config", {}))
    clusterer |= {k: v for k, v in old.clusterer.items() if k == "fitted"}  # it is not fitted anew
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


def refuse_start(detector: type[Detector], model: str, overrides: Overrides) -> None:
    """UsageError when a user asks for `start_from` of a detector whose training has no first step."""
    from objbench.detector import DetectorConfig, trains_by_steps

    if "start_from" not in overrides.get(model, {}):
        return
    if not trains_by_steps(detector):
        raise UsageError(
            f"-o {model}.start_from: {model} does not train by steps, so it starts from no weights"
        )
    own = [row.name for row in describe(detector.Config, model)]
    if not issubclass(detector.Config, DetectorConfig) and "start_from" not in own:
        raise UsageError(
            f"-o {model}.start_from: the options of {model} do not derive from DetectorConfig, which has start_from"
        )


def starts(detector: type[Detector], config: Any) -> bool:
    """Whether a training with this config starts from the weights of another one."""
    from objbench.detector import DetectorConfig, trains_by_steps

    return isinstance(config, DetectorConfig) and bool(config.start_from) and trains_by_steps(detector)


def start_of(detector: type[Detector], config: Any, shape: SceneShape, model: str, store: Store) -> Path:
    """The folder of the training that `config.start_from` names. UsageError unless its weights can be used."""
    what = f"{model}.start_from={config.start_from}"
    try:
        folder = find_training(store, config.start_from)
        there = finished(folder).identity["model"]
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    if there != model:
        raise UsageError(f"{what}: training {folder.name} is of model '{there}', not of '{model}'")
    check_weights(folder, detector, config, shape, what)
    return folder


@contextlib.contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turns whatever a plugin raises into one line that names it, and the place."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"'{name}' does not load: {told(error)}") from None


def digests(code: Mapping[str, Code]) -> dict[str, str]:
    """What an identity says of the code."""
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
