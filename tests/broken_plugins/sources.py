"""A sound data set, and one for each check of the kit that breaks what the check looks for."""

import os
from dataclasses import dataclass, replace

import torch

from objbench import DataSpec, hookimpl
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource


@dataclass(frozen=True)
class Config:
    """Nothing to tell it."""


class Sound(SceneSource):
    """One square of 8x8 pixels on noise."""

    Config, classes, shape = Config, ("square",), SceneShape(1, 32, 32)

    def __init__(self, config, seed):
        self.seed = seed

    def size(self, split):
        return None

    def scenes(self, split, indices):
        images, boxes = [], []
        for index in indices.tolist():
            generator = torch.Generator().manual_seed(1000 * index + 10 * self.seed + len(split))
            x, y = torch.randint(24, (2,), generator=generator).tolist()
            image = 0.1 * torch.rand(self.shape, generator=generator)
            image[:, y : y + 8, x : x + 8] = 1
            images.append(image)
            boxes.append(torch.tensor([[x, y, x + 8, y + 8]]))
        return Scenes(torch.stack(images), GroundTruth.of(boxes, [torch.zeros(1)] * len(boxes)))

    def fingerprint(self):
        return {"source": "drawn"}


class Settings(Sound):
    @classmethod
    def settings(cls, protocol):
        return {"size": 128}


class Images(Sound):
    def scenes(self, split, indices):
        scenes = super().scenes(split, indices)
        return replace(scenes, images=255 * scenes.images)


class Truth(Sound):
    def scenes(self, split, indices):
        scenes = super().scenes(split, indices)
        return replace(scenes, truth=replace(scenes.truth, boxes=scenes.truth.boxes[:, [0, 1, 1, 0]]))


class Repeatable(Sound):
    def scenes(self, split, indices):
        scenes = super().scenes(split, indices)
        return replace(scenes, images=(scenes.images + 0.1 * torch.rand(scenes.images.shape)).clamp(0, 1))


class Batch(Sound):
    def scenes(self, split, indices):
        scenes = super().scenes(split, indices)
        return replace(scenes, images=scenes.images / (1 + torch.arange(len(indices)))[:, None, None, None])


class Seed(Sound):
    def __init__(self, config, seed):
        super().__init__(config, 0)


class Splits(Sound):
    def scenes(self, split, indices):
        return super().scenes("train", indices)


class Size(Sound):
    def size(self, split):
        return 0.8


class Fingerprint(Sound):
    def fingerprint(self):
        return {"source": [os.path.abspath(__file__)]}


BROKEN = {
    "settings": Settings,
    "images": Images,
    "truth": Truth,
    "repeatable": Repeatable,
    "batch": Batch,
    "seed": Seed,
    "splits": Splits,
    "size": Size,
    "fingerprint": Fingerprint,
}
"""The check that each breaks."""


@hookimpl
def objbench_data():
    broken = [DataSpec(f"bad-{name}", "broken", f"sources:{cls.__name__}") for name, cls in BROKEN.items()]
    return [DataSpec("sound", "breaks nothing", "sources:Sound"), *broken]
