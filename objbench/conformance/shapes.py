"""The scenes that models are tested on: simple enough to learn in seconds, and independent of any data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split

SIDE = 64
"""The side of an image, in pixels."""


@dataclass(frozen=True)
class ShapesConfig:
    """No options."""


class Shapes(SceneSource):
    """One to four squares, discs and crosses of 10 to 16 pixels on black, `channels x 64 x 64`."""

    Config = ShapesConfig
    classes = ("square", "disc", "cross")

    def __init__(self, config: ShapesConfig, seed: int, channels: int = 1) -> None:
        self.shape, self.seed = SceneShape(channels, SIDE, SIDE), seed

    def size(self, split: Split) -> int | None:
        return None

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        images = torch.zeros(len(indices), *self.shape)
        boxes, labels = [], []
        for image, index in zip(images, indices.tolist(), strict=True):
            rng = np.random.default_rng([len(split), self.seed, index])
            kinds = rng.integers(0, 3, rng.integers(1, 5))
            sizes = rng.integers(10, 17, len(kinds))
            corners = rng.integers(0, SIDE - sizes[:, None] + 1, (len(kinds), 2))
            for kind, size, (x, y) in zip(kinds, sizes, corners, strict=True):
                colour = torch.from_numpy(rng.uniform(0.5, 1, self.shape.channels)).float()
                drawn = colour[:, None, None] * _mask(int(kind), int(size))
                part = image[:, y : y + size, x : x + size]
                part.copy_(torch.maximum(part, drawn))
            boxes.append(torch.from_numpy(np.concatenate([corners, corners + sizes[:, None]], 1)))
            labels.append(torch.from_numpy(kinds))
        return Scenes(images, GroundTruth.of(boxes, labels))

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "drawn"}


def _mask(kind: int, size: int) -> Tensor:
    """[size, size] 0 or 1."""
    place = (torch.arange(size) + 0.5) / size - 0.5
    y, x = place[:, None], place[None, :]
    masks = (torch.ones(size, size).bool(), x**2 + y**2 <= 0.25, (x.abs() < 0.17) | (y.abs() < 0.17))
    return masks[kind].float()
