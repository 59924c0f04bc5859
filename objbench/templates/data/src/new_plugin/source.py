"""Squares and discs at random places, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split


@dataclass(frozen=True)
class NewPluginConfig:
    """What `-o new-plugin.KEY=VALUE` sets."""

    side: int = option(64, "height and width in pixels", low=32)
    most: int = option(4, "objects an image, at most", low=1)


class NewPlugin(SceneSource):
    """One to `most` squares and discs of 8 to 16 pixels on black, one channel."""

    Config = NewPluginConfig
    classes = ("square", "disc")

    def __init__(self, config: NewPluginConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.shape = SceneShape(1, config.side, config.side)

    def size(self, split: Split) -> int | None:
        """None: drawn without end."""
        return None

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n]; each depends on (config, split, seed, its index) alone."""
        images = torch.zeros(len(indices), *self.shape)
        boxes, labels = [], []
        for image, index in zip(images, indices.tolist(), strict=True):
            rng = np.random.default_rng([len(split), self.seed, index])
            kinds = rng.integers(0, 2, rng.integers(1, self.config.most + 1))
            sides = rng.integers(8, 17, len(kinds))
            corners = rng.integers(0, self.config.side - sides[:, None] + 1, (len(kinds), 2))
            for kind, side, (x, y) in zip(kinds, sides, corners, strict=True):
                place = (torch.arange(side) + 0.5) / side - 0.5
                disc = place[:, None] ** 2 + place**2 <= 0.25
                part = image[0, y : y + side, x : x + side]
                part.copy_(
                    torch.maximum(part, rng.uniform(0.5, 1) * (disc if kind else torch.ones_like(disc)))
                )
            boxes.append(torch.from_numpy(np.concatenate([corners, corners + sides[:, None]], 1)))
            labels.append(torch.from_numpy(kinds))
        return Scenes(images, GroundTruth.of(boxes, labels))

    def fingerprint(self) -> dict[str, Any]:
        """Raise `version` when the same config comes to give other scenes."""
        return {"source": "drawn", "version": 1}
