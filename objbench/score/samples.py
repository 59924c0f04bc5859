"""What a detector finds and paints in a few validation scenes at each point of its curve, for figures. None of it
affects the training."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from objbench.cells.files import Damaged
from objbench.detector import Detections, Detector
from objbench.scenes import GroundTruth, SceneSource, first_indices
from objbench.score.arrays import flat, load_tensors, save_tensors, select_scenes
from objbench.score.detect import device_of
from objbench.score.random_state import undisturbed

FILE = "samples.safetensors"
SCENES = 4
"""How many validation scenes are kept."""
POINTS = 40
"""How many points are kept at most. If there are more, every second one is dropped."""


class Point(NamedTuple):
    """What a detector finds in the scenes after a training step."""

    step: int
    found: Detections
    painted: Tensor | None
    """Its reconstructions, as `Samples.images`; None if it has none."""


class Samples(NamedTuple):
    """The scenes and all points so far."""

    images: Tensor
    """`[SCENES, channels, height, width]` uint8."""
    truth: GroundTruth
    points: list[Point]


def read_samples(folder: Path) -> Samples | None:
    """What the training in `folder` has kept; None if nothing. Damaged when the file is not valid."""
    if not (folder / FILE).exists():
        return None
    tensors = load_tensors(folder / FILE)
    try:
        images, steps, where = tensors["images"], tensors["steps"], tensors["found.point"]
        truth = GroundTruth(len(images), *(tensors[f"truth.{name}"] for name in ("image", "boxes", "labels")))
        points = []
        for i, step in enumerate(steps.tolist()):
            mine = where == i
            fields = {k: tensors[f"found.{k}"][mine] for k in ("image", "boxes", "scores")}
            clusters = tensors["found.clusters"][mine] if "found.clusters" in tensors else None
            painted = tensors["reconstructions"][i] if "reconstructions" in tensors else None
            points.append(Point(step, Detections(len(images), **fields, clusters=clusters), painted))
    except (KeyError, IndexError, RuntimeError):
        raise Damaged(f"{FILE} was written by another version of objbench") from None
    return Samples(images, truth, points)


def write_samples(folder: Path, samples: Samples) -> None:
    """Replaces what is kept; OSError when that is not possible.

    Clusters and reconstructions are written if all points have them.
    """
    points = samples.points
    tensors = {"images": samples.images, "steps": torch.tensor([point.step for point in points])}
    tensors |= {f"truth.{name}": value for name, value in flat(samples.truth).items() if name != "images"}
    counts = torch.tensor([len(point.found.scores) for point in points], dtype=torch.int64)
    tensors["found.point"] = torch.repeat_interleave(torch.arange(len(points)), counts)
    for name in ("image", "boxes", "scores", "clusters"):
        parts = [getattr(point.found, name) for point in points]
        if all(part is not None for part in parts):
            tensors[f"found.{name}"] = torch.cat(parts)
    painted = [point.painted for point in points if point.painted is not None]
    if len(painted) == len(points):
        tensors["reconstructions"] = torch.stack(painted)
    save_tensors(folder / FILE, tensors)


class Sampler:
    """Keeps the samples of a training while it runs."""

    def __init__(self, folder: Path, step: int) -> None:
        """folder: of the training. step: where it goes on; points of later steps are dropped."""
        self.folder = folder
        try:
            before = read_samples(folder)
        except Damaged:
            before = None
        self._points = [point for point in before.points if point.step <= step] if before else []

    def add(
        self, step: int, detector: Detector, source: SceneSource, found: Detections, truth: GroundTruth
    ) -> None:
        """Adds a point. found, truth: of the first validation scenes, at least SCENES if there are so many.

        OSError when it cannot be written.
        """
        first = torch.arange(min(SCENES, found.images))
        found, truth = select_scenes(found, truth, first)
        with undisturbed(detector):
            images = source.scenes("validation", first_indices(source, "validation", len(first))).images
            painted = _painted(detector, images)
        point = Point(
            step, Detections(len(first), found.image, found.boxes, found.scores, found.clusters), painted
        )
        self._points = [*(old for old in self._points if old.step < step), point]
        while len(self._points) > POINTS:
            del self._points[1:-1:2]
        write_samples(self.folder, Samples(_bytes(images), truth, self._points))


def _painted(detector: Detector, images: Tensor) -> Tensor | None:
    """The detector's reconstructions. An error in them must not end a training: it is printed."""
    try:
        painted = detector.reconstruct(images.to(device_of(detector)))
        return None if painted is None else _bytes(painted.cpu())
    except Exception:
        traceback.print_exc()
        return None


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
