"""How a picture of any size becomes a square scene, and its boxes with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Placing:
    """Where a picture is in its scene: it is resized to `shown`, and its top-left corner comes to `corner`."""

    picture: tuple[int, int]
    """Width and height of the picture in its file."""
    shown: tuple[int, int]
    """Width and height of the picture in the scene."""
    corner: tuple[int, int]
    """x and y in the scene; negative where the picture is cropped."""
    size: int
    """Height and width of the scene."""

    def of_pixels(self, pixels: NDArray[np.uint8], background: tuple[int, ...]) -> NDArray[np.uint8]:
        """`[size, size, channels]` from `[height, width, channels]`; antialiased when it becomes smaller.

        background: a value for each channel, where the picture does not reach.
        """
        from PIL import Image

        channels = pixels.shape[2]
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        if self.shown != self.picture:
            image = image.resize(self.shown, Image.Resampling.BILINEAR)  # pillow's averages when it shrinks
        scene = Image.new(image.mode, (self.size, self.size), background[0] if channels == 1 else background)
        scene.paste(image, self.corner)
        return np.asarray(scene, dtype=np.uint8).reshape(self.size, self.size, channels)

    def of_boxes(self, boxes: Tensor) -> Tensor:
        """`[k, 4]` float64 xyxy in the scene, cut at its edges, from boxes in the file's pixels."""
        scale = torch.tensor([self.shown[0] / self.picture[0], self.shown[1] / self.picture[1]] * 2)
        corner = torch.tensor([*self.corner, *self.corner])
        return (boxes.double() * scale.double() + corner).clamp(0, self.size)


def placing_of(picture: tuple[int, int], size: int, fit: str) -> Placing:
    """fit: the whole picture in the middle; crop: its largest square in the middle; stretch: all of the scene."""
    width, height = picture
    if fit == "stretch":
        return Placing(picture, (size, size), (0, 0), size)
    scale = size / (max(picture) if fit == "fit" else min(picture))
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    corner = ((size - shown[0]) // 2, (size - shown[1]) // 2)
    return Placing(picture, shown, corner, size)
