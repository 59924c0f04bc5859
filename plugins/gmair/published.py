"""The published renderer: colour, shown and importance are interpolated into the image, and multiplied there.

    image = sum(colour x shown x (importance + EPS)) / sum(importance + EPS), at each pixel, sums over objects

A sum of products cannot be taken as one product of matrices, as `render.render` does, so each object has pixels of its
own: a window, a rectangle of the image, the same size for all, that holds every pixel its box can reach. Outside it
colour, shown and importance are zero, so the image is the same as that of whole canvases (`reference.py`).

The sums are one autograd function with its backward pass by hand: kept are only glimpses and resampling weights, and
the windows of a few images at a time are made again. With P = A_y G A_x^T the interpolated colour c, shown s and
importance i of an object, N the sum of c s (i + EPS) and D the sum of i:

    dc = dN s (i + EPS)       ds = (sum over channels of dN c) (i + EPS)       di = (sum over channels of dN c) s + dD

each read at the window's place in the image, and dG = A_y^T dP A_x, dA_y = dP A_x G^T, dA_x = dP^T A_y G. The overlap
is the sum of m = s (mean over channels of c) over all pixels and objects, less that of the largest m at each pixel:
its dm is 1, but 0 for the largest.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from objbench.spatial.glimpses import hat

EPS = 1e-9
"""Added to the importance at each pixel, as published: where no object reaches, the image is 0 and not NaN."""
AT_ONCE = 2_000_000
"""On a CPU, the number of floats in the windows that are made at once."""


def render_windows(
    boxes: Tensor,
    colour: Tensor,
    shown: Tensor,
    importance: Tensor,
    size: tuple[int, int],
    largest: float,
    with_overlap: bool,
) -> tuple[Tensor, Tensor | None]:
    """The image [n, channels, height, width], and if asked for its overlap [n].

    boxes: [n, k, 4] xyxy in pixels, no side above `largest`; colour [n, k, channels, g, g], shown and importance
    [n, k, 1, g, g], not negative; size: (height, width) of the image in pixels.
    """
    k, g = boxes.shape[1], colour.shape[-1]
    x0, y0, x1, y1 = boxes.unbind(-1)
    first_y, along_y = window(y0, y1, g, size[0], largest)
    first_x, along_x = window(x0, x1, g, size[1], largest)
    layers = torch.cat([layer.transpose(2, 3) for layer in (colour, shown, importance)], 3).contiguous()
    sums, overlap = _Sums.apply(layers, along_y, along_x, first_y, first_x, size, with_overlap)
    return (sums[:, :-1] / (sums[:, -1:] + k * EPS)).clamp(0, 1), overlap if with_overlap else None


def window(low: Tensor, high: Tensor, g: int, pixels: int, largest: float) -> tuple[Tensor, Tensor]:
    """Along one axis, of boxes from `low` to `high` [n, k] in pixels: the first pixel of each window, [n, k] int64, and
    the resampling weights of its pixels, [n, k, side, g], zero outside the box. Differentiable in low and high.
    """
    # A glimpse reaches half of its pixel beyond the box on each side; one pixel for the fractions of both ends, one
    # for rounding.
    side = min(math.floor(largest * (1 + 1 / g)) + 2, pixels)
    tap = (high - low) / g
    first = (low.detach() - tap.detach() / 2 - 0.5).floor().long().clamp(0, pixels - side)
    centres = first[..., None] + torch.arange(side, device=low.device) + 0.5
    return first, hat((centres - low[..., None]) / tap[..., None], g)


class _Sums(torch.autograd.Function):
    """The sums over objects of colour x shown x (importance + EPS) and of importance, [n, channels + 1, height, width];
    and the overlap, [n], zeros where not asked for.

    Takes layers [n, k, g, channels + 2, g] (colour, shown, importance), weights and first pixels as from `window`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layers: Tensor,
        along_y: Tensor,
        along_x: Tensor,
        first_y: Tensor,
        first_x: Tensor,
        size: tuple[int, int],
        with_overlap: bool,
    ) -> tuple[Tensor, Tensor]:
        n, k, _, count, _ = layers.shape
        channels, pixels = count - 2, size[0] * size[1]
        floats = k * along_y.shape[2] * along_x.shape[2] * count
        ctx.at_once = n if layers.is_cuda else max(1, AT_ONCE // floats)
        ctx.size, ctx.with_overlap = size, with_overlap
        sums, overlap = layers.new_zeros(n, channels + 1, pixels), layers.new_zeros(n)
        most = layers.new_zeros(n if with_overlap else 0, pixels)
        inputs = (layers, along_y, along_x, first_y, first_x, sums)
        for at, (layer, y, x, top, left, part) in _parts(ctx.at_once, *inputs):
            _, painted = _painted(layer, y, x)
            places = _places(top, left, painted, size[1])
            shown, importance = painted[:, :, :, channels], painted[:, :, :, channels + 1]
            weight = shown * (importance + EPS)
            for c in range(channels):
                part[:, c].scatter_add_(1, places, (painted[:, :, :, c] * weight).flatten(1))
            part[:, channels].scatter_add_(1, places, importance.flatten(1))
            if with_overlap:
                mean = (painted[:, :, :, :channels].mean(3) * shown).flatten(1)
                most[at].scatter_reduce_(1, places, mean, "amax")
                overlap[at] = mean.sum(1) - most[at].sum(1)
        ctx.save_for_backward(layers, along_y, along_x, first_y, first_x, most)
        return sums.view(n, channels + 1, *size), overlap

    @staticmethod
    def backward(ctx: Any, d_sums: Tensor, d_overlap: Tensor) -> tuple[Tensor | None, ...]:
        layers, along_y, along_x, first_y, first_x, most = ctx.saved_tensors
        channels = layers.shape[3] - 2
        d_layers, d_y, d_x = torch.empty_like(layers), torch.empty_like(along_y), torch.empty_like(along_x)
        inputs = (layers, along_y, along_x, first_y, first_x, d_sums.flatten(2), d_layers, d_y, d_x)
        for at, (layer, y, x, top, left, slope, d_layer, d_of_y, d_of_x) in _parts(ctx.at_once, *inputs):
            rows, painted = _painted(layer, y, x)
            places = _places(top, left, painted, ctx.size[1])
            shown, importance = painted[:, :, :, channels], painted[:, :, :, channels + 1]
            weight = shown * (importance + EPS)
            d_painted, along = torch.empty_like(painted), torch.zeros_like(shown)
            for c in range(channels):
                d_sum = slope[:, c].gather(1, places).view_as(shown)
                torch.mul(d_sum, weight, out=d_painted[:, :, :, c])
                along.addcmul_(d_sum, painted[:, :, :, c])
            d_shown = along * (importance + EPS)
            d_importance = slope[:, channels].gather(1, places).view_as(shown).addcmul_(along, shown)
            if ctx.with_overlap:
                mean = painted[:, :, :, :channels].mean(3)
                strongest = (mean * shown >= most[at].gather(1, places).view_as(shown)) & (shown > 0)
                d_mean = d_overlap[at, None, None, None] * ~strongest
                d_painted[:, :, :, :channels] += (d_mean * shown / channels)[:, :, :, None]
                d_shown.addcmul_(d_mean, mean)
            d_painted[:, :, :, channels], d_painted[:, :, :, channels + 1] = d_shown, d_importance

            # Through P = A_y G A_x^T, as in `_painted`
            b, count, g = painted.shape[0] * painted.shape[1], channels + 2, layers.shape[-1]
            d_flat = d_painted.view(b, -1, painted.shape[-1])
            d_rows = torch.bmm(d_flat, x.flatten(0, 1)).view(b, -1, count * g)
            torch.bmm(d_flat.transpose(1, 2), rows, out=d_of_x.view(b, *d_of_x.shape[2:]))
            torch.bmm(y.flatten(0, 1).transpose(1, 2), d_rows, out=d_layer.view(b, g, count * g))
            flat = layer.reshape(b, g, count * g).transpose(1, 2)
            torch.bmm(d_rows, flat, out=d_of_y.view(b, *d_of_y.shape[2:]))
        return d_layers, d_y, d_x, None, None, None, None


def _parts(at_once: int, *tensors: Tensor) -> list[tuple[slice, tuple[Tensor, ...]]]:
    """The tensors [n, ...] cut into `at_once` images at a time, as views, with the place of each part."""
    starts = range(0, len(tensors[0]), at_once)
    slices = [slice(start, min(start + at_once, len(tensors[0]))) for start in starts]
    return [(at, tuple(tensor[at] for tensor in tensors)) for at in slices]


def _painted(layers: Tensor, along_y: Tensor, along_x: Tensor) -> tuple[Tensor, Tensor]:
    """A_y G, [images * k, rows * count, g], and A_y G A_x^T, [images, k, rows, count, columns]."""
    n, k, g, count, _ = layers.shape
    rows = torch.bmm(along_y.flatten(0, 1), layers.reshape(n * k, g, count * g)).view(n * k, -1, g)
    painted = torch.bmm(rows, along_x.flatten(0, 1).transpose(1, 2))
    return rows, painted.view(n, k, along_y.shape[2], count, along_x.shape[2])


def _places(first_y: Tensor, first_x: Tensor, painted: Tensor, width: int) -> Tensor:
    """The pixel of the image, numbered row by row, that each pixel of the windows is: [images, k * rows * columns]."""
    rows = first_y[..., None] + torch.arange(painted.shape[2], device=painted.device)
    columns = first_x[..., None] + torch.arange(painted.shape[4], device=painted.device)
    return (rows[..., :, None] * width + columns[..., None, :]).flatten(1)
