"""What a cell is: a training and a clusterer, each with the identity that its key is the hash of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objbench.cells.code import Code, digest
from objbench.cells.files import Damaged, canonical, read_json, write_json
from objbench.cells.result import CellResult, Status
from objbench.options import as_json

OWN = "own"
"""The clusterer of a detector that clusters by itself. No plugin can have this name."""
START = "start_from"
"""The part of an identity that names the training whose weights this one starts from; see `objbench.cells.origin`. Also
the option of every model that asks for it."""
EVALUATED = "evaluated"
"""The part of an identity that says which training was evaluated on other scenes: there was no training of its own."""
USES = "uses"
"""The part of an identity that names the clusterers which the detector runs itself; see `Detector.uses`."""
TEST_SEED = "test_seed"
"""The part of an evaluation's identity that is the seed of its test scenes."""


@dataclass(frozen=True)
class Training:
    """What is trained: a detector on a data set, under a protocol, from a seed.

    Or what is evaluated: the weights of another training on a data set that they were not trained on (EVALUATED).
    """

    identity: dict[str, Any]
    """Everything that weights and detections depend on, as JSON values."""
    model_config: dict[str, Any]
    data_config: dict[str, Any]
    """The whole configs: also what is not part of the identity, such as where files lie."""
    code: dict[str, Code]
    """The files behind the identity's `model_code`, `data_code` and `harness_code`, each under that name."""
    about: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)
    """What tables and messages say of the plugins, as it was when this was planned, so that they need no plugin.

    "model", "data": the spec's words (`label` and so on), `plugin` (as `objbench.cells.about.plugin_of` gives it),
    `settings`, the config under the protocol without the user's options, and `given`, those of the user's options that
    are in no identity. Any may be missing: earlier versions recorded none.
    """
    weights_from: str = field(default="", compare=False)
    """The folder with the weights it begins with, as it was when this was planned; the identity has their digest."""

    @property
    def key(self) -> str:
        """The first 16 hex digits of the identity's sha256: the name of its directory."""
        return _hash(self.identity)[:16]


@dataclass(frozen=True)
class Cell:
    """One figure of each metric: a training, and what clusters the objects that its detector finds.

    Equal identities have equal keys, whatever the order, paths or display names.
    """

    training: Training
    clusterer: dict[str, Any]
    """{"name": "own"}, or the name, `config` and `code` of the clusterer; as JSON values."""
    about: dict[str, Any] = field(default_factory=dict, compare=False)
    """What tables and messages say of the clusterer: as `Training.about` says of a model, and `replaces`, true when
    the detector has clusters of its own, which are not used. Empty where the detector clusters."""

    @property
    def key(self) -> str:
        """Where it lies in a store: "<training>/<clusterer>"."""
        return f"{self.training.key}/{self.clusterer_key}"

    @property
    def clusterer_key(self) -> str:
        """The clusterer's name, with 8 hex digits of the sha256 of its config and code if it has any."""
        name: str = self.clusterer["name"]
        return name if name == OWN else f"{name}-{_hash(self.clusterer)[:8]}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the cell's figures depend on."""
        return self.training.identity | {"clusterer": self.clusterer}

    @property
    def name(self) -> str:
        """What messages call it: "spair+gmm on multimnist, seed 0"."""
        identity = self.training.identity
        name = cell_name(identity["model"], self.clusterer["name"], identity["data"], identity["seed"])
        origin = identity.get(EVALUATED)
        return f"{name}, trained on {origin['identity']['data']}" if origin else name

    def result(self, status: Status, **known: Any) -> CellResult:
        """Its result as far as it is known."""
        identity = self.training.identity
        return CellResult(
            cell=self.key,
            model=identity["model"],
            data=identity["data"],
            protocol=identity["protocol"]["name"],
            seed=identity["seed"],
            status=status,
            model_config=identity["model_config"],
            data_config=identity["data_config"],
            clusterer=self.clusterer["name"],
            trained=identity.get(EVALUATED, {}).get("training", ""),
            **known,
        )


def with_clusterer(model: str, clusterer: str) -> str:
    """A model and its clusterer as `--models` has them: "spair+gmm"; the model alone where it clusters itself."""
    return model if clusterer in ("", OWN) else f"{model}+{clusterer}"


def cell_name(model: str, clusterer: str, data: str, seed: int) -> str:
    """What messages call a cell."""
    return f"{with_clusterer(model, clusterer)} on {data}, seed {seed}"


def write_cell(folder: Path, cell: Cell) -> None:
    """Says what the cell in `folder` is, and the training in the folder above. Both folders must exist."""
    write_json(folder.parent / "training.json", dataclasses.asdict(cell.training))
    body = {"training": cell.training.key, "clusterer": cell.clusterer, "about": cell.about}
    write_json(folder / "cell.json", body)


def read_training(folder: Path) -> Training:
    """The training in `folder`. Damaged when its file cannot be believed, or is that of another."""
    try:
        training = Training(**read_json(folder / "training.json"))
        key = training.key
    except (TypeError, KeyError):  # fields that we do not know, or miss
        raise Damaged("training.json was written by another version of objbench") from None
    if key != folder.name:
        raise Damaged(f"training.json is that of training {key}: a copy, or edited")
    for name, code in training.code.items():
        if training.identity.get(name) != digest(code):
            raise Damaged(
                f"training.json was edited: its {name} is not the digest of the files that it lists"
            )
    return training


def read_cell(folder: Path) -> Cell:
    """The cell in `folder`. Damaged when its files cannot be believed, or are those of another."""
    training = read_training(folder.parent)
    body = read_json(folder / "cell.json")
    try:
        cell = Cell(training, body["clusterer"], body.get("about", {}))  # earlier versions recorded none
        key, of = cell.key, body["training"]
    except (TypeError, KeyError):
        raise Damaged("cell.json was written by another version of objbench") from None
    if key != f"{of}/{folder.name}":
        raise Damaged(f"cell.json is that of cell {of}/{cell.clusterer_key}: a copy, or edited")
    return cell


def identity_of(config: Any) -> dict[str, Any]:
    """A config's values, but for those that change no result (`option(..., identity=False)`)."""
    return {
        f.name: as_json(getattr(config, f.name))
        for f in dataclasses.fields(config)
        if f.metadata.get("identity", True)
    }


def plain(value: Any) -> Any:
    """JSON values in which equal numbers are equal texts: 1.0 becomes 1, a tuple becomes a list."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _hash(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(identity).encode()).hexdigest()
