"""A sound detector, and one for each check of the kit that breaks what the check looks for."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from objbench import ModelSpec, hookimpl
from objbench.detector import Detections, Detector, DetectorConfig
from objbench.masks import pack
from objbench.options import option

SIDE = 8


@dataclass(frozen=True)
class Config(DetectorConfig):
    steps: int = option(40, "training steps", low=1)
    lr: float = option(0.02, "Adam's learning rate", above=0)


class Sound(Detector):
    """Each cell of 8x8 pixels is encoded and decoded; how bright it comes out is its score."""

    Config = Config

    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.encode = nn.Conv2d(shape.channels, 16, SIDE, stride=SIDE)
        self.decode = nn.ConvTranspose2d(16, shape.channels, SIDE, stride=SIDE)

    def training_step(self, images, step):
        return {"error": (self.decode(self.encode(images)) - images).square().mean()}

    def detect(self, images):
        scores = nn.functional.avg_pool2d(self.decode(self.encode(images)).mean(1), SIDE).clamp(0, 1)
        rows, columns = scores.shape[1:]
        place = torch.arange(rows * columns, device=images.device)
        corner = SIDE * torch.stack([place % columns, place // columns], 1)
        boxes = torch.cat([corner, corner + SIDE], 1).expand(len(images), -1, -1)
        return Detections.from_padded(boxes, scores.flatten(1), (scores.flatten(1) > 0.6).long())


class Settings(Sound):
    @classmethod
    def settings(cls, protocol, data):
        return {"stepz": 3} if protocol == "paper" else {}


class Loss(Sound):
    def training_step(self, images, step):
        return {"error": super().training_step(images, step)["error"], "log": (images.mean() - 2).log()}


class Gradients(Sound):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.forgotten = nn.Linear(3, 3)


class Optimizers(Sound):
    def optimizers(self):
        return [torch.optim.Adam(self.encode.parameters(), lr=self.config.lr)]


class Repeatable(Sound):
    own = torch.Generator().manual_seed(0)  # of its own, so no seed reaches it

    def training_step(self, images, step):
        noise = torch.rand(images.shape, generator=self.own)
        return (self.decode(self.encode(images + noise)) - images).square().mean()


class Learns(Sound):
    def training_step(self, images, step):
        return 1 + 1e-3 * super().training_step(images, step)["error"]


class DetectionsBroken(Sound):
    def detect(self, images):
        found = super().detect(images)
        return replace(found, scores=100 * found.scores)


class Inside(Sound):
    def detect(self, images):
        found = super().detect(images)
        return replace(found, boxes=found.boxes + 2)


class Masks(Sound):
    """Its masks are of the left half of each box."""

    def detect(self, images):
        found = super().detect(images)
        place = torch.arange(images.shape[2], device=images.device) + 0.5
        x0, y0, x1, y1 = found.boxes.T[..., None]
        rows, columns = (y0 < place) & (place < y1), (x0 < place) & (place < (x0 + x1) / 2)
        return replace(found, masks=pack(rows[:, :, None] & columns[:, None]))


class Eval(Sound):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.register_buffer("looks", torch.zeros(()))

    def detect(self, images):
        self.looks += 1
        return super().detect(images)


class Batch(Sound):
    def detect(self, images):
        return super().detect(images - images.mean())


class Channels(Sound):
    def training_step(self, images, step):
        return super().training_step(images[:, :1] if len(images) > 1 else images.squeeze(), step)


class Empty(Sound):
    def training_step(self, images, step):
        return super().training_step(images / images.amax(), step)


class Dead(Sound):
    """The gain is forgotten: it stands in the loss, times nothing."""

    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.gain = nn.Parameter(torch.ones(()))

    def training_step(self, images, step):
        return super().training_step(images, step) | {"gain": 0 * self.gain}


class Late(Sound):
    """Its gain gets no gradient while its bias is 0, which learning ends: that is right."""

    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.gain, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def training_step(self, images, step):
        error = (self.decode(self.encode(images)) + self.gain * self.bias - images).square().mean()
        return {"error": error}


class State(Sound):
    def training_step(self, images, step):
        self.shift = images.mean()
        return super().training_step(images, step)

    def detect(self, images):
        found = super().detect(images)
        return replace(found, scores=(found.scores + getattr(self, "shift", 0)).clamp(0, 1))


class Resume(Sound):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.seen = 0

    def training_step(self, images, step):
        self.seen += 1
        return super().training_step(images / self.seen, step)


class Capture(Sound):
    capturable = True

    def training_step(self, images, step):
        return super().training_step(images * 0.9**step, step)


BROKEN = {
    "settings": Settings,
    "loss": Loss,
    "gradients": Gradients,
    "optimizers": Optimizers,
    "repeatable": Repeatable,
    "learns": Learns,
    "detections": DetectionsBroken,
    "inside": Inside,
    "masks": Masks,
    "eval": Eval,
    "batch": Batch,
    "channels": Channels,
    "empty": Empty,
    "dead": Dead,
    "state": State,
    "resume": Resume,
    "capture": Capture,
}
"""The check that each breaks."""


@hookimpl
def objbench_models():
    broken = [ModelSpec(f"bad-{name}", "broken", f"detectors:{cls.__name__}") for name, cls in BROKEN.items()]
    late = ModelSpec("late", "breaks nothing", "detectors:Late")
    return [ModelSpec("sound", "breaks nothing", "detectors:Sound"), late, *broken]
