"""GMAIR's renderer (section 2.2, "Generation Model") and the overlap of objects (section 2.3).

At each pixel the image is the average of what all objects show there, weighted by importance:

    shown      = alpha x presence
    importance = shown x 4 sigmoid(depth), at least MIN_IMPORTANCE
    image      = sum(colour x shown x importance) / sum(importance), sums over objects

`render` multiplies in the glimpses and interpolates the products, so each sum is one product of matrices.
`render_published` interpolates the three factors and multiplies in the image, see `published.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objbench.spatial import Painter
from objbench_plugins.gmair.published import render_windows

MIN_IMPORTANCE = 1e-4
"""An absent object keeps this importance, so that its presence still has a gradient and it can come back."""


def weights(presence: Tensor, depth: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """`shown` and `importance`, [n, k, 1, g, g] each, of presence and depth [n, k] and alpha [n, k, 1, g, g]."""
    shown = alpha * presence[:, :, None, None, None]
    importance = shown * (4 * torch.sigmoid(depth.clamp(-10, 10)))[:, :, None, None, None]
    return shown, importance.clamp(min=MIN_IMPORTANCE)


def render(
    boxes: Tensor,  # [n, k, 4] xyxy in pixels
    presence: Tensor,  # [n, k] in 0..1
    depth: Tensor,  # [n, k] larger is nearer
    colour: Tensor,  # [n, k, channels, g, g] in 0..1
    alpha: Tensor,  # [n, k, 1, g, g] in 0..1
    size: tuple[int, int],  # (height, width) of the image in pixels
    with_overlap: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The image that p(x | z) expects, [n, channels, height, width] in 0..1, and if asked for the overlap.

    Overlap, [n]: the sum over pixels of what all objects show there less what the strongest shows; a mean of channels.
    """
    shown, importance = weights(presence, depth, alpha)
    painter = Painter(boxes, colour.shape[-1], *size)
    canvas = painter.paint(torch.cat([colour * shown * importance, importance], 2))
    image = (canvas[:, :-1] / (canvas[:, -1:] + 1e-9)).clamp(0, 1)
    return image, painter.overlap((colour * shown).mean(2)) if with_overlap else None


def render_published(
    boxes: Tensor,
    presence: Tensor,
    depth: Tensor,
    colour: Tensor,
    alpha: Tensor,
    size: tuple[int, int],
    largest: float,  # no side of a box is above it, in pixels
    with_overlap: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As `render`, but colour, shown and importance are interpolated first and then multiplied."""
    shown, importance = weights(presence, depth, alpha)
    return render_windows(boxes, colour, shown, importance, size, largest, with_overlap)
