"""Encoder and decoder of Slot Attention (Locatello et al. 2020, Appendix E.3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACE = 0.6
"""What the encoder's map of positions is multiplied by where features start as colours and places."""
BEYOND = 3.0
"""A ReLU between biases of BEYOND and -BEYOND passes normalised values down to -BEYOND as they are."""


def started(module: nn.Module) -> None:
    """Starts weights so that signals keep their size: He et al. 2015 before a ReLU, Glorot and Bengio 2010 elsewhere.

    With torch's own weights, features of an image are 40 times smaller than the positions that are added to them.
    """
    before_relu = {
        id(layer)
        for part in module.modules()
        if isinstance(part, nn.Sequential)
        for layer, after in zip(part, list(part)[1:], strict=False)
        if isinstance(after, nn.ReLU)
    }
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            gain = 2**0.5 if id(part) in before_relu else 1.0
            nn.init.xavier_uniform_(part.weight, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.GRUCell):
            for kernel, recurrent in zip(part.weight_ih.chunk(3), part.weight_hh.chunk(3), strict=True):
                nn.init.xavier_uniform_(kernel)
                nn.init.orthogonal_(recurrent)
            nn.init.zeros_(part.bias_ih)
            nn.init.zeros_(part.bias_hh)


@torch.no_grad()
def pass_colours(encoder: Encoder, channels: int) -> None:
    """Starts an encoder so that its features hold the colours of their pixels beside what it makes of them.

    The first 2 C channels of each layer are the positive and the negative part of the colours in -1..1, in so far as
    there are so many channels. The last layer has the others at a tenth, positions are added at PLACE, and the network
    for each pixel changes nothing: features that are alike are then pixels of one colour near each other.
    """
    convolutions = [layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    for depth, layer in enumerate(convolutions):
        for i in range(min(2 * channels, layer.out_channels)):
            layer.weight[i] = 0
            sign = 1 if depth or i < channels else -1
            layer.weight[i, i if depth else i % channels, 2, 2] = sign
    convolutions[-1].weight[2 * channels :] *= 0.1
    encoder.position.map.weight *= PLACE
    before, _, after = encoder.mlp
    assert isinstance(before, nn.Linear)
    assert isinstance(after, nn.Linear)
    for per_pixel, bias in ((before, BEYOND), (after, -BEYOND)):
        nn.init.eye_(per_pixel.weight)
        per_pixel.bias.fill_(bias)


class Position(nn.Module):
    """Adds a linear map of the four distances to the image's sides, each in 0..1, to a grid of features."""

    grid: Tensor

    def __init__(self, width: int, height_width: tuple[int, int]) -> None:
        super().__init__()
        self.map = nn.Linear(4, width)
        y, x = torch.meshgrid(*(torch.linspace(0, 1, side) for side in height_width), indexing="ij")
        self.register_buffer("grid", torch.stack([y, x, 1 - y, 1 - x], 2), persistent=False)  # [h, w, 4]

    def forward(self, features: Tensor, frame: Frame | None = None) -> Tensor:
        """[n, width, h, w] from the same. With a frame [n, 2], positions are relative to it, and their squares."""
        if frame is None:
            placed: Tensor = features + self.map(self.grid).permute(2, 0, 1)
            return placed
        centre, extent = (part[:, None, None] for part in frame)
        relative = ((self.grid[..., :2] - centre) / (2 * extent)).clamp(-FAR, FAR)  # [n, h, w, 2]
        placed = features + self.map(torch.cat([relative, relative.square()], 3)).permute(0, 3, 1, 2)
        return placed


SMALLEST = 0.03
"""The least extent of a slot, in image sides."""
FAR = 2.0
"""Relative positions are cut to -FAR..FAR; 1 is two standard deviations of a slot's pixels."""


class Frame(NamedTuple):
    """Where a slot is: centre and standard deviation of its pixels along y and x, in image sides, [..., 2] each."""

    centre: Tensor
    extent: Tensor


def frame_of(attention: Tensor, grid: Tensor) -> Frame:
    """Of slots with attention [n, N, K] to features at positions [N, 2]: [n, K, 2] each (Biza et al. 2023, Section 3).

    A feature's weight is its share of all that the slot attends to (Eq. 2 of Locatello et al.).
    """
    weights = attention / attention.sum(1, keepdim=True)
    centre = weights.mT @ grid
    variance = weights.mT @ grid.square() - centre.square()
    return Frame(centre, variance.clamp(min=SMALLEST**2).sqrt())


class Encoder(nn.Module):
    """Four layers of 5x5, positions, and a network for each pixel: images [n, C, h, w] to features [n, N, width]."""

    def __init__(self, channels: int, side: tuple[int, int], width: int, halvings: int) -> None:
        super().__init__()
        before, layers = channels, list[nn.Module]()
        for i in range(4):
            stride = 2 if i < halvings else 1
            layers += [nn.Conv2d(before, width, 5, stride, padding=2), nn.ReLU()]
            side = (-(-side[0] // stride), -(-side[1] // stride))
            before = width
        self.convolutions = nn.Sequential(*layers)
        self.position = Position(width, side)
        self.norm = nn.LayerNorm(width, eps=1e-3)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, images: Tensor) -> Tensor:
        features = self.position(self.convolutions(images)).flatten(2).mT  # [n, N, width]
        per_pixel: Tensor = self.mlp(self.norm(features))
        return per_pixel


class Decoder(nn.Module):
    """Spatial broadcast (Watters et al. 2019): slots [m, D] to colours and a mask's logit, [m, C + 1, h, w]."""

    def __init__(
        self, slot_size: int, channels: int, side: tuple[int, int], width: int, grid: int, coarse: int, even: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid, self.side = grid, side
        self.position = Position(slot_size, (grid, grid))
        before, layers = slot_size, list[nn.Module]()
        doublings = max(0, math.ceil(math.log2(max(side) / coarse / grid)))
        for i in range(doublings + even):
            doubles = i < doublings
            stride = 2 if doubles else 1
            layers += [nn.ConvTranspose2d(before, width, 5, stride, 2, stride - 1), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(before, channels + 1, 3, padding=1))

    def forward(self, slots: Tensor, frame: Frame | None = None) -> Tensor:
        broadcast = slots[:, :, None, None].expand(-1, -1, self.grid, self.grid)
        painted: Tensor = self.layers(self.position(broadcast, frame))
        if painted.shape[2:] != self.side:
            painted = F.interpolate(painted, self.side, mode="bilinear", align_corners=False)
        return painted
