"""The weights that a training starts from, or that are evaluated on other scenes: those of a finished training.

An identity names their origin in the part START or EVALUATED: `training` is the key of the finished training,
`weights` the sha256 of its weights file. So a key holds the content of the weights, and not where they lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from objbench.cells.files import Damaged, checksums, verify_checksums
from objbench.cells.identity import EVALUATED, START, Training, read_training
from objbench.cells.store import Store, read_trained
from objbench.errors import UsageError

if TYPE_CHECKING:
    from objbench.detector import Detector
    from objbench.scenes import SceneShape

WEIGHTS = "weights.safetensors"


def find_training(store: Store, text: str) -> Path:
    """The folder of the one training whose key, or one of whose cells' keys, begins so; or that lies at this path.

    UsageError when there is none, or more than one.
    """
    here = Path(text)
    if (here / "cell.json").is_file():
        return here.resolve().parent
    if (here / "training.json").is_file():
        return here.resolve()
    keys = store.cell_keys()
    found = sorted({key.partition("/")[0] for key in keys if key.startswith(text)})
    if len(found) == 1:
        return store.folder(found[0]).resolve()
    if found:
        raise UsageError(
            f"'{text}' is the beginning of {len(found)} trainings: {', '.join(found)}; use more characters"
        )
    known = sorted({key.partition("/")[0] for key in keys})
    raise UsageError(
        f"no training in {store.out} begins with '{text}' (trainings: {', '.join(known) or 'none'})"
    )


def finished(folder: Path) -> Training:
    """The training in `folder`. UsageError unless it is finished, and its weights are there as they were written."""
    key = folder.name
    try:
        training = read_training(folder)
        if EVALUATED in training.identity:
            of = training.identity[EVALUATED]["training"]
            raise UsageError(f"{key} is an evaluation, without weights of its own; name training {of}")
        if not (folder / "trained.json").exists():
            raise UsageError(f"training {key} is not finished; run it to its end first")
        trained = read_trained(folder)
        if WEIGHTS not in trained.files or not (folder / WEIGHTS).exists():
            raise UsageError(f"training {key} was kept without its weights; train it again first")
        verify_checksums(folder, trained.files)
    except Damaged as error:
        raise UsageError(f"training {key}: {error}; train it again first") from None
    return training


def origin_of(folder: Path) -> dict[str, Any]:
    """What an identity says of the finished training in `folder`."""
    return {"training": folder.name, "weights": read_trained(folder).files[WEIGHTS]}


def origin_folder(trainings: Path, training: Training) -> Path:
    """The folder with the weights that a training begins with: one of `trainings`, else where it lay when planned.

    UsageError when these very weights are at neither place.
    """
    origin = training.identity.get(START) or training.identity[EVALUATED]
    key: str = origin["training"]
    places = [trainings / key]
    places += [Path(training.weights_from)] if training.weights_from else []
    for folder in places:
        if (folder / WEIGHTS).is_file() and checksums(folder, [WEIGHTS])[WEIGHTS] == origin["weights"]:
            return folder
    raise UsageError(f"the weights of training {key}, which are needed, are no longer in {places[0]}")


def check_weights(folder: Path, detector: type[Detector], config: Any, shape: SceneShape, what: str) -> None:
    """UsageError when the weights in `folder` do not fit this detector, with the first tensor that does not.

    what: how the message begins.
    """
    kept = _shapes(folder / WEIGHTS)
    wanted = _state_shapes(detector, config, shape, what)
    for name in sorted(kept.keys() | wanted.keys()):
        there, here = kept.get(name), wanted.get(name)
        if there != here:
            said = f"has shape {there} there and {here} here"
            if there is None or here is None:
                said = f"is missing {'there' if there is None else 'here'}"
            raise UsageError(f"{what}: the weights of training {folder.name} do not fit: '{name}' {said}")


def _state_shapes(
    detector: type[Detector], config: Any, shape: SceneShape, what: str
) -> dict[str, list[int]]:
    """The shapes of a detector's state; built without memory where that works."""
    import torch

    def built() -> dict[str, list[int]]:
        state = detector(config, shape).state_dict()
        return {name: list(value.shape) for name, value in state.items()}

    try:
        with torch.device("meta"):
            return built()
    except Exception:
        pass
    try:
        return built()
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file; only its header is read."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        return {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
