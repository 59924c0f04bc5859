"""Connected components of ink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objbench.detector import Detections, Detector
from objbench.options import option
from objbench.scenes import Scenes, SceneShape


@dataclass(frozen=True)
class BlobsConfig:
    """Options of the components."""

    ink: float = option(
        0.2, "a pixel that differs by more than this from the background is ink", low=0, high=1
    )
    background: str = option(
        "median", "colour of the background: the median of the training images, or black",
        choices=("median", "black"),
    )  # fmt: skip
    pixels: int = option(4, "fewest pixels of a component", low=1)
    most: int = option(100, "most detections in an image, the larger ones first", low=1)
    glimpse: int = option(8, "side in pixels of the what-latent, a component's box resampled", low=1)


class Blobs(Detector):
    """One detection a connected component of ink (8 neighbours); nothing is trained but the background's colour.

    Touching objects are one detection. The what-latent is the content of the box at a few pixels.
    """

    Config = BlobsConfig
    config: BlobsConfig

    def __init__(self, config: BlobsConfig, shape: SceneShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("background", torch.zeros(shape.channels))

    def fit(self, scenes: Scenes) -> None:
        """The median of each channel over all pixels of the images; of no image, black."""
        if self.config.background == "median" and len(scenes):
            channels = scenes.images.transpose(0, 1).flatten(1)
            self.get_buffer("background").copy_(channels.median(1).values)

    def detect(self, images: Tensor) -> Detections:
        """The larger a component, the higher its score: the share of its pixels in those of it and 4 more."""
        from scipy import ndimage

        apart = (images - self.get_buffer("background")[:, None, None]).abs().amax(1) > self.config.ink
        image: list[int] = []
        boxes: list[list[float]] = []
        scores: list[float] = []
        for i, ink in enumerate(apart.cpu().numpy()):
            labelled, count = ndimage.label(ink, structure=np.ones((3, 3)))
            sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
            places: list[Any] = ndimage.find_objects(labelled)
            for j in np.argsort(-sizes, kind="stable")[: self.config.most]:
                if sizes[j] < self.config.pixels:
                    break
                rows, columns = places[j]
                image.append(i)
                boxes.append([columns.start, rows.start, columns.stop, rows.stop])
                scores.append(sizes[j] / (sizes[j] + 4))
        found = torch.tensor(boxes, dtype=torch.float32, device=images.device).reshape(-1, 4)
        where = torch.tensor(image, dtype=torch.int64, device=images.device)
        return Detections(
            len(images), where, found, torch.tensor(scores, dtype=torch.float32, device=images.device),
            what=self.what(images, where, found),
        )  # fmt: skip

    def what(self, images: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        """[m, channels * glimpse * glimpse]: the content of each box."""
        from objbench.spatial import crop

        parts = [
            crop(images[image[some]], boxes[some, None], self.config.glimpse).flatten(1)
            for some in torch.arange(len(boxes), device=images.device).split(1000)
        ]
        values = images.shape[1] * self.config.glimpse**2
        return torch.cat(parts) if len(boxes) else images.new_zeros(0, values)
