"""Glimpses: cropped out of images, painted onto canvases.

Both resample bilinearly with zeros outside, pixel centres at half-integers (`align_corners=False`).

Painting never makes a canvas for each object. Along one axis, bilinear resampling is a product with a matrix of hat
functions, so an object's canvas is A_y G A_x^T, and the sum of all of an image's objects is one matrix product over
the stacked (object, glimpse row) axis: nothing of size objects x height x width exists, forward or backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objbench.spatial.parts import in_parts


def crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops the content of each box.

    images: [n, channels, height, width]; boxes: [n, k, 4] xyxy in pixels; size: the side g of a glimpse in pixels.
    Returns [n, k, channels, g, g]; differentiable in both. A box may reach outside the image, where it is black.
    """
    n, channels, height, width = images.shape
    k = boxes.shape[1]
    x0, y0, x1, y1 = boxes.unbind(-1)  # [n, k]
    step = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    xs = (x0[..., None] + (x1 - x0)[..., None] * step) * (2 / width) - 1  # [n, k, g]
    ys = (y0[..., None] + (y1 - y0)[..., None] * step) * (2 / height) - 1
    grid = torch.stack(
        [xs[:, :, None, :].expand(n, k, size, size), ys[:, :, :, None].expand(n, k, size, size)], -1
    )
    # All glimpses of an image are one tall grid, so that the image is not copied for each of them.
    tall = F.grid_sample(
        images, grid.reshape(n, k * size, size, 2), padding_mode="zeros", align_corners=False
    )  # [n, channels, k * g, g]
    return tall.reshape(n, channels, k, size, size).transpose(1, 2)


CACHED = 4_000_000
"""On a CPU, the number of intermediate floats (between the two products of `paint`) computed at once."""


class Painter:
    """Paints glimpses into boxes; the resampling weights of the boxes are computed once and used for every call."""

    def __init__(self, boxes: Tensor, glimpse: int, height: int, width: int) -> None:
        """boxes: [n, k, 4] xyxy in pixels, of positive size; glimpse: the side g of a glimpse; the canvas in pixels."""
        x0, y0, x1, y1 = boxes.unbind(-1)
        self.px = torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5
        self.py = torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5
        self.boxes, self.glimpse = boxes, glimpse
        self.along_y = hat(
            (self.py - y0[..., None]) * (glimpse / (y1 - y0))[..., None], glimpse
        )  # [n, k, height, g]
        self.along_x = hat(
            (self.px - x0[..., None]) * (glimpse / (x1 - x0))[..., None], glimpse
        )  # [n, k, width, g]

    def paint(self, glimpses: Tensor) -> Tensor:
        """The sum over objects of each glimpse painted into its box.

        glimpses: [n, k, channels, g, g]. Returns [n, channels, height, width]; differentiable in both.
        """
        _, k, channels, g, _ = glimpses.shape
        at_once = max(1, CACHED // (k * g * channels * len(self.px)))
        # A few images at a time: the intermediate result then fits a processor's cache and is not kept.
        return in_parts(_paint, (glimpses, self.along_y, self.along_x), at_once)

    def strongest(self, glimpses: Tensor) -> Tensor:
        """The largest value that any one object paints at each pixel.

        glimpses: [n, k, g, g], not negative. Returns [n, height, width]; differentiable in both. Which object is
        strongest is found without gradients, then its value alone is sampled again with them.
        """
        with torch.no_grad():
            winner = torch.stack(
                [  # image by image: one image's canvases fit a processor's cache
                    torch.bmm(torch.bmm(y, glimpse), x.transpose(1, 2)).max(0).indices  # faster than argmax
                    for y, glimpse, x in zip(self.along_y, glimpses, self.along_x, strict=True)
                ]
            )
        return self.sample(glimpses, winner)

    def sample(self, glimpses: Tensor, winner: Tensor) -> Tensor:
        """At each pixel, the value that one chosen object paints there.

        glimpses: [n, k, g, g]; winner: [n, height, width] int64, which of the k objects. Returns [n, height, width];
        differentiable in glimpses and boxes.
        """
        n, _, g, _ = glimpses.shape
        box = self.boxes.gather(1, winner.reshape(n, -1, 1).expand(-1, -1, 4)).reshape(*winner.shape, 4)
        x0, y0, x1, y1 = box.unbind(-1)  # [n, height, width]
        u = (self.px[None, None, :] - x0) * (
            g / (x1 - x0)
        ) - 0.5  # in glimpse pixels, 0 at the centre of the first
        v = (self.py[None, :, None] - y0) * (g / (y1 - y0)) - 0.5
        flat = glimpses.reshape(n, -1)
        value = torch.zeros_like(u)
        left, top = u.detach().floor(), v.detach().floor()
        for row in (top, top + 1):
            for column in (left, left + 1):
                weight = (1 - (u - column).abs()) * (1 - (v - row).abs())
                inside = (row >= 0) & (row < g) & (column >= 0) & (column < g)
                tap = (winner * g + row.long().clamp(0, g - 1)) * g + column.long().clamp(0, g - 1)
                value = value + torch.where(
                    inside, weight * flat.gather(1, tap.flatten(1)).reshape(u.shape), 0
                )
        return value


def _paint(glimpses: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """The sum of A_y G A_x^T over objects; shapes as in `Painter`."""
    n, k, channels, g, _ = glimpses.shape
    height, width = along_y.shape[2], along_x.shape[2]
    # Resample along x first, the channels side by side: [n, k * g, channels * width]
    rows = glimpses.transpose(2, 3).reshape(n * k, g * channels, g)
    rows = torch.bmm(rows, along_x.reshape(n * k, width, g).transpose(1, 2))
    rows = rows.reshape(n, k * g, channels * width)
    canvas = torch.bmm(along_y.transpose(1, 2).reshape(n, height, k * g), rows)
    return canvas.reshape(n, height, channels, width).transpose(1, 2)


def paint(glimpses: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """The sum over objects of each glimpse painted into its box; `Painter` does that for boxes used more than once.

    glimpses: [n, k, channels, g, g]; boxes: [n, k, 4] xyxy in pixels, of positive size, which may reach outside the
    canvas; height, width: of the canvas in pixels. Returns [n, channels, height, width], unbounded where boxes overlap;
    differentiable in both.
    """
    return Painter(boxes, glimpses.shape[-1], height, width).paint(glimpses)


def canvases(glimpses: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Each object on a canvas of its own: [n, k, channels, height, width].

    glimpses: [n, k, channels, g, g]; boxes: [n, k, 4] xyxy in pixels. This is slow and needs much memory; `paint`
    adds objects up without it. Differentiable in both.
    """
    n, k, channels, g, _ = glimpses.shape
    x0, y0, x1, y1 = boxes.reshape(n * k, 4).unbind(-1)
    zero = torch.zeros_like(x0)
    theta = torch.stack(
        [
            torch.stack([width / (x1 - x0), zero, (width - x0 - x1) / (x1 - x0)], -1),
            torch.stack([zero, height / (y1 - y0), (height - y0 - y1) / (y1 - y0)], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n * k, channels, height, width], align_corners=False)
    flat = F.grid_sample(glimpses.reshape(n * k, channels, g, g), grid, align_corners=False)
    return flat.reshape(n, k, channels, height, width)


def overlap(glimpses: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """For each image, the sum over pixels of (what all objects paint there - what the strongest one paints).

    GMAIR's overlap loss (section 2.3), before its average. glimpses: [n, k, g, g], not negative; boxes: [n, k, 4]
    xyxy in pixels. Returns [n]; differentiable in both.
    """
    painter = Painter(boxes, glimpses.shape[-1], height, width)
    return painter.paint(glimpses[:, :, None]).sum((1, 2, 3)) - painter.strongest(glimpses).sum((1, 2))


def hat(positions: Tensor, taps: int) -> Tensor:
    """Bilinear weights along one axis.

    positions: [...] in taps, the centre of tap u lying at u + 0.5. Returns [..., taps]: max(0, 1 - distance), in 0..1;
    differentiable in the positions.
    """
    weights: Tensor = _Hat.apply(positions, taps)
    return weights


class _Hat(torch.autograd.Function):
    """Autograd alone would keep four copies of the weights; only the two taps around a position have a gradient."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, taps: int) -> Tensor:
        ctx.save_for_backward(positions)
        centres = torch.arange(taps, device=positions.device, dtype=positions.dtype) + 0.5
        return (positions[..., None] - centres).abs_().neg_().add_(1).clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        taps = grad.shape[-1]
        left = (
            (positions - 0.5).floor().long()
        )  # the tap at or before the position; the weight falls moving right
        before = grad.gather(-1, left.clamp(0, taps - 1)[..., None])[..., 0]
        after = grad.gather(-1, (left + 1).clamp(0, taps - 1)[..., None])[..., 0]
        before = torch.where((left >= 0) & (left < taps), before, 0)
        after = torch.where((left >= -1) & (left < taps - 1), after, 0)
        return after - before, None
