"""The plain SPAIR: one cell after another, one canvas an object, the count prior worked through cell by cell.

Slow and easy to check: tests compare the fast one with it, and `benchmarks/steps.py` measures both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from objbench.spatial import canvases
from objbench_plugins.spair.model import MIN_IMPORTANCE, GridCells, Noise, Objects, Spair


def count_prior_plain(present: Tensor, log_p: float) -> Tensor:
    """As `losses.count_prior`: after each cell, Bayes' rule on the distribution of the count."""
    n, cells = present.shape
    count = torch.arange(cells + 1, dtype=torch.float64)
    belief = (math.exp(log_p) ** count).expand(n, -1)
    belief = belief / belief.sum(1, keepdim=True)
    seen = torch.zeros(n, 1, dtype=torch.float64)
    priors = []
    for i in range(cells):
        given_count = (count - seen).clamp(0, cells - i) / (cells - i)
        priors.append((belief * given_count).sum(1))
        here = present[:, i : i + 1]
        belief = belief * (here * given_count + (1 - here) * (1 - given_count))
        belief = belief * (count >= seen + here)
        belief = belief / belief.sum(1, keepdim=True)
        seen = seen + here
    return torch.stack(priors, 1)


class PlainSpair(Spair):
    """The same model and the same numbers, to rounding."""

    def infer(self, images: Tensor, noise: Noise | None = None, where_frozen: bool = False) -> GridCells:
        """Cells in reading order; each looks up the cells around it by their row and column."""
        features, border = self.cell_features(images), self.border_context().expand(len(images), -1)
        done: dict[tuple[int, int], GridCells] = {}
        for row in range(self.rows):
            for column in range(self.columns):
                around = [(row, column - 1), (row - 1, column - 1), (row - 1, column), (row - 1, column + 1)]
                context = torch.cat([done[at].context[:, 0] if at in done else border for at in around], -1)
                at = row * self.columns + column
                here = slice(at, at + 1)
                cell_noise = None if noise is None else Noise(*(part[:, here] for part in noise))
                corner = torch.tensor([[float(column), float(row)]])
                done[row, column] = self.infer_cells(
                    images, features[:, here], context[:, None], corner, cell_noise, where_frozen
                )
        return GridCells(*(torch.cat(parts, 1) for parts in zip(*done.values(), strict=True)))

    def render(self, objects: Objects) -> Tensor:
        """Every object on a canvas of its own."""
        colour, alpha = self.decode(objects.what)
        shown = alpha * objects.presence[..., None, None]
        importance = (shown * objects.depth[..., None, None]).clamp(min=MIN_IMPORTANCE)
        layers = torch.cat([colour * shown * importance, importance], 2)
        canvas = canvases(layers, objects.boxes, self.shape.height, self.shape.width).sum(1)
        return (canvas[:, :-1] / (canvas[:, -1:] + 1e-9)).clamp(0, 1)
