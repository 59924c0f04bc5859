"""The plain versions: one canvas per object, `affine_grid` and `grid_sample`. They are slow and simple. Tests compare
the fast versions with them, and benchmarks measure the time of both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from objbench.spatial.glimpses import canvases


def crop_plain(images: Tensor, boxes: Tensor, size: int, outside: str = "zeros") -> Tensor:
    """As `objbench.spatial.crop`, the image copied for each of its boxes."""
    n, channels, height, width = images.shape
    k = boxes.shape[1]
    x0, y0, x1, y1 = boxes.reshape(n * k, 4).unbind(-1)
    zero = torch.zeros_like(x0)
    theta = torch.stack(
        [
            torch.stack([(x1 - x0) / width, zero, (x0 + x1) / width - 1], -1),
            torch.stack([zero, (y1 - y0) / height, (y0 + y1) / height - 1], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n * k, channels, size, size], align_corners=False)
    copies = images[:, None].expand(n, k, channels, height, width).reshape(n * k, channels, height, width)
    glimpses = F.grid_sample(copies, grid, padding_mode=outside, align_corners=False)
    return glimpses.reshape(n, k, channels, size, size)


def paint_plain(glimpses: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """As `objbench.spatial.paint`."""
    return canvases(glimpses, boxes, height, width).sum(1)


def overlap_plain(glimpses: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """As `objbench.spatial.overlap`."""
    painted = canvases(glimpses[:, :, None], boxes, height, width)[:, :, 0]  # [n, k, height, width]
    return (painted.sum(1) - painted.amax(1)).sum((1, 2))
