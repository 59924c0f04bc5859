"""Scenes: images with the boxes and classes of the objects in them, and where they come from.

Boxes are `xyxy` in pixels: x to the right, y down, (x0, y0) the top-left corner of the first pixel that
belongs to the object and (x1, y1) the bottom-right corner of the last, so a whole 64x64 image is
(0, 0, 64, 64) and no width needs a "+1".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]
"""The parts of a data set; no object is in two of them."""


class SceneShape(NamedTuple):
    """The shape of one image."""

    channels: int
    """1 for grey, 3 for RGB; any other number is no error."""
    height: int
    """In pixels."""
    width: int
    """In pixels."""


@dataclass(frozen=True)
class GroundTruth:
    """The objects of `images` scenes as flat lists: object j lies in image `image[j]`."""

    images: int
    """How many scenes there are, also those without objects."""
    image: Tensor
    """`[m]` int64, 0..images-1, ascending."""
    boxes: Tensor
    """`[m, 4]` float32, or float64 when read from a file; xyxy in pixels, inside the image and of positive size."""
    labels: Tensor
    """`[m]` int64 class ids, from 0."""

    def __post_init__(self) -> None:
        m = len(self.image)
        if self.boxes.shape != (m, 4) or self.labels.shape != (m,):
            raise ValueError(
                f"{m} objects need boxes [{m}, 4] and labels [{m}], got {list(self.boxes.shape)} "
                f"and {list(self.labels.shape)}"
            )

    @staticmethod
    def of(boxes: list[Tensor], labels: list[Tensor]) -> GroundTruth:
        """From one `[k_i, 4]` boxes tensor and one `[k_i]` labels tensor per image."""
        counts = torch.tensor([len(b) for b in boxes], dtype=torch.int64)
        empty_boxes, empty_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        return GroundTruth(
            images=len(boxes),
            image=torch.repeat_interleave(torch.arange(len(boxes)), counts),
            boxes=torch.cat([b.reshape(-1, 4).float() for b in boxes] or [empty_boxes]),
            labels=torch.cat([l.long() for l in labels] or [empty_labels]),
        )

    @staticmethod
    def concatenate(parts: list[GroundTruth]) -> GroundTruth:
        """The truth of consecutive batches as one."""
        offset, images = 0, []
        for part in parts:
            images.append(part.image + offset)
            offset += part.images
        boxes, labels = torch.cat([p.boxes for p in parts]), torch.cat([p.labels for p in parts])
        return GroundTruth(offset, torch.cat(images), boxes, labels)


@dataclass(frozen=True)
class Scenes:
    """Images and what is in them."""

    images: Tensor
    """`[n, channels, height, width]` float32 in 0..1."""
    truth: GroundTruth
    """Of the same n images."""

    def __len__(self) -> int:
        return len(self.images)


class SceneSource(ABC):
    """A data set. Scene `index` of a split depends on (config, split, seed, index) and nothing else."""

    Config: ClassVar[type]
    """A frozen dataclass whose fields are made with `objbench.options.option`."""
    shape: SceneShape
    """Of every image."""
    classes: tuple[str, ...]
    """The names of the labels, in order."""

    @classmethod
    def settings(cls, protocol: str) -> dict[str, Any]:
        """Config values that differ from the defaults under a protocol. The user's own `-o` goes over them."""
        return {}

    @abstractmethod
    def __init__(self, config: Any, seed: int) -> None:
        """`seed` chooses the scenes; the objects that a split draws from do not depend on it."""

    @abstractmethod
    def size(self, split: Split) -> int | None:
        """How many scenes a split has, or None when it is generated without end."""

    @abstractmethod
    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, in that order. No object occurs in two splits."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the data is made of, as JSON values: counts, checksums, source names. Never paths.

        Part of a cell's identity: two sources with equal config and fingerprint give equal scenes.
        """

    def origin(self, split: Split, index: int) -> str:
        """Where a scene comes from, for messages: a file and the place in it. Empty when it is generated."""
        return ""


def first_indices(source: SceneSource, split: Split, count: int) -> Tensor:
    """The first `count` scenes of a split, or all when it has fewer."""
    size = source.size(split)
    return torch.arange(count if size is None else min(count, size))
