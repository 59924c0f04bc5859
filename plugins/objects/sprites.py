"""sprites-sim: a stand-in for Multi-dSprites that needs no download. Its figures are not figures on that set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objbench.masks import boxes_of, pack
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split

Floats = NDArray[np.float64]
VALUES = 8
"""Random numbers of a sprite: shape, scale, angle, x, y, red, green, blue."""
LEAST = 4
"""Pixels that must be visible of a sprite; one that shows less is not drawn."""


@dataclass(frozen=True)
class SpritesConfig:
    """Options of sprites-sim; the defaults are as in Multi-dSprites, coloured on grey."""

    size: int = option(64, "side of a scene in pixels; sprites are in proportion", low=16, high=512)
    least: int = option(2, "fewest sprites in a scene", low=0, high=20)
    most: int = option(5, "most sprites in a scene", low=1, high=20)

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"least={self.least} is more than most={self.most}")


class SpritesSim(SceneSource):
    """Squares, ellipses and hearts in any colour on uniform grey, which may cover each other.

    After Multi-dSprites (Kabra et al. 2019, "colored on grayscale"; the sprites of Matthey et al. 2017): 64x64 pixels,
    up to five sprites of scale .5 to 1, of any angle, anywhere in the image, of any colour, without antialiasing.
    Masks are the pixels that can be seen, and boxes are around these. A sprite of which fewer than LEAST pixels can
    be seen is left out. Drawn by formulas of our own, without end; a scene depends on (split, seed, index) alone.
    """

    Config = SpritesConfig
    classes = ("square", "ellipse", "heart")

    def __init__(self, config: SpritesConfig, seed: int) -> None:
        """Draws nothing yet."""
        self.shape = SceneShape(3, config.size, config.size)
        self._config, self._seed = config, seed

    def size(self, split: Split) -> None:
        """Without end."""

    def fingerprint(self) -> dict[str, Any]:
        """Drawn; the code is in the key."""
        return {"source": "drawn"}

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, on the device that `indices` are on."""
        c, n = self._config, len(indices)
        values, counts, grey = self._draw(split, indices.tolist())
        inside = torch.from_numpy(_inside(values, c.size))  # [n, most, size, size]
        inside &= (torch.arange(c.most) < torch.from_numpy(counts)[:, None])[:, :, None, None]
        left = torch.ones(n, c.size, c.size, dtype=torch.bool)
        images = torch.from_numpy(grey).float()[:, None, None, None].repeat(1, 3, c.size, c.size)
        colours = torch.from_numpy(values[:, :, 5:8]).float()
        visible = torch.zeros_like(inside)
        for k in range(c.most):  # the first is in front
            seen = inside[:, k] & left
            seen &= (seen.sum((1, 2)) >= LEAST)[:, None, None]
            visible[:, k], left = seen, left & ~seen
            images = torch.where(seen[:, None], colours[:, k, :, None, None], images)
        image, slot = torch.nonzero(visible.flatten(2).any(2), as_tuple=True)
        masks = pack(visible[image, slot])
        shapes = torch.from_numpy(values[:, :, 0] * 3).long()[image, slot]
        parts = (part.to(indices.device) for part in (image, boxes_of(masks), shapes, masks))
        return Scenes(images.to(indices.device), GroundTruth(n, *parts))

    def _draw(self, split: Split, indices: list[int]) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Of each scene: uniform numbers [n, most, VALUES], how many sprites [n], and its background's grey [n]."""
        c = self._config
        values = np.empty((len(indices), c.most, VALUES))
        counts, grey = np.empty(len(indices), np.int64), np.empty(len(indices))
        for i, index in enumerate(indices):
            dice = np.random.default_rng([len(split), self._seed, index])
            counts[i], grey[i] = dice.integers(c.least, c.most + 1), dice.random()
            values[i] = dice.random((c.most, VALUES))
        return values, counts, grey


def _inside(values: Floats, size: int) -> NDArray[np.bool_]:
    """Which pixels are in a sprite, [n, k, size, size], from its uniform numbers [n, k, VALUES].

    Coordinates (u, v) are turned by the angle, v upwards, in units in which the sprite is about 2 wide.
    """
    shape, scale, angle, x, y = (values[:, :, i, None, None].astype(np.float32) for i in range(5))
    radius = size * (0.5 + 0.5 * scale) * 0.18
    place = np.arange(size, dtype=np.float32) + np.float32(0.5)
    dx, dy = place - size * (0.1 + 0.8 * x), size * (0.1 + 0.8 * y) - place[:, None]
    cos, sin = (turn(2 * math.pi * angle) / radius for turn in (np.cos, np.sin))
    u, v = cos * dx - sin * dy, sin * dx + cos * dy
    square = np.maximum(np.abs(u), np.abs(v)) <= 0.8
    ellipse = u * u + (v * v) / 0.36 <= 1
    u, v = 1.15 * u, 1.15 * v + 0.1
    u *= u
    beyond = u + v * v - 1
    heart = beyond * beyond * beyond <= u * v * v * v
    kind = (shape * 3).astype(np.int64)
    inside: NDArray[np.bool_] = np.where(kind == 0, square, np.where(kind == 1, ellipse, heart))
    return inside
