"""The plain version of the published renderer: a canvas for each object. It is slow and simple. Tests compare the fast
one with it, and benchmarks measure the time of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objbench.spatial import canvases
from objbench_plugins.gmair.published import EPS
from objbench_plugins.gmair.render import weights


def render_plain(
    boxes: Tensor,
    presence: Tensor,
    depth: Tensor,
    colour: Tensor,
    alpha: Tensor,
    size: tuple[int, int],
    largest: float = 0.0,
    with_overlap: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As `render.render_published`; `largest` is not needed."""
    shown, importance = weights(presence, depth, alpha)
    painted = canvases(torch.cat([colour, shown, importance], 2), boxes, *size)
    colours = painted[:, :, :-2] * painted[:, :, -2:-1]  # [n, k, channels, height, width]
    importances = painted[:, :, -1:] + EPS
    image = (colours * importances / importances.sum(1, keepdim=True)).sum(1).clamp(0, 1)
    if not with_overlap:
        return image, None
    mean = colours.mean(2)  # over channels: [n, k, height, width]
    return image, (mean.sum(1) - mean.amax(1)).sum((1, 2))
