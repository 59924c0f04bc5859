"""The published HDF5 file of scenes (`scattered_mnist_128x128_obj14x14.hdf5`).

`{train,test}/full` hold `image` [N, height, width], `bbox_w_c` [N, max, 5] = (left, top, width, height,
digit + 1), padded with -1, and `digit_count` [N, 1]. The last tenth of train is held out for validation;
digits may occur in both.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from objbench.errors import UsageError
from objbench.scenes import GroundTruth, Scenes, SceneShape, Split

if TYPE_CHECKING:
    import h5py

_BLOCK = 4096  # images read at a time for the checksum


class SceneFile:
    """An open file of scenes; images are read as they are asked for."""

    def __init__(self, file: str) -> None:
        """UsageError, naming the file, when it cannot be read or has another layout."""
        import h5py

        path = Path(file).expanduser()
        try:
            opened = h5py.File(path, "r")
        except OSError as error:
            raise UsageError(f"{path}: cannot read it as HDF5: {error}") from None
        self._images: dict[str, h5py.Dataset] = {}
        self._objects: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
        for part in ("train", "test"):
            try:
                images, objects = opened[f"{part}/full/image"], opened[f"{part}/full/bbox_w_c"]
                if images.ndim != 3 or objects.ndim != 3 or objects.shape[::2] != (len(images), 5):
                    raise UsageError(
                        f"{path}: {part}/full needs image [N, height, width] and bbox_w_c [N, max, 5], "
                        f"got {list(images.shape)} and {list(objects.shape)}"
                    )
                self._images[part], self._objects[part] = images, objects[:].astype(np.float32)
            except (KeyError, AttributeError, OSError) as error:
                raise UsageError(f"{path}: has no readable {part}/full/image and bbox_w_c: {error}") from None
        self._path = path
        self.shape = SceneShape(1, *self._images["train"].shape[1:])
        if self._images["test"].shape[1:] != self.shape[1:]:
            raise UsageError(f"{path}: the images of train and test are of different sizes")

    def size(self, split: Split) -> int:
        """How many scenes a split has."""
        _, first, end = self._range(split)
        return end - first

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, on the device that `indices` are on. IndexError past the end."""
        part, first, end = self._range(split)
        rows = (indices + first).cpu().numpy()
        if len(rows) and not first <= rows.min() <= rows.max() < end:
            raise IndexError(f"the {split} split has {end - first} scenes, asked for {indices.tolist()}")
        images = np.zeros((len(rows), *self.shape[1:]), self._images[part].dtype)
        try:
            for i, row in enumerate(rows):
                self._images[part].read_direct(images, np.s_[row], np.s_[i])
        except OSError as error:
            raise UsageError(f"{self._path}: cannot read an image: {error}") from None
        objects = torch.from_numpy(self._objects[part][rows])  # [n, max, 5]
        image, slot = torch.nonzero(objects[:, :, 4] > 0, as_tuple=True)
        left_top, size, label = objects[image, slot].split([2, 2, 1], dim=1)
        return Scenes(
            (torch.from_numpy(images).float()[:, None] / self._white).to(indices.device),
            GroundTruth(
                images=len(rows),
                image=image.to(indices.device),
                boxes=torch.cat([left_top, left_top + size], dim=1).to(indices.device),
                labels=label.flatten().long().sub(1).to(indices.device),
            ),
        )

    def fingerprint(self) -> dict[str, Any]:
        """How many scenes, and the checksum of images and boxes, however the file compresses them."""
        return {
            "digits": "HDF5 file of scenes",
            "counts": {split: self.size(split) for split in ("train", "validation", "test")},
            "sha256": self._checksum,
        }

    @cached_property
    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for part, images in self._images.items():
            digest.update(f"{images.shape} {images.dtype}".encode() + self._objects[part].tobytes())
            for start in range(0, len(images), _BLOCK):
                digest.update(images[start : start + _BLOCK].tobytes())
        return digest.hexdigest()

    @cached_property
    def _white(self) -> float:
        """The value of white: 1 in a file of floating-point images in 0..1, else 255."""
        images = self._images["train"]
        return 1.0 if images.dtype.kind == "f" and images[:_BLOCK].max(initial=0) <= 1 else 255.0

    def _range(self, split: Split) -> tuple[str, int, int]:
        """The part of the file a split is in, its first scene and the one after its last."""
        if split == "test":
            return "test", 0, len(self._images["test"])
        held_out = len(self._images["train"]) * 9 // 10
        if split == "train":
            return "train", 0, held_out
        return "train", held_out, len(self._images["train"])
