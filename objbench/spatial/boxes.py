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


TRIM_EDGES = ("glimpse", "crossing", "pixels")
"""Where `trim_boxes` may put an edge."""


def trim_boxes(boxes: Tensor, brightness: Tensor, threshold: float = 0.2, edges: str = "glimpse") -> Tensor:
    """Boxes reduced to the bright area of their glimpses (GMAIR, section 4: "removing the empty area").

    boxes: [..., 4] xyxy in pixels. brightness: [..., g, g] of each glimpse, 0..1. Returns [..., 4]: the smallest
    box around the glimpse pixels of at least `threshold`; a glimpse without any keeps its box. Differentiable in the
    boxes, not in the brightness.
    edges: "glimpse": edges lie between glimpse pixels, as published. "crossing": they lie where the brightness,
    interpolated between the centres of glimpse pixels, crosses the threshold; beyond the glimpse it is 0. "pixels":
    the same, rounded to whole image pixels, at least one pixel apart. ValueError for any other word.
    """
    if edges not in TRIM_EDGES:
        raise ValueError(f"edges={edges!r} is not one of {', '.join(TRIM_EDGES)}")
    g = brightness.shape[-1]
    columns, rows = brightness.amax(-2), brightness.amax(-1)  # [..., g], the brightest of each
    lit = (columns >= threshold).any(-1)
    x0, y0, x1, y1 = boxes.unbind(-1)
    extent = _extent if edges == "glimpse" else _crossing
    first_x, last_x = extent(columns, threshold)
    first_y, last_y = extent(rows, threshold)
    w, h = (x1 - x0) / g, (y1 - y0) / g
    trimmed = torch.stack([x0 + first_x * w, y0 + first_y * h, x0 + last_x * w, y0 + last_y * h], -1)
    if edges == "pixels":
        low = trimmed[..., :2].round()
        trimmed = torch.cat([low, trimmed[..., 2:].round().maximum(low + 1)], -1)
    return torch.where(lit[..., None], trimmed, boxes)


def _extent(brightest: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The index of the first of [..., g] that is at least `threshold`, and the index after the last, [...] each."""
    g = brightest.shape[-1]
    lit = (brightest >= threshold).to(torch.uint8)
    return lit.argmax(-1), g - lit.flip(-1).argmax(-1)


def _crossing(brightest: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Like `_extent`, but where the line through the values at pixel centres (index + 0.5) crosses the threshold."""
    g = brightest.shape[-1]
    first, after = _extent(brightest, threshold)
    padded = torch.nn.functional.pad(brightest, (1, 1))  # index i is now at i + 1

    def share(inside: Tensor, outside: Tensor) -> Tensor:
        """How far from the lit pixel `inside` towards its neighbour the threshold is crossed, 0..1; [...] indices."""
        bright, dark = (padded.gather(-1, i[..., None] + 1)[..., 0] for i in (inside, outside))
        return (bright - threshold) / (bright - dark).clamp(min=1e-6)

    low = first + 0.5 - share(first, first - 1)
    high = after - 0.5 + share(after - 1, after)
    high = torch.where(high > low, high, low + 1e-3)  # where a single pixel has exactly the threshold
    return low.clamp(min=0), high.clamp(max=g)
