"""What a detector finds on held-out scenes, and what that scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from objbench import checkpoint
from objbench.detector import PRESENT, Detections, Detector, blind
from objbench.plugins import Registry
from objbench.results import CellResult
from objbench.scenes import GroundTruth, Scenes, SceneSource, Split
from objbench.scoring import metric_versions, score
from objbench.store import load_tensors
from objbench.training import first_indices

BATCH = 32
"""Images that a detector is shown at once."""


def detect(
    detector: Detector, source: SceneSource, split: Split, count: int
) -> tuple[Detections, GroundTruth]:
    """What the detector finds in the first `count` scenes of a split, and what is there; both on the CPU.

    Leaves training as it was: mode, random generators and batch statistics are not touched.
    """
    found, truths = [], []
    with undisturbed(detector):
        for indices in torch.split(first_indices(source, split, count), BATCH):
            scenes = source.scenes(split, indices)
            truths.append(scenes.truth)
            found.append(checked(detector.detect_scenes(shown(scenes, detector)).to("cpu"), len(scenes)))
    return Detections.concatenate(found), GroundTruth.concatenate(truths)


def shown(scenes: Scenes, detector: Detector) -> Scenes:
    """What the detector may see of scenes, on its device: the truth only if it is an oracle."""
    device = device_of(detector)
    seen = scenes if detector.oracle else blind(scenes)
    image, boxes, labels = (t.to(device) for t in (seen.truth.image, seen.truth.boxes, seen.truth.labels))
    return Scenes(seen.images.to(device), GroundTruth(len(seen), image, boxes, labels))


def present_what(found: Detections) -> Tensor | None:
    """The what-latents [m, A] of the detections that the detector stands by; None when it gives none."""
    return None if found.what is None else found.what[found.scores >= PRESENT]


@contextlib.contextmanager
def undisturbed(detector: Detector) -> Iterator[None]:
    """Eval mode without gradients; afterwards training goes on as if nothing had been."""
    was_training, states = detector.training, checkpoint.rng_states()
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        detector.train(was_training)
        checkpoint.set_rng_states(states)


def checked(found: Detections, images: int) -> Detections:
    """The same detections; ValueError when they are not of `images` images, or the latents are not finite.

    What else could be wrong with them is looked for when they are scored.
    """
    if found.images != images:
        raise ValueError(f"detect was shown {images} images and answers for {found.images}")
    if found.what is not None and not found.what.isfinite().all():
        raise ValueError("detect returned what-latents that are NaN or infinite")
    return found


def device_of(detector: Detector) -> torch.device:
    """Where the detector's tensors lie; the CPU when it has none."""
    tensors = [*detector.parameters(), *detector.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def flat(listed: Detections | GroundTruth) -> dict[str, Tensor]:
    """Detections or truth as tensors to save, under the names of their fields."""
    tensors = {name: value for name, value in vars(listed).items() if isinstance(value, Tensor)}
    return tensors | {"images": torch.tensor(listed.images)}


def load_detections(folder: Path) -> Detections:
    """The raw detections of a cell on its test scenes."""
    tensors = load_tensors(folder / "detections.safetensors")
    return Detections(int(tensors.pop("images")), **tensors)


def load_truth(folder: Path) -> GroundTruth:
    """The true objects of a cell's test scenes."""
    tensors = load_tensors(folder / "truth.safetensors")
    return GroundTruth(int(tensors.pop("images")), **tensors)


def columns(registry: Registry) -> dict[str, str]:
    """The values that are columns of the main table, and their headings."""
    return {name: heading for spec in registry.metrics.values() for name, heading in spec.columns.items()}


def rescore(registry: Registry, result: CellResult) -> CellResult:
    """The result by the metrics as they are now, from raw detections; itself if it is by these already."""
    versions = metric_versions(registry)
    if result.status != "done" or result.provenance["metric_versions"] == versions:
        return result
    folder = Path(result.path)
    metrics = score(registry, load_detections(folder), load_truth(folder))
    return replace(result, metrics=metrics, provenance=result.provenance | {"metric_versions": versions})
