"""fruit2d-sim: a stand-in for Fruit2D that can be made anywhere. Its figures are not figures on Fruit2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from objbench.options import option
from objbench.scenes import GroundTruth, SceneShape, Split
from objbench_plugins.fruit2d import drawing
from objbench_plugins.fruit2d.kept import Bytes, KeptScenes
from objbench_plugins.fruit2d.states import FRUITS, SCENES, shipped


@dataclass(frozen=True)
class Fruit2DSimConfig:
    """Options of fruit2d-sim."""

    size: int = option(128, "side of a scene in pixels; fruits are in proportion", low=32, high=512)
    background: str = option(
        "black", "black, as published; cream, as the game's own wall", choices=tuple(drawing.BACKGROUNDS)
    )


class Fruit2DSim(KeptScenes):
    """Scenes of a simulated merge game: nine kinds of cut fruit piled up in a box, on black.

    Fruits fall, and two equal ones that touch become one of the next kind. The kinds have the relative sizes
    of the first nine of the game that Fruit2D (paper, section 4.1) seems to be taken from: the largest is 5.9
    times as wide as the smallest. The play leaves about 30 times as many of the smallest. Drawn as textured
    discs of our own.

    The scenes are shipped as settled states: 4,000 to train, 500 to validate, 1,000 to test, the same on
    every machine and whatever the seed. No game reaches into two splits. Images are drawn once and kept. A
    true box is the square about the disc, to the fraction of a pixel.
    """

    Config = Fruit2DSimConfig
    classes = FRUITS
    name = "fruit2d-sim"

    @classmethod
    def settings(cls, protocol: str) -> dict[str, Any]:
        """The paper's scene is the default; the others are half as wide."""
        return {} if protocol == "paper" else {"size": 64}

    def __init__(self, config: Fruit2DSimConfig, seed: int) -> None:
        """Reads the states; draws nothing yet. The seed chooses nothing."""
        self._config = config
        self._states = shipped()
        self.shape = SceneShape(3, config.size, config.size)
        firsts = np.cumsum([0, *SCENES.values()]).tolist()
        self._first: dict[Split, int] = dict(zip(SCENES, firsts, strict=False))
        self.truth = {split: self._truth(split) for split in SCENES}

    def picture(self, split: Split, index: int) -> Bytes:
        """[3, size, size] one scene."""
        return drawing.draw(
            self._states, self._first[split] + index, self._config.size, self._config.background
        )

    def recipe(self) -> dict[str, Any]:
        """The states and the options."""
        return {"states": self._states.checksum(), "background": self._config.background}

    def fingerprint(self) -> dict[str, Any]:
        """How many scenes a split, and the checksum of all their states."""
        return {"scenes": SCENES, "states": self._states.checksum()}

    def _truth(self, split: Split) -> GroundTruth:
        scenes = slice(self._first[split], self._first[split] + SCENES[split])
        fruits = slice(self._states.starts[scenes.start], self._states.starts[scenes.stop])
        image = np.repeat(np.arange(SCENES[split]), self._states.count[scenes])
        boxes = drawing.boxes(self._states, self._config.size)[fruits]
        labels = self._states.fruit[fruits].astype(np.int64)
        return GroundTruth(
            SCENES[split], torch.from_numpy(image), torch.from_numpy(boxes).float(), torch.from_numpy(labels)
        )
