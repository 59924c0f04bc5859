"""What nine cut fruits look like, as formulas over a disc of radius 1. Our own; no picture is copied."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from objbench_plugins.fruit2d.states import FRUITS

TEXELS = 192
"""Side of a texture; the disc touches all four sides."""

Floats = NDArray[np.float64]
Layer = tuple[Floats, str, float]
"""What lies inside (where the values are positive), its colour, and over what values its edge fades."""


@lru_cache(maxsize=1)
def textures() -> NDArray[np.uint8]:
    """[9, TEXELS, TEXELS, 3] RGB, in the order of FRUITS. The corners outside the disc are never used.

    Every rim's channel mean is above 0.25, so that trimming a box at brightness 0.2 does not shrink it.
    """
    fruits = _fruits()
    return np.stack([_painted(fruits[name]) for name in FRUITS])


def _painted(layers: list[Layer]) -> NDArray[np.uint8]:
    rgb = np.zeros((TEXELS, TEXELS, 3))
    for inside, colour, fade in layers:
        share = (inside / fade + 0.5).clip(0, 1)[..., None]
        rgb += share * (np.array(list(bytes.fromhex(colour))) - rgb)
    return np.round(rgb).astype(np.uint8)


def _fruits() -> dict[str, list[Layer]]:
    axis = (np.arange(TEXELS) + 0.5) / (TEXELS / 2) - 1
    x, y = np.meshgrid(axis, axis)
    r, turn = np.hypot(x, y), np.arctan2(y, x)

    def disc(radius: float | Floats, colour: str, fade: float = 0.04) -> Layer:
        return radius - r, colour, fade

    def sector(n: int, phase: float = 0.0) -> Floats:
        """The angle from the middle of the nearest of n equal sectors."""
        return (turn - phase + math.pi / n) % (math.tau / n) - math.pi / n

    def segments(n: int, inner: float, outer: float, gap: float, colour: str) -> Layer:
        """n segments as of a citrus fruit, `gap` apart."""
        to_side = r * np.sin(math.pi / n - abs(sector(n))) - gap / 2
        return np.minimum(to_side, np.minimum(r - inner, outer - r)), colour, 0.04

    def spots(n: int, at: float, long: float, wide: float, colour: str, phase: float = 0.0) -> Layer:
        """n ellipses around the middle, at radius `at`, their long axes outwards."""
        angle = sector(n, phase)
        return 1 - np.hypot((r * np.cos(angle) - at) / long, r * np.sin(angle) / wide), colour, 0.4

    def fibres(n: int, inner: float, outer: float, colour: str) -> Layer:
        return np.minimum(np.cos(n * turn), 8 * np.minimum(r - inner, outer - r)), colour, 1.6

    return {
        "grape": [
            disc(2, "7a2fb0"),
            disc(0.84, "a868d8", 0.25),
            disc(0.45, "c79bea", 0.4),
            spots(2, 0.2, 0.17, 0.09, "5a3418"),
        ],
        "cherry": [
            disc(2, "a81040"),
            disc(0.86, "d81e58", 0.15),
            disc(0.5, "f06a90", 0.2),
            disc(0.36, "f4dcb4"),
            disc(0.2, "d8b080", 0.2),
        ],
        "tangerine": [disc(2, "ff7a00"), disc(0.88, "ffe0b0"), segments(9, 0.14, 0.83, 0.06, "ff9420")],
        "lemon": [
            disc(2, "f8e000"),
            disc(0.9, "fffce8"),
            segments(8, 0.12, 0.8, 0.08, "fff25c"),
            spots(8, 0.3, 0.07, 0.035, "d8c890", math.pi / 8),
        ],
        "kiwi": [
            disc(2, "86683c"),
            disc(0.93, "6cb424"),
            disc(0.6, "a4dc50", 0.5),
            fibres(32, 0.3, 0.85, "bcec78"),
            disc(0.27, "f4f6d4", 0.12),
            spots(18, 0.42, 0.085, 0.04, "1c1c10"),
        ],
        "tomato": [
            disc(2, "e42010"),
            disc(0.93, "ff5c40"),
            segments(5, 0.22, 0.78, 0.2, "c81808"),
            spots(5, 0.5, 0.11, 0.06, "ffe68c", 0.22),
            spots(5, 0.5, 0.11, 0.06, "ffe68c", -0.22),
            disc(0.14, "ffa890", 0.15),
        ],
        "peach": [
            disc(2, "ff8078"),
            disc(0.93, "ffc4a0", 0.1),
            disc(0.7, "ffdcb4", 0.3),
            disc(0.5 + 0.03 * np.cos(12 * turn), "e85858", 0.16),
            disc(0.36, "8c5030"),
            fibres(9, 0.06, 0.33, "b07848"),
        ],
        "pineapple": [
            disc(2, "a87020"),
            disc(0.93 + 0.05 * np.cos(14 * turn), "ffc828"),
            spots(14, 0.86, 0.05, 0.05, "b07818", math.pi / 14),
            fibres(28, 0.24, 0.8, "ffe070"),
            disc(0.24, "fff0a8", 0.06),
        ],
        "coconut": [
            disc(2, "7c5434"),
            disc(0.94 + 0.012 * np.cos(23 * turn), "946844"),
            disc(0.86, "ffffff"),
            disc(0.5, "d4e0e4", 0.1),
            disc(0.4, "bcccd2", 0.3),
        ],
    }
