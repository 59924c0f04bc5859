"""Selects grid cells by their presence: the cells to decode and paint, and the cells that can be detections."""

from __future__ import annotations

import torch
from torch import Tensor


def top_cells(presence: Tensor, keep: int) -> Tensor:
    """The `keep` cells of highest presence in each image: [n, keep] int64, in no particular order.

    presence: [n, cells]; no gradient passes, as these are places.
    With `keep` of 0, or of at least as many as there are: all cells, in order, [n, cells].
    """
    n, cells = presence.shape
    if not 0 < keep < cells:
        return torch.arange(cells, device=presence.device).expand(n, cells)
    return presence.topk(keep, dim=1, sorted=False).indices


def candidate_cells(presence: Tensor, least: float) -> Tensor:
    """The cells of highest presence in each image, in falling order: [n, k] int64.

    presence: [n, cells] in 0..1. k is the number of cells with a presence of at least `least` in the image that has
    the most of them, and at least 1; so in other images some of the k cells are below `least`.
    """
    k = int((presence >= least).sum(1).max().clamp(min=1))
    return presence.topk(k, dim=1).indices


def take_cells(values: Tensor, cells: Tensor) -> Tensor:
    """The values of chosen cells: [n, k, ...] of values [n, cells, ...] and cells [n, k] int64; differentiable."""
    index = cells.reshape(*cells.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)
