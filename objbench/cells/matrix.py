"""What to run: models x data sets x seeds as cells, each with the identity that its directory is named by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from objbench.cells.identity import MIXTURE, Cell, MixtureConfig, _plain, identity_of, source_hash
from objbench.cells.overrides import Overrides, build_model_config, build_source_config
from objbench.cells.protocols import Protocol
from objbench.errors import UsageError, told, unknown
from objbench.options import build
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
) -> list[Cell]:
    """The cells of models x data x seeds 0..seeds-1; all of the first seed come first.

    Raises UsageError on unknown names and options, and on options of what is not in the matrix.
    """
    mixture = [MIXTURE] if any(not registry.model(m).clusters for m in models) else []
    _check_owners(registry, [*models, *data, *mixture], overrides)
    mixture_config = dataclasses.asdict(build(MixtureConfig, MIXTURE, overrides.get(MIXTURE, {})))
    cells = []
    for data_name in dict.fromkeys(data):
        with _blaming(data_name):
            target = registry.source(data_name).target
            source_config = build_source_config(registry, data_name, protocol.name, overrides)
            source = load_target(target)(source_config, 0)
            of_data = {
                "data": data_name,
                "data_config": identity_of(source_config),
                "data_source": source_hash(target),
                "fingerprint": source.fingerprint(),
                "protocol": {k: v for k, v in dataclasses.asdict(protocol).items() if k != "summary"},
            }
        for model in dict.fromkeys(models):
            with _blaming(model):
                spec = registry.model(model)
                config = build_model_config(registry, model, protocol.name, data_name, overrides)
                check_fit(load_target(spec.target), config, source.shape, model, data_name)
                of_model = {
                    "model": model,
                    "model_config": identity_of(config),
                    "model_source": source_hash(spec.target),
                }
            if not spec.clusters:
                of_model["mixture"] = mixture_config
            for seed in range(seeds):
                identity = _plain(of_data | of_model | {"seed": seed})
                cells.append(Cell(identity, dataclasses.asdict(config), dataclasses.asdict(source_config)))
    return sorted(cells, key=lambda cell: int(cell.identity["seed"]))


def check_fit(detector: type[Detector], config: Any, shape: SceneShape, model: str, data: str) -> None:
    """UsageError when the detector refuses images of this shape, better told now than by a failed cell.

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


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Turns whatever a plugin raises into one line that names it, and the place."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"'{name}' does not load: {told(error)}") from None


def _check_owners(registry: Registry, used: list[str], overrides: Overrides) -> None:
    for owner in overrides:
        if owner not in used:
            if owner in registry.models or owner in registry.data or owner == MIXTURE:
                raise UsageError(f"-o {owner}...: nothing in this run uses it (it has {', '.join(used)})")
            raise unknown("model or data set", owner, used)


def as_it_is_now(registry: Registry, old: Cell) -> Cell:
    """The same cell by the plugins and the data as they are now; its key differs if they have changed."""
    from objbench.cells.identity import source_hash
    from objbench.options import build

    identity = dict(old.identity)
    model, data = registry.model(identity["model"]), registry.source(identity["data"])
    source_class = load_target(data.target)
    config = build(source_class.Config, data.name, old.data_config)
    fingerprint: dict[str, Any] = source_class(config, 0).fingerprint()
    identity |= {
        "model_source": source_hash(model.target),
        "data_source": source_hash(data.target),
        "fingerprint": fingerprint,
    }
    return dataclasses.replace(old, identity=identity)
