"""How SPACE puts objects together: at each pixel, a softmax over cells of 100 x alpha x sigmoid(-depth).

A cell whose box does not reach a pixel has alpha 0 there and still weighs exp(0) = 1. So with l_i the logit
of cell i,

    sum over all cells of exp(l_i)  =  cells + sum over boxes that reach the pixel of (exp(l_i) - 1),

and only pixels inside boxes need to be computed: each box has a window of the canvas, big enough to hold
it, and windows are added into the canvas. The published code makes a whole canvas for every cell, and so does
`reference.py`. The sizes of windows depend on values, for which a GPU would have to wait: there, the window of each
box is the whole canvas (`Canvases`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from objbench.spatial.glimpses import hat

STEP = 8
"""Sides of windows are multiples of so many pixels, because windows of one size are resampled together."""


class Bucket(NamedTuple):
    """The b boxes whose windows have one size, v x u pixels."""

    members: Tensor  # [b] which of the n * k boxes
    along_y: Tensor  # [b, v, g] bilinear weights
    along_x: Tensor  # [b, u, g]
    place: Tensor  # [b, v, u] int64: each pixel's place among the n * height * width of all canvases


class Windows:
    """Where the boxes of a batch lie, computed once for all that is painted into them."""

    def __init__(self, boxes: Tensor, glimpse: int, height: int, width: int) -> None:
        """boxes: [n, k, 4] xyxy in pixels, of positive size; glimpse: its side g; the canvas in pixels."""
        self.n, self.k = boxes.shape[:2]
        self.height, self.width = height, width
        x0, y0, x1, y1 = boxes.flatten(0, 1).unbind(-1)
        top, rows = _span(y0.detach(), y1.detach(), glimpse, height)
        left, columns = _span(x0.detach(), x1.detach(), glimpse, width)
        side = torch.maximum(rows, columns).clamp(min=1).add(STEP - 1).div(STEP, rounding_mode="floor")
        image = torch.arange(self.n, device=boxes.device).repeat_interleave(self.k)
        self.buckets = []
        for size in side.unique().tolist():
            m = (side == size).nonzero()[:, 0]
            v, u = min(size * STEP, height), min(size * STEP, width)
            ys = top[m].clamp(max=height - v)[:, None] + torch.arange(v, device=m.device)  # [b, v]
            xs = left[m].clamp(max=width - u)[:, None] + torch.arange(u, device=m.device)
            along_y = hat((ys + 0.5 - y0[m, None]) * (glimpse / (y1 - y0)[m, None]), glimpse)
            along_x = hat((xs + 0.5 - x0[m, None]) * (glimpse / (x1 - x0)[m, None]), glimpse)
            place = (image[m, None] * height + ys)[:, :, None] * width + xs[:, None, :]
            self.buckets.append(Bucket(m, along_y, along_x, place))

    def canvas(self) -> Tensor:
        """An empty canvas for each image, [n * height * width]."""
        return self.buckets[0].along_y.new_zeros(self.n * self.height * self.width)

    def compose(self, colour: Tensor, alpha: Tensor, sharpness: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """The foreground, [n, channels, height, width], and its weight, [n, 1, height, width] in 0..1.

        colour: [n, k, channels, g, g], what an object shows times its alpha; alpha: [n, k, 1, g, g] in
        0..1, presence included; sharpness: [n, k], at least 0, what alpha is multiplied by in the softmax.
        cells: over how many cells the softmax runs; those beyond the k are absent.
        """
        glimpses = torch.cat([colour, alpha], 2).flatten(0, 1)  # [n * k, channels + 1, g, g]
        sharpness = sharpness.flatten()
        painted, logits = [], []
        highest = self.canvas()  # the softmax's largest logit, for stability; an absent cell has 0
        for bucket in self.buckets:
            layers = _resample(
                glimpses[bucket.members], bucket.along_y, bucket.along_x
            )  # channels + 1 of [b, v, u]
            logit = sharpness[bucket.members, None, None] * layers[-1]
            highest.scatter_reduce_(0, bucket.place.flatten(), logit.detach().flatten(), "amax")
            painted.append(layers)
            logits.append(logit)
        absent = (-highest).exp()
        total = cells * absent
        sums = [self.canvas() for _ in range(glimpses.shape[1])]
        for bucket, layers, logit in zip(self.buckets, painted, logits, strict=True):
            place = bucket.place.flatten()
            weight = (logit - highest[place].view_as(logit)).exp()
            total = total.index_add(0, place, (weight - absent[place].view_as(weight)).flatten())
            sums = [s.index_add(0, place, (weight * l).flatten()) for s, l in zip(sums, layers, strict=True)]
        mean = (
            torch.stack([s / total for s in sums]).view(-1, self.n, self.height, self.width).transpose(0, 1)
        )
        return mean[:, :-1], mean[:, -1:]

    def frames(self, presence: Tensor, border: int) -> Tensor:
        """The sum over objects of presence times a frame along the inside of the box, [n, 1, height, width].

        presence: [n, k]; the frame is `border` glimpse pixels wide, is 1 inside, and is resampled as a
        glimpse is. It is a square less a smaller one, hence two products of a row and a column.
        """
        canvas = self.canvas()
        presence = presence.flatten()
        for bucket in self.buckets:
            inner = slice(border, bucket.along_y.shape[-1] - border)
            whole = bucket.along_y.sum(-1)[:, :, None] * bucket.along_x.sum(-1)[:, None, :]
            middle = (
                bucket.along_y[..., inner].sum(-1)[:, :, None]
                * bucket.along_x[..., inner].sum(-1)[:, None, :]
            )
            frame = presence[bucket.members, None, None] * (whole - middle)
            canvas = canvas.index_add(0, bucket.place.flatten(), frame.flatten())
        return canvas.view(self.n, 1, self.height, self.width)


class Canvases:
    """As `Windows`, but the window of every box is the whole canvas.

    More arithmetic, in few and large pieces whose sizes do not depend on where boxes lie: nothing is read back
    from a GPU, and a training step can be captured. [n, k, height, width] is made for every layer.
    """

    def __init__(self, boxes: Tensor, glimpse: int, height: int, width: int) -> None:
        """As `Windows`."""
        self.n, self.k = boxes.shape[:2]
        self.height, self.width = height, width
        x0, y0, x1, y1 = boxes.flatten(0, 1)[..., None].unbind(1)  # [n * k, 1]
        ys = torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5
        xs = torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5
        self.along_y = hat((ys - y0) * (glimpse / (y1 - y0)), glimpse)  # [n * k, height, g]
        self.along_x = hat((xs - x0) * (glimpse / (x1 - x0)), glimpse)

    def compose(self, colour: Tensor, alpha: Tensor, sharpness: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """As `Windows.compose`."""
        glimpses = torch.cat([colour, alpha], 2).flatten(0, 1)
        layers = [
            layer.unflatten(0, (self.n, self.k)) for layer in _resample(glimpses, self.along_y, self.along_x)
        ]  # channels + 1 of [n, k, height, width]
        logit = sharpness[:, :, None, None] * layers[-1]
        highest = logit.detach().amax(1).clamp(min=0)  # [n, height, width]
        absent = (-highest).exp()
        weight = (logit - highest[:, None]).exp()
        total = cells * absent + (weight - absent[:, None]).sum(1)
        mean = torch.stack([(weight * layer).sum(1) / total for layer in layers], 1)
        return mean[:, :-1], mean[:, -1:]

    def shares(self, alpha: Tensor, sharpness: Tensor, cells: int) -> Tensor:
        """The share of each object in the softmax at every pixel, [n, k, height, width] in 0..1; see `compose`."""
        (painted,) = _resample(alpha.flatten(0, 1), self.along_y, self.along_x)
        logit = sharpness[:, :, None, None] * painted.unflatten(0, (self.n, self.k))
        highest = logit.amax(1, keepdim=True).clamp(min=0)
        weight, absent = (logit - highest).exp(), (-highest).exp()
        return weight / (cells * absent + (weight - absent).sum(1, keepdim=True))

    def frames(self, presence: Tensor, border: int) -> Tensor:
        """As `Windows.frames`; the sum over objects is that of a product of matrices."""
        inner = slice(border, self.along_y.shape[-1] - border)
        sums = [
            weights.sum(-1).unflatten(0, (self.n, self.k))
            for along in (self.along_y, self.along_x)
            for weights in (along, along[..., inner])
        ]
        whole_y, middle_y, whole_x, middle_x = sums  # [n, k, height] and [n, k, width]
        shown = presence[..., None]
        whole = (shown * whole_y).transpose(1, 2) @ whole_x
        return (whole - (shown * middle_y).transpose(1, 2) @ middle_x)[:, None]


def _resample(glimpses: Tensor, along_y: Tensor, along_x: Tensor) -> tuple[Tensor, ...]:
    """Each of the layers of glimpses [b, layers, g, g] in its window, [b, v, u] each; weights as in `Bucket`."""
    b, layers, g, _ = glimpses.shape
    v, u = along_y.shape[1], along_x.shape[1]
    rows = torch.bmm(glimpses.transpose(1, 2).reshape(b, g * layers, g), along_x.transpose(1, 2))
    return torch.bmm(along_y, rows.reshape(b, g, layers * u)).view(b, v, layers, u).unbind(2)


def _span(first: Tensor, last: Tensor, glimpse: int, length: int) -> tuple[Tensor, Tensor]:
    """The first pixel that a box from `first` to `last` touches, in 0..length - 1, and how many it may.

    Bilinear resampling reaches half a glimpse pixel beyond the box.
    """
    fringe = (last - first) / (2 * glimpse)
    start = (first - fringe).floor().clamp(0, length - 1)
    # Clamped once more as an integer: NaN is none, and must reach the loss, not an index.
    return start.long().clamp(0, length - 1), ((last + fringe).ceil().clamp(max=length) - start).long()
