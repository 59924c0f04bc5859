"""Glimpses: cropped out of images, painted onto canvases.

Both resample bilinearly, pixel centres at half-integers (`align_corners=False`), with zeros outside unless asked
otherwise.

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


def crop(images: Tensor, boxes: Tensor, size: int, outside: str = "zeros") -> Tensor:
    """Crops the content of each box.

    images: [n, channels, height, width]; boxes: [n, k, 4] xyxy in pixels; size: the side g of a glimpse in pixels.
    outside: what a box that reaches outside the image shows there: "zeros" is black, "border" repeats the image's
    outermost pixels. Returns [n, k, channels, g, g]; differentiable in both.
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
        images, grid.reshape(n, k * size, size, 2), padding_mode=outside, align_corners=False
    )  # [n, channels, k * g, g]
    return tall.reshape(n, channels, k, size, size).transpose(1, 2)


CACHED = 4_000_000
"""On a CPU, the number of intermediate floats (between the two products of `paint`) computed at once."""
CANVASES = 200_000
"""The same of canvases, one for each object, where they are only looked at (`Painter.overlap`)."""


class Painter:
    """Paints glimpses into boxes; the resampling weights of the boxes are computed once and used for every call."""

    def __init__(self, boxes: Tensor, glimpse: int, height: int, width: int) -> None:
        """boxes: [n, k, 4] xyxy in pixels, of positive size; glimpse: the side g of a glimpse; the canvas in pixels."""
        x0, y0, x1, y1 = boxes.unbind(-1)
        px = torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5
        py = torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5
        # [n, k, height, g] and [n, k, width, g]
        self.along_y = hat((py - y0[..., None]) * (glimpse / (y1 - y0))[..., None], glimpse)
        self.along_x = hat((px - x0[..., None]) * (glimpse / (x1 - x0))[..., None], glimpse)

    def paint(self, glimpses: Tensor) -> Tensor:
        """The sum over objects of each glimpse painted into its box.

        glimpses: [n, k, channels, g, g]. Returns [n, channels, height, width]; differentiable in both.
        """
        _, k, channels, g, _ = glimpses.shape
        at_once = max(1, CACHED // (k * g * channels * self.along_x.shape[2]))
        # A few images at a time: the intermediate result then fits a processor's cache and is not kept.
        return in_parts(_paint, (glimpses, self.along_y, self.along_x), at_once)

    def overlap(self, glimpses: Tensor) -> Tensor:
        """For each image, the sum over pixels of what all objects paint there less what the strongest paints.

        glimpses: [n, k, g, g], not negative. Returns [n]; differentiable in both.
        """
        # The sum over all pixels of A_y G A_x^T needs no canvas: it is (1^T A_y) G (A_x^T 1).
        rows = self.along_y.sum(2)[:, :, None] @ glimpses  # [n, k, 1, g]
        total = (rows[:, :, 0] * self.along_x.sum(2)).sum((1, 2))
        strongest: Tensor = _Strongest.apply(glimpses, self.along_y, self.along_x)
        return total - strongest


class _Strongest(torch.autograd.Function):
    """For each image, the sum over pixels of the largest value that any one object paints there: [n].

    Takes glimpses and weights as `_paint`, but without channels. The canvases of a few images at a time are made and
    left again; for the gradient only which object won each pixel is kept, and the backward pass is three products with
    a canvas for each object that holds the gradient where it won, and zero elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, glimpses: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
        n, k = glimpses.shape[:2]
        pixels = along_y.shape[2] * along_x.shape[2]
        at_once = n if glimpses.is_cuda else max(1, CANVASES // (k * pixels))
        sums, winners = [], []
        for part in zip(*(torch.split(t, at_once) for t in (along_y, glimpses, along_x)), strict=True):
            y, glimpse, x = (t.flatten(0, 1) for t in part)
            painted = torch.bmm(torch.bmm(y, glimpse), x.transpose(1, 2)).view(-1, k, pixels)
            value, winner = painted.max(1)  # [images, pixels]
            sums.append(value.sum(1))
            winners.append(winner)
        ctx.save_for_backward(glimpses, along_y, along_x, torch.cat(winners))
        ctx.at_once = at_once
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        glimpses, along_y, along_x, winners = ctx.saved_tensors
        k, height, width = glimpses.shape[1], along_y.shape[2], along_x.shape[2]
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        inputs = (along_y, glimpses, along_x, winners, grad)
        for *part, winner, slope in zip(*(torch.split(t, ctx.at_once) for t in inputs), strict=True):
            y, glimpse, x = (t.flatten(0, 1) for t in part)
            won = y.new_zeros(len(winner), k, height * width)
            won.scatter_(1, winner[:, None], slope[:, None, None].expand(-1, 1, height * width))
            won = won.view(-1, height, width)
            won_x = torch.bmm(won, x)  # [images * k, height, g]
            found.append(
                (
                    torch.bmm(y.transpose(1, 2), won_x),
                    torch.bmm(won_x, glimpse.transpose(1, 2)),
                    torch.bmm(won.transpose(1, 2), torch.bmm(y, glimpse)),
                )
            )
        of_glimpses, of_y, of_x = (torch.cat(parts) for parts in zip(*found, strict=True))
        return of_glimpses.view_as(glimpses), of_y.view_as(along_y), of_x.view_as(along_x)


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
    return Painter(boxes, glimpses.shape[-1], height, width).overlap(glimpses)


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
