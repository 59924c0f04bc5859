"""The true boxes as detections."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from objbench.detector import Detections, Detector
from objbench.scenes import Scenes


@dataclass(frozen=True)
class TruthConfig:
    """It has no options."""


class Truth(Detector):
    """Gives the true boxes, each with a score of 1, and nothing else: clusters are a clusterer's to find."""

    Config = TruthConfig
    oracle = True

    def fit(self, scenes: Scenes) -> None:
        """There is nothing to learn."""

    def detect_scenes(self, scenes: Scenes) -> Detections:
        """The true boxes, in their order."""
        truth, device = scenes.truth, scenes.images.device
        scores = torch.ones(len(truth.image), device=device)
        return Detections(truth.images, truth.image.to(device), truth.boxes.to(device).float(), scores)
