"""Boxes of a grid of cells."""

from __future__ import annotations

import torch
from torch import Tensor


def boxes_around(centre: Tensor, size: Tensor, grid: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """The box of each cell, from its centre relative to the cell and its size (SPAIR, section 3.1).

    centre: [n, cells, 2] (x, y) in cells: 0..1 inside the own cell, beyond in its neighbours. size: [n, cells, 2]
    (width, height) in pixels. grid: (rows, columns); cells are numbered row by row. image: (height, width) in pixels.
    Returns [n, cells, 4] xyxy in pixels, which may reach outside the image; differentiable in centre and size.
    """
    rows, columns = grid
    height, width = image
    cell = vector(centre, width / columns, height / rows)
    ys, xs = torch.meshgrid(
        torch.arange(rows, device=centre.device), torch.arange(columns, device=centre.device), indexing="ij"
    )
    corner = torch.stack([xs.flatten(), ys.flatten()], -1).to(centre.dtype)  # [cells, 2]
    middle = (corner + centre) * cell
    return torch.cat([middle - size / 2, middle + size / 2], -1)


def vector(like: Tensor, *values: float) -> Tensor:
    """The values as a tensor [len(values)] with the type and device of `like`.

    Nothing is copied from the host, unlike with `new_tensor`: a captured step must not copy from the host.
    """
    return torch.stack([like.new_full((), value) for value in values])


def clamp_boxes(boxes: Tensor, image: tuple[int, int]) -> Tensor:
    """Boxes [..., 4], xyxy in pixels, clipped to an image of (height, width) pixels.

    A box outside the image is left without width or height; `Detections.from_padded` drops it. Differentiable where
    nothing is cut; a side that is cut has no gradient.
    """
    height, width = image
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def trim_boxes(boxes: Tensor, brightness: Tensor, threshold: float = 0.2) -> Tensor:
    """Boxes reduced to the bright area of their glimpses (GMAIR, section 4: "removing the empty area").

    boxes: [..., 4] xyxy in pixels. brightness: [..., g, g] of each glimpse, 0..1. Returns [..., 4]: the smallest
    box around the glimpse pixels of at least `threshold`; a glimpse without any keeps its box. Differentiable in the
    boxes, not in the brightness.
    """
    g = brightness.shape[-1]
    lit = brightness >= threshold
    x0, y0, x1, y1 = boxes.unbind(-1)
    first_x, last_x = _extent(lit.any(-2))
    first_y, last_y = _extent(lit.any(-1))
    w, h = (x1 - x0) / g, (y1 - y0) / g
    trimmed = torch.stack([x0 + first_x * w, y0 + first_y * h, x0 + last_x * w, y0 + last_y * h], -1)
    return torch.where(lit.any(-1).any(-1)[..., None], trimmed, boxes)


def _extent(lit: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the first True along the last axis, and the index after the last True, [...] each."""
    g = lit.shape[-1]
    lit_int = lit.to(torch.uint8)
    return lit_int.argmax(-1), g - lit_int.flip(-1).argmax(-1)
