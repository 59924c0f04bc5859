"""The contract of a clusterer: it puts the objects that a detector found into clusters.

A plugin author writes a subclass of `Clusterer` with `fit` and `assign`. The harness does the rest: it lets the
detector find objects in training scenes, cuts their glimpses, sets seeds, keeps the fitted state, assigns clusters
in test scenes, and scores them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from objbench.options import option


@dataclass(frozen=True)
class Cut:
    """How glimpses are cut: squares around the centre of a box, black outside the image."""

    size: int = 16
    """Height and width in pixels of a glimpse, at least 1; what the square shows is resampled to this, bilinearly."""
    margin: float = 0.0
    """The square's side is the longer side of the box times 1 + `margin`; above -1."""

    def squares(self, boxes: Tensor) -> Tensor:
        """The squares around boxes `[..., 4]`, both xyxy in pixels; they may reach outside the image."""
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        half = (boxes[..., 2:] - boxes[..., :2]).amax(-1, keepdim=True) * (1 + self.margin) / 2
        return torch.cat([middle - half, middle + half], -1)


def cut_fault(cut: Any) -> str:
    """What is wrong with the answer of `Clusterer.cut`; "" when nothing is."""
    if cut is None:
        return ""
    if not isinstance(cut, Cut):
        return f"{type(cut).__name__}, not Cut or None"
    if not isinstance(cut.size, int) or cut.size < 1:
        return f"size={cut.size!r} is not an integer of at least 1"
    if not isinstance(cut.margin, int | float) or not -1 < cut.margin < math.inf:
        return f"margin={cut.margin!r} is not a number above -1"
    return ""


@dataclass(frozen=True)
class ObjectShape:
    """What a clusterer is given of each object."""

    channels: int
    """1 for grey glimpses, 3 for colour."""
    size: int
    """Height and width of a glimpse, as `Clusterer.cut` asked for; 0 when it asked for none."""
    what: int
    """Values in a what-latent; 0 when the detector gives none."""


@dataclass(frozen=True)
class Objects:
    """Objects that a detector found, in no particular order."""

    glimpses: Tensor
    """`[m, channels, size, size]` float32 in 0..1, as `ObjectShape` says."""
    scores: Tensor
    """`[m]` float32 in 0..1, of the detections."""
    what: Tensor | None = None
    """`[m, A]` float32 what-latents, finite; None when the detector gives none."""
    labels: Tensor | None = None
    """`[m]` int64 true classes, -1 for a detection that is no object; only an oracle gets them, and only to fit."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Objects:
        """The objects at these places: int64 indices, a bool mask of [m], or a slice."""
        what = None if self.what is None else self.what[index]
        labels = None if self.labels is None else self.labels[index]
        return Objects(self.glimpses[index], self.scores[index], what, labels)


@dataclass(frozen=True)
class ClustererConfig:
    """Options of every clusterer."""

    clusters: int = option(10, "clusters to put the objects into", low=1)
    """Where the data set's spec says `clusters`, that is the default, the same for every clusterer."""


class Clusterer(nn.Module):
    """Puts objects into clusters. It is fitted once, and never sees a box or a label.

    All that it learns must be in its `state_dict`, with parameters and buffers that `__init__` makes: a clusterer
    with the state of another assigns as that one does.
    """

    Config: ClassVar[type] = ClustererConfig
    """A frozen dataclass of options."""
    needs_what: ClassVar[bool] = False
    """True if it works on what-latents: a detector that gives none is then refused."""
    oracle: ClassVar[bool] = False
    """True for a bound that is fitted with the true labels; tables mark it."""

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """Config values that differ from the defaults for this protocol and data set; `-o` overrides them."""
        return {}

    @classmethod
    def cut(cls, config: Any) -> Cut | None:
        """The glimpses that it wants; None when it does not look at any."""
        return Cut()

    def __init__(self, config: Any, shape: ObjectShape) -> None:
        """`config` is an instance of `Config`. UsageError or ValueError when it cannot serve objects like these."""
        super().__init__()
        self.config = config
        self.shape = shape

    def fit(self, objects: Objects) -> None:
        """Learns from the objects found in training scenes: those with a score of at least PRESENT.

        Called once, in training mode, with gradients allowed, after every global random generator was seeded with the
        cell's seed. There may be few objects, or none: then a clusterer warns, and puts all objects into cluster 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fit")

    def assign(self, objects: Objects) -> Tensor:
        """The cluster of each object: `[m]` int64, from 0 to below `config.clusters`, or NOISE (-1).

        Called in eval mode without gradients, for detections of any score. Must be deterministic, and the cluster of
        one object must not depend on the others.
        """
        raise NotImplementedError(f"{type(self).__name__} has no assign")

    def warnings(self) -> list[str]:
        """Warnings about the fit for readers of the results, one sentence each; called once, after `fit`."""
        return []


def installed(name: str) -> type[Clusterer]:
    """The class of an installed clusterer, for a detector that runs one itself: see `Detector.uses`.

    UsageError when no installed package registers it.
    """
    from objbench.plugins import load_plugins, load_target

    found: type[Clusterer] = load_target(load_plugins().clusterer(name).target)
    return found
