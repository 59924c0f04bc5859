"""Scenes (images with the boxes and classes of their objects), and the contract of a data set.

Boxes are `xyxy` in pixels: x to the right, y down. (x0, y0) is the top-left corner of the object's first pixel;
(x1, y1) is the bottom-right corner of its last pixel. So the box of a whole 64x64 image is (0, 0, 64, 64), and
widths need no "+1".
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
    """The objects of `images` scenes as flat lists: object j is in image `image[j]`."""

    images: int
    """How many scenes there are, also those without objects."""
    image: Tensor
    """`[m]` int64, 0..images-1, ascending."""
    boxes: Tensor
    """`[m, 4]` float32, or float64 when read from a file; xyxy in pixels, inside the image and of positive size."""
    labels: Tensor
    """`[m]` int64 class ids, from 0."""
    masks: Tensor | None = None
    """`[m, height, ceil(width / 8)]` uint8: the pixels of each object as packed bits (see `objbench.masks`), at least
    one; None where the data does not know them."""

    def __post_init__(self) -> None:
        m = len(self.image)
        if self.boxes.shape != (m, 4) or self.labels.shape != (m,):
            raise ValueError(
                f"{m} objects need boxes [{m}, 4] and labels [{m}], got {list(self.boxes.shape)} "
                f"and {list(self.labels.shape)}"
            )
        if self.masks is not None and self.masks.shape != (m, *self.masks.shape[-2:]):
            raise ValueError(f"{m} objects need masks [{m}, height, bytes], got {list(self.masks.shape)}")

    @staticmethod
    def of(boxes: list[Tensor], labels: list[Tensor], masks: list[Tensor] | None = None) -> GroundTruth:
        """Makes it from one `[k_i, 4]` boxes tensor and one `[k_i]` labels tensor per image.

        masks: one `[k_i, height, bytes]` tensor of packed masks per image, or None.
        """
        counts = torch.tensor([len(b) for b in boxes], dtype=torch.int64)
        empty_boxes, empty_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        return GroundTruth(
            images=len(boxes),
            image=torch.repeat_interleave(torch.arange(len(boxes)), counts),
            boxes=torch.cat([b.reshape(-1, 4).float() for b in boxes] or [empty_boxes]),
            labels=torch.cat([l.long() for l in labels] or [empty_labels]),
            masks=torch.cat(masks) if masks else None,
        )

    @staticmethod
    def concatenate(parts: list[GroundTruth]) -> GroundTruth:
        """Joins the ground truth of consecutive batches."""
        offset, images = 0, []
        for part in parts:
            images.append(part.image + offset)
            offset += part.images
        boxes, labels = torch.cat([p.boxes for p in parts]), torch.cat([p.labels for p in parts])
        masks = [p.masks for p in parts if p.masks is not None]
        joined = torch.cat(masks) if masks and len(masks) == len(parts) else None
        return GroundTruth(offset, torch.cat(images), boxes, labels, joined)


@dataclass(frozen=True)
class Scenes:
    """Images and their ground truth."""

    images: Tensor
    """`[n, channels, height, width]` float32 in 0..1."""
    truth: GroundTruth
    """Of the same n images."""

    def __len__(self) -> int:
        return len(self.images)


class SceneSource(ABC):
    """A data set. Scene `index` of a split depends only on (config, split, seed, index)."""

    Config: ClassVar[type]
    """A frozen dataclass whose fields are made with `objbench.options.option`."""
    shape: SceneShape
    """Of every image."""
    classes: tuple[str, ...]
    """The names of the labels, in order."""

    @classmethod
    def settings(cls, protocol: str) -> dict[str, Any]:
        """Config values that differ from the defaults for this protocol; the user's `-o` overrides them."""
        return {}

    @abstractmethod
    def __init__(self, config: Any, seed: int) -> None:
        """`seed` selects the scenes. The set of objects that a split uses does not depend on it."""

    @abstractmethod
    def size(self, split: Split) -> int | None:
        """The number of scenes in a split; None if the number is unlimited (generated scenes)."""

    @abstractmethod
    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """Returns the scenes at `indices` [n] int64, in that order. No object occurs in two splits."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """A description of the data as JSON values: counts, checksums, source names; no paths.

        It is part of a cell's identity: two sources with equal config and fingerprint must give equal scenes.
        """

    def origin(self, split: Split, index: int) -> str:
        """The file of a scene and its position in the file, for messages; empty if the scene is generated."""
        return ""


def first_indices(source: SceneSource, split: Split, count: int) -> Tensor:
    """The indices [n] of the first `count` scenes of a split, or of all scenes if it has fewer."""
    size = source.size(split)
    return torch.arange(count if size is None else min(count, size))
