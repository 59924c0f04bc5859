"""A complete training: from the objects of the plugins to the detections on the test scenes."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from objbench.cells.protocols import Protocol
from objbench.cells.result import Position
from objbench.cells.store import position
from objbench.detector import Detections, Detector, trains_by_steps
from objbench.scenes import GroundTruth, SceneSource, first_indices
from objbench.score.detect import detect, device_of, shown
from objbench.score.random_state import undisturbed
from objbench.score.trained import Built
from objbench.train.loop import Watch, train

SHOWN = 100
"""How many test scenes are kept for pictures."""
RECONSTRUCTED = 8
"""For how many of them the detector's reconstruction is kept."""


@dataclass(frozen=True)
class Outcome:
    """All results of a training, except the detector's weights."""

    position: Position
    detections: Detections
    """On the test scenes, before clustering; with what-latents, if the detector has any."""
    truth: GroundTruth
    pictures: dict[str, Tensor]
    """`images` [SHOWN, channels, height, width] and, if the detector has any, `reconstructions` of the first
    RECONSTRUCTED; uint8."""
    warnings: list[str]


def run_training(built: Built, seed: int, protocol: Protocol, folder: Path, watch: Watch) -> Outcome:
    """Trains the detector from its checkpoint, or from the start, to the end; then runs it on the test scenes.

    Raises the errors of `train`, and TypeError when the detector's state cannot be saved.
    """
    detector = built.detector
    for name, value in detector.state_dict().items():
        if not isinstance(value, Tensor):  # checked now, not after a long training
            raise TypeError(f"its state '{name}' is {type(value).__name__}; weights can only be tensors")
    before = position(folder)
    if trains_by_steps(type(detector)):
        with watch.deferred():
            at = train(detector, built.train_source, seed, folder, watch, protocol.fit_scenes)
    else:
        watch.report({"phase": "fitting"})
        at = _fit(built, protocol)
    warnings = list(detector.warnings())
    if before.step and before.machine != at.machine:
        warnings.append(f"trained on {before.machine} to step {before.step}, then on {at.machine}")
    watch.report({"phase": "detecting"})
    found, truth = detect(detector, built.test_source, "test", protocol.test_scenes)
    return Outcome(at, found, truth, pictures(detector, built.test_source), warnings)


def _fit(built: Built, protocol: Protocol) -> Position:
    """For a detector that does not train by steps: calls its `fit` once, with the first training scenes."""
    indices = first_indices(built.train_source, "train", protocol.fit_scenes)
    scenes = shown(built.train_source.scenes("train", indices), built.detector)
    began = time.perf_counter()
    built.detector.fit(scenes)
    return Position(seconds=time.perf_counter() - began, images=len(scenes))


def pictures(detector: Detector, source: SceneSource) -> dict[str, Tensor]:
    """The first test scenes and the detector's reconstructions, as uint8: pictures are drawn from these alone."""
    images = source.scenes("test", first_indices(source, "test", SHOWN)).images
    kept = {"images": _bytes(images)}
    try:
        with undisturbed(detector):
            painted = detector.reconstruct(images[:RECONSTRUCTED].to(device_of(detector)))
    except Exception:  # an error here must not lose a finished training
        traceback.print_exc()
        return kept
    return kept if painted is None else kept | {"reconstructions": _bytes(painted.cpu())}


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
