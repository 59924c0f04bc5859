"""Tensors on disk: safetensors files, detections and ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from objbench.cells.files import Damaged
from objbench.detector import Detections
from objbench.scenes import GroundTruth
from objbench.writing import write_file


def flat(listed: Detections | GroundTruth) -> dict[str, Tensor]:
    """Detections or truth as tensors to save, by the names of their fields."""
    tensors = {name: value for name, value in vars(listed).items() if isinstance(value, Tensor)}
    return tensors | {"images": torch.tensor(listed.images)}


def load_found(training: Path) -> Detections:
    """What the detector of a training found in its test scenes, with its own clusters if it has any."""
    tensors = load_tensors(training / "detections.safetensors")
    return Detections(int(tensors.pop("images")), **tensors)


def load_detections(folder: Path) -> Detections:
    """The detections of a cell on its test scenes, with its clusters if it has any: those of its clusterer."""
    found = load_found(folder.parent)
    if (folder / "clusters.safetensors").exists():
        found = replace(found, clusters=load_tensors(folder / "clusters.safetensors")["clusters"])
    return found


def load_truth(folder: Path) -> GroundTruth:
    """The true objects of the test scenes of the cell in `folder`."""
    tensors = load_tensors(folder.parent / "truth.safetensors")
    return GroundTruth(int(tensors.pop("images")), **tensors)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file. Tensors may share memory or lie on any device."""
    from safetensors.torch import save

    write_file(path, save({k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; tensors are on the CPU. Damaged when the file is missing or not valid."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except SafetensorError as error:
        raise Damaged(f"{path.name} was cut short or is not ours ({error})") from None


def select_scenes(
    detections: Detections, truth: GroundTruth, indices: Tensor
) -> tuple[Detections, GroundTruth]:
    """The scenes at `indices` [n] int64 (may repeat) as scenes 0..n-1; the order within a scene is kept."""
    found, found_in = _rows_of(detections.image, detections.images, indices)
    there, there_in = _rows_of(truth.image, truth.images, indices)

    return (
        replace(detections.select(found), images=len(indices), image=found_in),
        GroundTruth(
            len(indices),
            there_in,
            truth.boxes[there],
            truth.labels[there],
            None if truth.masks is None else truth.masks[there],
        ),
    )


def _rows_of(image: Tensor, images: int, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that belong to the scenes at `indices`, scene by scene; and for each row its new scene number."""
    order = torch.argsort(image, stable=True)
    counts = torch.bincount(image, minlength=images)
    starts = counts.cumsum(0) - counts
    taken = counts[indices]
    scene = torch.repeat_interleave(torch.arange(len(indices)), taken)
    within = torch.arange(len(scene)) - (taken.cumsum(0) - taken)[scene]
    return order[starts[indices][scene] + within], scene
