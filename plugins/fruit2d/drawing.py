"""Draws scenes of cut fruits: discs that are turned, placed to a fraction of a pixel, and antialiased."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from objbench_plugins.fruit2d.states import DIAMETERS, FIELD, PLACES, TURN, States
from objbench_plugins.fruit2d.textures import TEXELS, textures

SAMPLES = 4
"""Samples along each side of a pixel."""
BACKGROUNDS = {"black": (0, 0, 0), "cream": (251, 231, 157)}


def boxes(states: States, size: int) -> NDArray[np.float64]:
    """[m, 4] xyxy in pixels, of every fruit: the square about its disc, as far as the image goes."""
    x, y, radius = _discs(states, slice(None), size)
    return np.stack([x - radius, y - radius, x + radius, y + radius], axis=1).clip(0, size)


def draw(states: States, scene: int, size: int, background: str) -> NDArray[np.uint8]:
    """[3, size, size] one scene. size: side of the image in pixels."""
    fine = size * SAMPLES
    canvas = np.full((fine, fine), _packed(np.array(BACKGROUNDS[background], np.uint8)))
    fruits = slice(*states.starts[scene : scene + 2])
    turns, kinds = states.angle[fruits] * (math.tau / TURN), states.fruit[fruits]
    discs = zip(*_discs(states, fruits, fine).tolist(), turns.tolist(), kinds.tolist(), strict=True)
    for x, y, radius, turn, kind in discs:
        left, right = max(0, math.floor(x - radius)), min(fine, math.ceil(x + radius))
        top, bottom = max(0, math.floor(y - radius)), min(fine, math.ceil(y + radius))
        dx = np.arange(left, right, dtype=np.float32) + (0.5 - x)
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - y)
        inside = dx * dx + dy * dy < radius * radius
        # Each sample's place in the texture, in the frame that turns with the fruit; a hair inside its edge,
        # so that no rounding leads outside.
        scale, middle = (TEXELS - 0.01) / (2 * radius), TEXELS / 2
        along, across = scale * math.cos(turn), scale * math.sin(turn)
        u = (middle + along * dx) + across * dy
        v = (middle - across * dx) + along * dy
        texel = v.astype(np.int32) * TEXELS + u.astype(np.int32)
        canvas[top:bottom, left:right][inside] = _texels()[kind][texel[inside]]
    return _averaged(canvas.view(np.uint8), size)


def _discs(states: States, fruits: slice, size: int) -> NDArray[np.float64]:
    """[3, k] centre x and y, and radius, in pixels of an image of that size."""
    x, y = states.x[fruits] / PLACES, states.y[fruits] / PLACES
    return np.stack([x, y, DIAMETERS[states.fruit[fruits]] / 2]) * (size / FIELD)


def _averaged(samples: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[3, size, size] the mean over each pixel of samples [fine, 4 * fine], four bytes a sample."""
    rows = sum(samples[i::SAMPLES].astype(np.uint16) for i in range(SAMPLES))
    rows = rows.reshape(size, size, SAMPLES, 4)
    total = sum(rows[:, :, i] for i in range(SAMPLES))[..., :3]
    return np.ascontiguousarray(((total + SAMPLES**2 // 2) // SAMPLES**2).astype(np.uint8).transpose(2, 0, 1))


def _packed(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """[..., 3] uint8 as [...] uint32, one word a sample, which is faster to look up than three bytes."""
    padded = np.concatenate([rgb, np.zeros_like(rgb[..., :1])], axis=-1)
    return padded.view(np.uint32)[..., 0]


@lru_cache(maxsize=1)
def _texels() -> NDArray[np.uint32]:
    """[9, TEXELS * TEXELS] the textures, packed."""
    return _packed(textures()).reshape(len(DIAMETERS), -1)
