"""What a detector finds on held-out scenes, and what that scores."""

from __future__ import annotations

import torch

from objbench.detector import Detections, Detector, blind
from objbench.scenes import GroundTruth, Scenes, SceneSource, Split, first_indices
from objbench.score.random_state import undisturbed

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


def checked(found: Detections, images: int) -> Detections:
    """The same detections; ValueError when they are not of `images` images, or break their contract."""
    if found.images != images:
        raise ValueError(f"detect was shown {images} images and answers for {found.images}")
    if fault := found.fault():
        raise ValueError(f"what detect returned is wrong: {fault}")
    return found


def device_of(detector: Detector) -> torch.device:
    """Where the detector's tensors lie; the CPU when it has none."""
    tensors = [*detector.parameters(), *detector.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
