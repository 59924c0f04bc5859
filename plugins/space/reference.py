"""The plain way to put objects together, as published: a whole canvas for every cell, and a softmax over all.

Tests compare `compose.Windows` with it; the benchmark measures both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objbench.spatial import canvases


def compose_plain(
    boxes: Tensor, colour: Tensor, alpha: Tensor, sharpness: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """As `Windows.compose` with every cell among the k."""
    importance = canvases(alpha * sharpness[:, :, None, None, None], boxes, height, width).softmax(1)
    foreground = (canvases(colour, boxes, height, width) * importance).sum(1)
    weight = (canvases(alpha, boxes, height, width) * importance).sum(1)
    return foreground, weight


def frames_plain(
    boxes: Tensor, presence: Tensor, glimpse: int, border: int, height: int, width: int
) -> Tensor:
    """As `Windows.frames`."""
    frame = torch.ones(glimpse, glimpse)
    frame[border : glimpse - border, border : glimpse - border] = 0
    frames = frame * presence[:, :, None, None, None]
    return canvases(frames, boxes, height, width).sum(1)
