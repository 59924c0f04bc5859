"""Runs a detector on held-out scenes and checks its detections."""

from __future__ import annotations

import torch

from objbench.detector import Detections, Detector, blind
from objbench.scenes import GroundTruth, Scenes, SceneSource, Split, first_indices
from objbench.score.random_state import undisturbed

BATCH = 32
"""How many images a detector receives at once."""


def detect(
    detector: Detector, source: SceneSource, split: Split, count: int
) -> tuple[Detections, GroundTruth]:
    """The detections in the first `count` scenes of a split, and the truth; both on the CPU.

    Does not affect the training: mode, random generators and batch statistics do not change.
    """
    found, truths = [], []
    with undisturbed(detector):
        for indices in torch.split(first_indices(source, split, count), BATCH):
            scenes = source.scenes(split, indices)
            truths.append(scenes.truth)
            found.append(checked(detector.detect_scenes(shown(scenes, detector)).to("cpu"), len(scenes)))
    return Detections.concatenate(found), GroundTruth.concatenate(truths)


def shown(scenes: Scenes, detector: Detector) -> Scenes:
    """The scenes on the detector's device; without the truth, unless the detector is an oracle."""
    device = device_of(detector)
    seen = scenes if detector.oracle else blind(scenes)
    image, boxes, labels = (t.to(device) for t in (seen.truth.image, seen.truth.boxes, seen.truth.labels))
    return Scenes(seen.images.to(device), GroundTruth(len(seen), image, boxes, labels))


def checked(found: Detections, images: int) -> Detections:
    """Returns the detections; ValueError when they are not for `images` images or break their contract."""
    if found.images != images:
        raise ValueError(f"detect was shown {images} images and answers for {found.images}")
    if fault := found.fault():
        raise ValueError(f"what detect returned is wrong: {fault}")
    return found


def device_of(detector: Detector) -> torch.device:
    """The device of the detector's tensors; the CPU when it has none."""
    tensors = [*detector.parameters(), *detector.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
