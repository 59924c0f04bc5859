"""What to run: models x data sets x seeds as cells, each with the identity that its directory is named by."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objbench.clustering import MixtureConfig
from objbench.errors import UsageError, told, unknown
from objbench.options import build
from objbench.overrides import Overrides, build_model_config, build_source_config
from objbench.plugins import Registry, load_target
from objbench.protocols import Protocol
from objbench.results import CellResult, Status
from objbench.store import canonical

if TYPE_CHECKING:
    from objbench.detector import Detector
    from objbench.scenes import SceneShape

MIXTURE = "gmm"
"""The name that the options of the mixture go by: `-o gmm.components=10`."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training to run. Equal identities have equal keys, whatever the order, paths or display names."""

    identity: dict[str, Any]
    """Everything that the cell's figures depend on, as JSON values."""
    model_config: dict[str, Any]
    data_config: dict[str, Any]
    """The whole configs: also what is not part of the identity, such as where files lie."""

    @property
    def key(self) -> str:
        """The first 16 hex digits of the identity's sha256: the name of the cell's directory."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.identity['model']} on {self.identity['data']}, seed {self.identity['seed']}"

    def result(self, status: Status, **known: Any) -> CellResult:
        """Its result as far as it is known."""
        return CellResult(
            cell=self.key,
            model=self.identity["model"],
            data=self.identity["data"],
            protocol=self.identity["protocol"]["name"],
            seed=self.identity["seed"],
            status=status,
            model_config=self.identity["model_config"],
            data_config=self.identity["data_config"],
            **known,
        )


def matrix(
    registry: Registry,
    models: Sequence[str],
    data: Sequence[str],
    seeds: int,
    protocol: Protocol,
    overrides: Overrides,
) -> list[Cell]:
    """The cells of models x data x seeds 0..seeds-1; all of the first seed come first.

    Raises UsageError on unknown names and options, on options of what is not in the matrix, and on scenes that
    are not as the contract says (`objbench.scene_checks`).
    """
    mixture = [MIXTURE] if any(not registry.model(m).clusters for m in models) else []
    _check_owners(registry, [*models, *data, *mixture], overrides)
    mixture_config = dataclasses.asdict(build(MixtureConfig, MIXTURE, overrides.get(MIXTURE, {})))
    cells, sources = [], []
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
            sources.append((data_name, source, scenes_depend_on(_plain(of_data))))
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
    from objbench.scene_checks import check_source  # here, because tables need this module without torch

    for (
        data_name,
        source,
        depends_on,
    ) in sources:  # last, for it may take a while: mistyped options are told first
        with _blaming(data_name):
            check_source(data_name, source, depends_on)
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


def identity_of(config: Any) -> dict[str, Any]:
    """A config's values, but for those that change no result (`option(..., identity=False)`)."""
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.metadata.get("identity", True)
    }


def source_hash(target: str) -> str:
    """A hash of the plugin that "package.module:Name" lies in: its package's Python, or its lone file."""
    module = importlib.import_module(target.partition(":")[0])
    file = Path(str(module.__file__))
    digest = hashlib.sha256()
    if not module.__package__:
        digest.update(file.read_bytes())
    else:
        for path in sorted(file.parent.rglob("*.py")):
            digest.update(path.relative_to(file.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def scenes_depend_on(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell's identity that its scenes follow from, the seed left out."""
    return {name: identity[name] for name in ("data", "data_config", "data_source", "fingerprint")}


def difference(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """What sets one identity apart from another, a line a value: "gmair.lr is 0.001, there 0.0001"."""
    lines = []
    owners = {
        "model_config": new["model"],
        "data_config": new["data"],
        "mixture": MIXTURE,
        "protocol": "protocol",
    }
    for part in sorted(new.keys() | old.keys()):
        mine, theirs = new.get(part), old.get(part)
        if mine == theirs:
            continue
        if part in owners and isinstance(mine, dict) and isinstance(theirs, dict):
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):
                    lines.append(f"{owners[part]}.{key} is {mine.get(key)}, there {theirs.get(key)}")
        elif part in ("model_source", "data_source"):
            lines.append(f"the source of {new[part.removesuffix('_source')]} has changed")
        elif part == "fingerprint":
            lines.append(f"the content of {new['data']} has changed")
        else:
            lines.append(f"{part} is {mine}, there {theirs}")
    return lines


def _check_owners(registry: Registry, used: list[str], overrides: Overrides) -> None:
    for owner in overrides:
        if owner not in used:
            if owner in registry.models or owner in registry.data or owner == MIXTURE:
                raise UsageError(f"-o {owner}...: nothing in this run uses it (it has {', '.join(used)})")
            raise unknown("model or data set", owner, used)


def _plain(value: Any) -> Any:
    """JSON values in which equal numbers are equal texts: 1.0 becomes 1, a tuple becomes a list."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
