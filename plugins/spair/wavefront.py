"""The order in which cells are processed.

A cell reads the four processed cells around it: west, north-west, north and north-east. So cells with equal
column + 2 row do not read one another, and what they read lies one to three such fronts back. Processing front by
front gives the same as cell by cell, in columns + 2 (rows - 1) batched steps: 31 for 11x11 cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOOKBACK = 3
"""Fronts that a front reads from."""
NEIGHBOURS = ((0, -1), (-1, -1), (-1, 0), (-1, 1))
"""(row, column) offsets of west, north-west, north, north-east."""


class Wavefront(NamedTuple):
    """Fronts of a grid whose cells are numbered row by row."""

    order: Tensor  # [cells] int64, the cells front by front
    place: Tensor  # [cells] int64, its inverse: where in `order` a cell is
    sizes: list[int]  # cells of each front
    neighbours: list[
        Tensor
    ]  # of each front, [4 size] int64: 0 is the border, else 1 + place among earlier ones


def wavefront(rows: int, columns: int) -> Wavefront:
    """The fronts of a grid of that many cells."""
    fronts: list[list[tuple[int, int]]] = [[] for _ in range(columns + 2 * (rows - 1))]
    for row in range(rows):
        for column in range(columns):
            fronts[column + 2 * row].append((row, column))
    neighbours = []
    for i, front in enumerate(fronts):
        back = [cell for earlier in fronts[max(0, i - LOOKBACK) : i] for cell in earlier]
        known = {cell: 1 + at for at, cell in enumerate(back)}
        around = [(row + dy, column + dx) for row, column in front for dy, dx in NEIGHBOURS]
        neighbours.append(torch.tensor([known.get(cell, 0) for cell in around]))
    order = torch.tensor([row * columns + column for front in fronts for row, column in front])
    return Wavefront(order, order.argsort(), [len(front) for front in fronts], neighbours)
