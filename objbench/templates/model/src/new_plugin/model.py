"""Finds connected bright pixels, and learns to describe what they look like with an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor, nn

from objbench.detector import Detections, Detector, DetectorConfig
from objbench.options import option
from objbench.scenes import SceneShape
from objbench.spatial import crop


@dataclass(frozen=True)
class NewPluginConfig(DetectorConfig):
    """What `-o new-plugin.KEY=VALUE` sets."""

    steps: int = option(5_000, "training steps (batches)", low=1)
    lr: float = option(1e-3, "Adam's learning rate", above=0)
    threshold: float = option(0.1, "brightness from which on a pixel belongs to an object", above=0, high=1)
    smallest: int = option(4, "an object's longer side, in pixels, is at least this", low=1)
    glimpse: int = option(14, "side in pixels that what a box holds is resampled to", low=2)
    what_dim: int = option(16, "dimension of the what-latent", low=1)


class NewPlugin(Detector):
    """Connected components for the boxes, an autoencoder for the what-latents."""

    Config = NewPluginConfig
    config: NewPluginConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """What differs from the defaults."""
        return {"steps": 400} if protocol == "demo" else {}

    def __init__(self, config: NewPluginConfig, shape: SceneShape) -> None:
        super().__init__(config, shape)
        pixels = shape.channels * config.glimpse**2
        self.encoder = nn.Sequential(nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, config.what_dim))
        self.decoder = nn.Sequential(nn.Linear(config.what_dim, 128), nn.ReLU(), nn.Linear(128, pixels))

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The squared error of what the decoder makes of each glimpse, an object on average."""
        glimpses = self.glimpses(images, *self.find(images))
        error = (self.decoder(self.encoder(glimpses)) - glimpses).square().sum()
        return {"reconstruction": error / max(1, len(glimpses))}

    def detect(self, images: Tensor) -> Detections:
        """A box around each component, and what the encoder says of it."""
        image, boxes = self.find(images)
        what = self.encoder(self.glimpses(images, image, boxes))
        return Detections(len(images), image, boxes, torch.ones_like(boxes[:, 0]), what=what)

    def find(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The image [m] and the box [m, 4] (xyxy in pixels) of each component that is large enough."""
        rows = []
        for n, bright in enumerate((images.amax(1) > self.config.threshold).cpu().numpy()):
            for y, x in ndimage.find_objects(ndimage.label(bright)[0]):
                if max(x.stop - x.start, y.stop - y.start) >= self.config.smallest:
                    rows.append([n, x.start, y.start, x.stop, y.stop])
        table = torch.tensor(rows, device=images.device).reshape(-1, 5)
        return table[:, 0].long(), table[:, 1:].float()

    def glimpses(self, images: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        """What a square around each box holds, [m, pixels]; a square keeps an object's proportions."""
        middle, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)
        squares = torch.cat([middle - side / 2, middle + side / 2], 1)
        return crop(images[image], squares[:, None], self.config.glimpse).flatten(1)
