"""The contents of a data set, counted over all its scenes, for `objbench data check`."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from objbench.scenes import Scenes, SceneSource, Split
from objbench.score.scene_checks import (
    SPLITS,
    Fault,
    batches,
    checked_sizes,
    described,
    faults,
    nothing_to_see,
    of_one_colour,
    scenes_of,
)

SHOWN = 3
"""How many faults of a split, and how many images that are in two splits, are listed."""

_SURE = 10  # expected objects of a class: the probability that a sample then has none is below 1 in 20,000


@dataclass
class SplitSurvey:
    """The contents of one split."""

    scenes: int
    without_end: bool
    low: float = math.inf
    """The lowest pixel value; NaN and infinities are left out."""
    high: float = -math.inf
    per_image: Counter[int] = field(default_factory=Counter)
    """Number of objects -> how many images have that number."""
    per_class: Counter[int] = field(default_factory=Counter)
    """Objects of each label."""
    repeated: int = 0
    """Images that occur earlier in the same split; images of a single colour are not compared."""
    one_colour: int = 0
    """Images whose pixels are all equal."""
    faults: list[str] = field(default_factory=list)


@dataclass
class Survey:
    """The contents of a data set."""

    classes: tuple[str, ...]
    splits: dict[Split, SplitSurvey]
    shared: dict[tuple[Split, Split], list[tuple[int, int]]] = field(default_factory=dict)
    """For two splits: pairs (scene of the first, scene of the second) with equal images."""

    def missing(self, split: Split) -> list[str]:
        """The classes without an object in a split."""
        there = self.splits[split].per_class
        return [name for label, name in enumerate(self.classes) if not there[label]]

    def wrong(self) -> list[str]:
        """All errors, one line each: faults, equal images in two splits, classes and images that a split lacks."""
        lines = []
        for split, seen in self.splits.items():
            lines += seen.faults[:SHOWN]
            if len(seen.faults) > SHOWN:
                lines.append(f"{split}: {len(seen.faults) - SHOWN} more faults of this kind or another")
            if seen.one_colour == seen.scenes:
                lines.append(nothing_to_see(split, seen.scenes))
        for (one, other), pairs in self.shared.items():
            some = ", ".join(f"{a} is {b}" for a, b in pairs[:SHOWN])
            more = ", ..." * (len(pairs) > SHOWN)
            lines.append(f"{len(pairs)} {other} images are also {one} images (scene {some}{more})")
        for split in self.splits:
            if lacks := [name for name in self.missing(split) if self._should_have(split, name)]:
                lines.append(f"{split} has no object of {', '.join(lacks)}, which another split has")
        return lines

    def _should_have(self, split: Split, name: str) -> bool:
        """True if another split has the class; if this split was sampled: often enough to rule out chance."""
        seen, label = self.splits[split], self.classes.index(name)
        others = [other.per_class for other in self.splits.values() if other.per_class[label]]
        most = max((counts[label] / sum(counts.values()) for counts in others), default=0)
        return bool(others) and (not seen.without_end or most * sum(seen.per_class.values()) >= _SURE)

    def as_json(self) -> dict[str, Any]:
        """The survey as JSON values."""
        rows = {}
        for split, seen in self.splits.items():
            images, objects = sum(seen.per_image.values()), sum(seen.per_class.values())
            rows[split] = {
                "scenes": seen.scenes,
                "without_end": seen.without_end,
                "pixels": [seen.low, seen.high] if seen.low <= seen.high else None,
                "objects": objects,
                "objects_per_image": (
                    [
                        min(seen.per_image),
                        sum(k * n for k, n in seen.per_image.items()) / images,
                        max(seen.per_image),
                    ]
                    if images
                    else None
                ),
                "per_class": {name: seen.per_class[label] for label, name in enumerate(self.classes)},
                "missing": self.missing(split),
                "repeated": seen.repeated,
                "one_colour": seen.one_colour,
                "faults": seen.faults,
            }
        shared = [
            {"splits": [one, other], "scenes": [list(pair) for pair in pairs]}
            for (one, other), pairs in self.shared.items()
        ]
        return {"splits": rows, "shared": shared, "wrong": self.wrong()}


def survey(name: str, source: SceneSource, endless: int) -> Survey:
    """Decodes every scene of every split; of a split without end, the first `endless` scenes.

    UsageError when a split has no scenes or the plugin raises an error.
    """
    sizes = checked_sizes(name, source)
    found = Survey(
        tuple(source.classes),
        {split: SplitSurvey(size or endless, size is None) for split, size in sizes.items()},
    )
    first_seen: dict[bytes, tuple[Split, int]] = {}
    for split in SPLITS:
        for indices in batches(source.shape, found.splits[split].scenes):
            scenes = scenes_of(name, source, split, indices)
            bad = faults(scenes, source.shape, len(source.classes), len(indices))
            found.splits[split].faults += [described(name, source, split, indices, fault) for fault in bad]
            if all(fault.scene is not None for fault in bad):  # else the batch as a whole is wrong
                _count(found.splits[split], scenes, bad, len(source.classes))
                _compare(found, first_seen, split, indices, scenes.images)
    return found


def _count(seen: SplitSurvey, scenes: Scenes, bad: list[Fault], classes: int) -> None:
    if not scenes.images.numel():
        return
    images, truth = scenes.images, scenes.truth
    if any(fault.part == "images" for fault in bad):
        images = images[images.isfinite()]
    if images.numel():
        low, high = torch.aminmax(images)
        seen.low, seen.high = min(seen.low, float(low)), max(seen.high, float(high))
    seen.per_image.update(torch.bincount(truth.image, minlength=truth.images).tolist())
    seen.per_class.update(label for label in truth.labels.tolist() if 0 <= label < classes)


def _compare(
    found: Survey, first_seen: dict[bytes, tuple[Split, int]], split: Split, indices: Tensor, images: Tensor
) -> None:
    pixels = images.cpu().contiguous().flatten(2)  # [n, channels, height * width]
    for index, image, plain in zip(indices.tolist(), pixels, of_one_colour(images).tolist(), strict=True):
        if plain:  # that two such images are equal says nothing
            found.splits[split].one_colour += 1
            continue
        digest = hashlib.sha256(image.numpy().tobytes()).digest()
        where = first_seen.setdefault(digest, (split, index))
        if where == (split, index):
            continue
        if where[0] == split:
            found.splits[split].repeated += 1
        else:
            found.shared.setdefault((where[0], split), []).append((where[1], index))
