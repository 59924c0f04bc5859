"""The plain SPAIR: one cell after another, one canvas an object, the count prior worked through cell by cell.

Slow, obvious; the tests hold the fast one to it, and `benchmarks/steps.py` times them side by side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from objbench.spatial.reference import canvases
from objbench_plugins.spair.model import MIN_IMPORTANCE, Cells, Noise, Spair


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

    count_prior = staticmethod(count_prior_plain)

    def infer(self, images: Tensor, noise: Noise | None = None, wheels: bool = False) -> Cells:
        """Cells in reading order; each looks up the cells around it by their row and column."""
        features, edge = self.cell_features(images), self.edge_context().expand(len(images), -1)
        done: dict[tuple[int, int], Cells] = {}
        for row in range(self.rows):
            for column in range(self.columns):
                around = [(row, column - 1), (row - 1, column - 1), (row - 1, column), (row - 1, column + 1)]
                context = torch.cat([done[at].context[:, 0] if at in done else edge for at in around], -1)
                at = row * self.columns + column
                here = slice(at, at + 1)
                cell_noise = None if noise is None else Noise(*(part[:, here] for part in noise))
                corner = torch.tensor([[float(column), float(row)]])
                done[row, column] = self.infer_cells(
                    images, features[:, here], context[:, None], corner, cell_noise, wheels
                )
        return Cells(*(torch.cat(parts, 1) for parts in zip(*done.values(), strict=True)))

    def render(self, cells: Cells) -> Tensor:
        """Every object on a canvas of its own."""
        colour, alpha = self.decode(cells.what)
        shown = alpha * cells.presence[..., None, None]
        importance = (shown * cells.depth[..., None, None]).clamp(min=MIN_IMPORTANCE)
        layers = torch.cat([colour * shown * importance, importance], 2)
        canvas = canvases(layers, cells.boxes, self.shape.height, self.shape.width).sum(1)
        return (canvas[:, :-1] / (canvas[:, -1:] + 1e-9)).clamp(0, 1)
