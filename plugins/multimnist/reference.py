"""Makes one scene at a time, digit by digit: tests compare `scatter.Scatter` with it, benchmarks time both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from objbench.scenes import SceneShape, Split
from objbench_plugins.multimnist.digits import INK, SIDE, SPLITS, Bytes, Digits
from objbench_plugins.multimnist.scatter import CANDIDATES


def plain_scene(
    digits: Digits,
    shape: SceneShape,
    *,
    count: tuple[int, int],
    min_distance: int,
    tight: bool,
    seed: int,
    split: Split,
    index: int,
) -> tuple[Bytes, list[tuple[int, int, int, int]], list[int]]:
    """An image [height, width] uint8, the xyxy boxes of its digits and their labels."""
    _, height, width = shape
    fewest, most = count
    words = list(_words(seed, split, index, 1 + most + most * CANDIDATES))
    tries = CANDIDATES if min_distance else 1
    present = fewest + _below(most - fewest + 1, words[0] >> 32)
    image = np.zeros((height, width), np.int64)
    corners: list[tuple[int, int]] = []
    boxes, labels = [], []
    for j in range(present):
        chosen = digits.parts[split][_below(len(digits.parts[split]), words[1 + j] >> 32)]
        glyph = digits.images[chosen]
        farthest = -1
        for word in words[1 + most + j * tries :][:tries]:
            x_try, y_try = _below(width - SIDE, word >> 32), _below(height - SIDE, word)
            apart = min((max(abs(x_try - a), abs(y_try - b)) for a, b in corners), default=min_distance)
            if apart > farthest:
                farthest, x, y = apart, x_try, y_try
            if apart >= min_distance:
                break
        corners.append((x, y))
        image[y : y + SIDE, x : x + SIDE] += glyph
        rows, columns = np.nonzero(glyph > INK)
        if tight and len(rows):
            boxes.append((x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1))
        else:
            boxes.append((x, y, x + SIDE, y + SIDE))
        labels.append(int(digits.labels[chosen]))
    return image.clip(max=255).astype(np.uint8), boxes, labels


def _words(seed: int, split: Split, index: int, count: int) -> Iterator[int]:
    gamma = 0x9E3779B97F4A7C15
    stream = _mix(_mix(seed) + SPLITS.index(split))
    scene = _mix(stream + index * gamma)
    return (_mix(scene + j * gamma) for j in range(1, count + 1))


def _mix(word: int) -> int:
    word %= 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


def _below(limit: int, word: int) -> int:
    return (word & 0xFFFFFFFF) * limit >> 32
