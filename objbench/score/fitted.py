"""The clusterer of a finished cell, ready for what its detector finds in other images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objbench.cells.identity import Cell
from objbench.cells.matrix import config_of_clusterer
from objbench.clusterer import Clusterer, Cut, Objects, ObjectShape
from objbench.detector import Detections
from objbench.errors import UsageError
from objbench.plugins import Registry, load_target
from objbench.score import clustering
from objbench.score.arrays import load_tensors


class Fitted:
    """A clusterer with the state of a finished cell."""

    def __init__(self, name: str, clusterer: Clusterer, config: Any, cut: Cut | None) -> None:
        """cut: what `Clusterer.cut` gives for the config."""
        self.name, self.clusterer, self.config, self.cut = name, clusterer, config, cut

    def clusters(self, found: Detections, images: Tensor) -> Tensor:
        """The cluster of each detection, [m] int64.

        found: on the CPU; images: those that it is of, [n, channels, height, width] in 0..1. Raises PluginFailed,
        UsageError or ValueError, with one line.
        """
        glimpses = torch.zeros(len(found.image), images.shape[1], 0, 0)
        if self.cut is not None:
            glimpses = clustering.cut_out(images, found.image, found.boxes, self.cut)
        what = None if found.what is None else found.what.float()
        objects = Objects(glimpses, found.scores.float(), what)
        return clustering.assign(self.name, self.clusterer, objects, self.config.clusters)


def load_fitted(registry: Registry, folder: Path, cell: Cell, shape: ObjectShape) -> Fitted:
    """The clusterer of the finished cell in `folder`; neither data nor data plugin is needed.

    shape: as the cell's record has it. UsageError when its state does not fit the plugin as it is now; Damaged when its
    file is not there or not as it was written.
    """
    name = cell.clusterer["name"]
    clusterer = load_target(registry.clusterer(name).target)
    config = config_of_clusterer(registry, cell)
    state = load_tensors(folder / "clusterer.safetensors")
    try:
        cut = clustering.cut_of(name, clusterer, config)
        made = clustering.restored(name, clusterer, config, shape, state)
    except ValueError as error:
        raise UsageError(f"cell {cell.key}: {error}; run it again") from None
    return Fitted(name, made, config, cut)
