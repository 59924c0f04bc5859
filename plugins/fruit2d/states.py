"""Settled states of the merge game: which fruit lies where, in every scene that is shipped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FRUITS = ("grape", "cherry", "tangerine", "lemon", "kiwi", "tomato", "peach", "pineapple", "coconut")
DIAMETERS = np.array([52, 80, 108, 119, 153, 183, 193, 258, 308], np.float64)
"""In units of the game, in the order of FRUITS: the sprite sides of the 2021 browser game."""
FIELD = 720
"""Width and height of the field, in the same units; it becomes the whole image."""
SCENES = {"train": 4000, "validation": 500, "test": 1000}
"""Scenes of each split, which follow each other in this order. No game reaches into two splits."""

PLACES = 16
"""Steps of a stored coordinate to a unit: 1/16 unit is 0.011 px of a 128 px image."""
TURN = 256
"""Steps of a stored angle to a full turn."""

SHIPPED = Path(__file__).parent / "states.npz"


@dataclass(frozen=True)
class States:
    """n scenes with m fruits in all, scene by scene."""

    game: NDArray[np.uint16]  # [n] which game the scene was taken from
    count: NDArray[np.uint8]  # [n] fruits in the scene
    x: NDArray[np.uint16]  # [m] centre, to the right, in 1/PLACES units
    y: NDArray[np.uint16]  # [m] centre, down from the top, in 1/PLACES units
    angle: NDArray[np.uint8]  # [m] clockwise, in 1/TURN turns
    fruit: NDArray[np.uint8]  # [m] index into FRUITS

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """[n + 1] scene i holds the fruits starts[i] to starts[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.count, dtype=np.int64)])

    def save(self, path: Path) -> None:
        """Writes them as a compressed .npz file."""
        np.savez_compressed(path, allow_pickle=False, **{f.name: getattr(self, f.name) for f in fields(self)})

    def checksum(self) -> str:
        """SHA-256 of the values, whatever the file's compression."""
        digest = hashlib.sha256()
        for field in fields(self):
            digest.update(getattr(self, field.name).tobytes())
        return digest.hexdigest()


@lru_cache(maxsize=1)
def shipped() -> States:
    """The states that objbench brings along. Made by `python -m objbench_plugins.fruit2d.physics`."""
    return load(SHIPPED)


def load(path: Path) -> States:
    """What `States.save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return States(**{field.name: file[field.name] for field in fields(States)})
