"""The networks of SPAIR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(nn.Module):
    """Convolutions over the padded image: 4x4 ones of strides stride / 4, 2 and 2, then 1x1 ones.

    [n, channels, height, width] -> [n, features, rows, columns]. The image is padded with black so that what
    a cell sees is centred on it; where `stride` does not divide the image, the last cells reach beyond it.
    """

    def __init__(self, channels: int, width: int, features: int, stride: int, image: tuple[int, int]) -> None:
        """`image`: its height and width."""
        super().__init__()
        strides = (stride // 4, 2, 2)
        layers: list[nn.Module] = []
        for before, step in zip((channels, width, width), strides, strict=True):
            layers += [nn.Conv2d(before, width, 4, step), nn.ReLU(inplace=True)]
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, features, 1))
        self.layers.to(memory_format=torch.channels_last)  # faster; a cell's features lie side by side
        field = 1 + 3 * (1 + strides[0] + 2 * strides[0])  # pixels that a cell sees
        self.grid = (-(-image[0] // stride), -(-image[1] // stride))
        before = (field - stride) // 2
        self.padding: list[int] = []
        for cells, side in zip(self.grid[::-1], image[::-1], strict=True):
            self.padding += [before, field + (cells - 1) * stride - side - before]

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, self.padding).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.layers(padded)
        return features


def perceptron(inputs: int, hidden: tuple[int, ...], out: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU between its layers. [..., inputs] -> [..., out]."""
    parts: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), hidden, strict=False):
        parts += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear((inputs, *hidden)[-1], out))
