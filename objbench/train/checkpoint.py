"""Checkpoints: all state that is needed to resume a training exactly, as safetensors and JSON, without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objbench.cells.files import checksums, read_json, write_json
from objbench.cells.result import Position
from objbench.detector import Detector
from objbench.score.arrays import load_tensors, save_tensors
from objbench.score.random_state import rng_states, set_rng_states


def save(folder: Path, at: Position, detector: Detector, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Writes the tensors to a file with a new name, then `checkpoint.json`, which names the file that is valid."""
    tensors: dict[str, Tensor] = {}
    state = {
        "model": detector.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rng": rng_states(),
    }
    packed = _pack(state, "", tensors)
    name = f"checkpoint-{at.step}.safetensors"
    save_tensors(folder / name, tensors)
    body = {
        "training": folder.name,
        "position": asdict(at),
        "files": checksums(folder, [name]),
        "state": packed,
    }
    write_json(folder / "checkpoint.json", body)
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def restore(folder: Path, detector: Detector, optimizers: Sequence[torch.optim.Optimizer]) -> Position:
    """Restores model, optimisers and random generators from the checkpoint, if there is one."""
    if not (folder / "checkpoint.json").exists():
        return Position()
    body = read_json(folder / "checkpoint.json")
    (name,) = body["files"]
    state = _unpack(body["state"], load_tensors(folder / name))
    detector.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
        for parameter, moments in optimizer.state.items():
            for key, value in moments.items():  # a fused step expects the memory layout of the parameter
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    set_rng_states(state["rng"])
    return Position(**body["position"])


def remove(folder: Path) -> None:
    """Deletes the checkpoint of a finished training."""
    for path in [folder / "checkpoint.json", *folder.glob("checkpoint-*.safetensors")]:
        path.unlink(missing_ok=True)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A tree of dicts, lists and plain values as JSON; its tensors are added to `tensors` with dotted names."""
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
