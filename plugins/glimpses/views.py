"""Random views of glimpses, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """How a glimpse is changed at random; every change keeps what the object is."""

    rotation: float = 0.3
    """Radians, to either side."""
    scale: float = 0.2
    """Each axis by 1 -+ this."""
    shear: float = 0.3
    """To either side."""
    shift: float = 0.15
    """Of half the glimpse, to either side."""
    neighbour: float = 0.3
    """Probability of a piece of another glimpse, pushed in from outside and added: a neighbour in a crowded scene."""

    def __call__(self, glimpses: Tensor) -> Tensor:
        """One view of each of [n, channels, size, size], values in 0..1; noise is torch's global."""
        n, device = len(glimpses), glimpses.device

        def either(*size: int) -> Tensor:
            return torch.rand(*size) * 2 - 1

        angle, shear = either(n) * self.rotation, either(n) * self.shear
        sx, sy = 1 + either(n) * self.scale, 1 + either(n) * self.scale
        c, s = angle.cos(), angle.sin()
        turn = torch.stack(
            [torch.stack([c * sx, shear * c - s * sy], 1), torch.stack([s * sx, shear * s + c * sy], 1)], 1
        )
        view = _warp(glimpses, torch.cat([turn, either(n, 2, 1) * self.shift], 2).to(device))
        if self.neighbour and n > 1:
            angle, away = 2 * math.pi * torch.rand(n), 1.1 + 0.6 * torch.rand(n)
            push = torch.eye(2, 3).repeat(n, 1, 1)
            push[:, 0, 2], push[:, 1, 2] = away * angle.cos(), away * angle.sin()
            other = _warp(glimpses[torch.randperm(n).to(device)], push.to(device))
            there = (torch.rand(n, 1, 1, 1) < self.neighbour).to(device)
            view = (view + other * there).clamp(max=1)
        return view


def _warp(glimpses: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, list(glimpses.shape), align_corners=False)
    return F.grid_sample(glimpses, grid, align_corners=False)


def steps_of(count: int, batch: int, epochs: float) -> int:
    """Steps of `batches`."""
    return max(1, round(max(1, count // batch) * epochs))


def batches(count: int, batch: int, steps: int) -> Iterator[Tensor]:
    """`steps` batches of indices, each object once an epoch; what does not fill a batch waits for the next epoch."""
    batch = min(batch, count)
    done = 0
    while done < steps:
        for part in torch.randperm(count)[: count // batch * batch].split(batch):
            if done == steps:
                return
            yield part
            done += 1
