"""All that training needs to go on as if it had never stopped: safetensors and JSON, nothing pickled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objbench.detector import Detector
from objbench.store import load_tensors, read_json, save_tensors, vouch, write_json


@dataclass
class Position:
    """How far a training has come."""

    step: int = 0
    """Steps done."""
    images: int = 0
    """Training images seen."""
    seconds: float = 0.0
    """Spent in training; evaluation and checkpoints are not counted."""
    peak_memory_mb: float = 0.0
    machine: str = ""
    """Device and threads; resuming elsewhere need not give the same bits."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """The running figures so far, a row an evaluation."""


def save(folder: Path, at: Position, detector: Detector, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Writes the tensors under a new name, then `checkpoint.json`, which alone says that they count."""
    tensors: dict[str, Tensor] = {}
    state = {
        "model": detector.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rng": rng_states(),
    }
    packed = _pack(state, "", tensors)
    name = f"checkpoint-{at.step}.safetensors"
    save_tensors(folder / name, tensors)
    body = {"cell": folder.name, "position": asdict(at), "files": vouch(folder, [name]), "state": packed}
    write_json(folder / "checkpoint.json", body)
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def position(folder: Path) -> Position:
    """How far the cell's checkpoint is; at the start when it has none."""
    if not (folder / "checkpoint.json").exists():
        return Position()
    return Position(**read_json(folder / "checkpoint.json")["position"])


def restore(folder: Path, detector: Detector, optimizers: Sequence[torch.optim.Optimizer]) -> Position:
    """Puts model, optimisers and random generators to where the checkpoint saw them, if there is one."""
    if not (folder / "checkpoint.json").exists():
        return Position()
    body = read_json(folder / "checkpoint.json")
    (name,) = body["files"]
    state = _unpack(body["state"], load_tensors(folder / name))
    detector.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
        for parameter, moments in optimizer.state.items():
            for key, value in moments.items():  # a fused step reads them as if laid out like the parameter
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    set_rng_states(state["rng"])
    return Position(**body["position"])


def remove(folder: Path) -> None:
    """Deletes the checkpoint of a cell that is done."""
    for path in [folder / "checkpoint.json", *folder.glob("checkpoint-*.safetensors")]:
        path.unlink(missing_ok=True)


def rng_states() -> dict[str, Any]:
    """The state of every global random generator that a plugin may draw from."""
    _, keys, place, has_gauss, gauss = np.random.get_state()
    version, words, spare = random.getstate()
    keys_tensor = torch.from_numpy(np.asarray(keys).astype(np.int64))
    states = {
        "torch": torch.get_rng_state(),
        "numpy": [keys_tensor, int(place), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(words), spare],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Undoes whatever was drawn since `rng_states`."""
    torch.set_rng_state(states["torch"])
    keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    version, words, spare = states["python"]
    random.setstate((version, tuple(words.tolist()), spare))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a tree of dicts, lists and plain values; its tensors go into `tensors` under dotted names."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[k, _pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"the state{name} is {type(value).__name__}, which a checkpoint cannot hold")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in content}
    return (list if kind == "list" else tuple)(_unpack(v, tensors) for v in content)
