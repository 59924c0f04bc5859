"""Multi-object scenes with masks from the user's HDF5 or npz files."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objbench.errors import UsageError
from objbench.masks import boxes_of, pack
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split
from objbench_plugins.objects import files

CLEVR = (240, 320)
CLEVR_CROP = (29, 221, 64, 256)
"""Rows and columns of CLEVR images that papers use: 192x192 pixels."""
AUTO = "auto"
NONE = "none"
_BATCH = 64


@dataclass(frozen=True)
class ObjectsConfig:
    """Options of `objects`."""

    file: str = option(
        "",
        "HDF5 or npz file with images and masks, or a folder with one for each of train, val and test",
        identity=False,
    )
    size: int = option(0, "side of a scene in pixels; 0 keeps that of the file, cropped", low=0, high=2048)
    crop: str = option(
        AUTO,
        "square: the middle; auto: of 240x320 pixels, as CLEVR has, rows 29 to 221 and columns 64 to 256; none",
        choices=(AUTO, "square", NONE),
    )
    background: int = option(
        1, "how many of the first entities are background: 1, but 4 in Objects Room", low=0, high=100
    )
    most: int = option(0, "only scenes with at most this many objects, such as 6 for CLEVR6; 0: all", low=0)
    classes: str = option(
        AUTO,
        f"factor that is the class; {AUTO}: shape, if the file has it; {NONE}: all objects are of one class",
    )
    validation: float = option(0.05, "share for validation, where the file has no splits", above=0, high=0.5)
    test: float = option(0.05, "share for the test, where the file has no splits", above=0, high=0.5)


class Objects(SceneSource):
    """Images and masks as `files` describes them; boxes are around the visible pixels of an object.

    Splits are those of the file; a split that is missing is a share of the training scenes, their last ones: first
    those for validation, then those for the test. An entity without a visible pixel is no object. Bytes are divided
    by 255.
    """

    Config = ObjectsConfig
    classes: tuple[str, ...] = ("object",)

    def __init__(self, config: ObjectsConfig, seed: int) -> None:
        """Opens the file. The seed chooses nothing. UsageError with the file's name when it cannot be used."""
        if not config.file:
            raise UsageError("the data set 'objects' needs a file of scenes: -o objects.file=FILE")
        self._config, self._path = config, Path(config.file).expanduser().resolve()
        self._parts = files.parts_of(self._path)
        whole = self._parts.get("train") or self._parts[None]
        for part in self._parts.values():
            if (part.channels, part.height, part.width) != (whole.channels, whole.height, whole.width):
                raise UsageError(
                    f"{part.where}: images of {part.width}x{part.height} pixels and {part.channels} channels; "
                    f"those of {whole.where} have {whole.width}x{whole.height} and {whole.channels}"
                )
        self._window = self._crop(whole)
        top, bottom, left, right = self._window
        side = (config.size, config.size) if config.size else (bottom - top, right - left)
        self.shape = SceneShape(whole.channels, *side)
        self._labels = self._classes(whole)
        self._splits = self._split(whole)

    def size(self, split: Split) -> int:
        """How many scenes a split has."""
        return len(self._splits[split][1])

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, on the device that `indices` are on. IndexError past the end."""
        part, of_split = self._splits[split]
        rows = of_split[indices.cpu().numpy()]
        images = self._resized(torch.from_numpy(self._cropped(part.images(rows))), "bilinear")
        entities = torch.from_numpy(self._cropped(part.entities(rows)))
        masks = self._resized(entities.float(), "nearest") > 0.5
        masks[:, : self._config.background] = False
        image, entity = torch.nonzero(masks.flatten(2).any(2), as_tuple=True)
        packed = pack(masks[image, entity])
        labels = self._labels_of(part, rows, image, entity)
        parts = (tensor.to(indices.device) for tensor in (image, boxes_of(packed), labels, packed))
        return Scenes(images.to(indices.device), GroundTruth(len(rows), *parts))

    def fingerprint(self) -> dict[str, Any]:
        """How many scenes a split has, and the checksum of the files."""
        return {"scenes": {split: self.size(split) for split in self._splits}, "sha256": self._checksum}

    def origin(self, split: Split, index: int) -> str:
        """The file, its group, and the row."""
        part, rows = self._splits[split]
        return f"{part.where}, row {rows[index]}"

    @cached_property
    def _checksum(self) -> str:
        found = files.files_of(self._path)
        name = hashlib.sha256(str(self._path).encode()).hexdigest()[:24]
        return files.checksum(found, cache_folder() / f"{name}.json")

    def _crop(self, part: files.Part) -> tuple[int, int, int, int]:
        """First and last row, first and last column of what is shown; the ends are exclusive."""
        height, width = part.height, part.width
        if self._config.crop == AUTO and (height, width) == CLEVR:
            return CLEVR_CROP
        if self._config.crop != "square":
            return 0, height, 0, width
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return top, top + side, left, left + side

    def _cropped(self, values: NDArray[Any]) -> NDArray[Any]:
        top, bottom, left, right = self._window
        return np.ascontiguousarray(values[:, :, top:bottom, left:right])

    def _resized(self, values: Tensor, mode: str) -> Tensor:
        """[n, k, *size] from [n, k, h, w]."""
        if values.shape[2:] == self.shape[1:] or not values.numel():
            return values.reshape(*values.shape[:2], *self.shape[1:])
        if mode == "nearest":
            return torch.nn.functional.interpolate(values, self.shape[1:], mode="nearest-exact")
        smooth = torch.nn.functional.interpolate(values, self.shape[1:], mode="bilinear", antialias=True)
        return torch.where((smooth > 1) & (smooth < 1 + 1e-5), 1.0, smooth)  # rounding

    def _classes(self, whole: files.Part) -> dict[str, NDArray[np.int64]]:
        """Of each part the class of each entity [N, K], or nothing where all objects are of one class."""
        name = self._config.classes
        if name == NONE or (name == AUTO and "shape" not in whole.factors):
            return {}
        name = "shape" if name == AUTO else name
        values = {part.where: part.factor(name) for part in self._parts.values()}
        seen = set[int]()
        for part in self._parts.values():
            of_objects = values[part.where]
            shown = _visible(part)
            if shown is not None and shown.shape == of_objects.shape:
                objects = of_objects[:, self._config.background :][shown[:, self._config.background :]]
            else:
                objects = of_objects[:, self._config.background :] if shown is None else of_objects
            seen.update(np.unique(objects).tolist())
        known = np.array(sorted(seen), dtype=np.int64)
        self.classes = tuple(f"{name} {value}" for value in known) or ("object",)
        places = {where: np.searchsorted(known, value) for where, value in values.items()}
        return {where: np.minimum(place, len(self.classes) - 1) for where, place in places.items()}

    def _labels_of(self, part: files.Part, rows: NDArray[np.int64], image: Tensor, entity: Tensor) -> Tensor:
        if part.where not in self._labels:
            return torch.zeros_like(image)
        of_part = self._labels[part.where]
        shown = _visible(part)
        column = entity.numpy()
        if shown is not None and of_part.shape[1] == shown.shape[1] - self._config.background:
            column = column - self._config.background
        if len(column) and column.max() >= of_part.shape[1]:
            row = int(rows[image[int(column.argmax())]])
            raise UsageError(
                f"{part.where}, row {row}: its masks have an entity {int(entity.max())}, but factors are of "
                f"{of_part.shape[1]} entities"
            )
        return torch.from_numpy(of_part[rows[image.numpy()], column])

    def _split(self, whole: files.Part) -> dict[Split, tuple[files.Part, NDArray[np.int64]]]:
        """The part and the rows of each split."""
        rows = {where: self._few_enough(part) for where, part in self._parts.items()}
        of_all = rows.get("train", rows.get(None))
        assert of_all is not None
        shares: dict[Split, float] = {"test": self._config.test, "validation": self._config.validation}
        found: dict[Split, tuple[files.Part, NDArray[np.int64]]] = {}
        total = len(of_all)
        for split in shares:
            if split in self._parts:
                found[split] = self._parts[split], rows[split]
            else:
                count = max(1, round(shares[split] * total))
                found[split], of_all = (whole, of_all[-count:]), of_all[:-count]
        found["train"] = whole, of_all
        for split, (part, chosen) in found.items():
            if not len(chosen):
                most = f" with at most {self._config.most} objects" if self._config.most else ""
                raise UsageError(f"{part.where}: {part.count} scenes, and none{most} is left for {split}")
        return {split: found[split] for split in get_args(Split)}

    def _few_enough(self, part: files.Part) -> NDArray[np.int64]:
        """The rows with at most `most` objects."""
        rows = np.arange(part.count)
        if not self._config.most:
            return rows
        shown = _visible(part)
        if shown is None:
            print(f"objects: counting the objects in {part.count:,} scenes of {part.where}", file=sys.stderr)
            blocks = (
                np.asarray(part.entities(some).any((2, 3)))[:, self._config.background :].sum(1)
                for some in np.split(rows, range(_BATCH, part.count, _BATCH))
            )
            counts = np.concatenate(list(blocks))
        else:
            counts = shown[:, self._config.background :].sum(1)
        return rows[counts <= self._config.most]


def _visible(part: files.Part) -> NDArray[np.bool_] | None:
    """Which entities are visible, [N, K]; None where the file does not say."""
    if part.visibility is None:
        return None
    shown = np.asarray(part.visibility[...]).reshape(part.count, -1)
    visible: NDArray[np.bool_] = np.greater(shown, 0)
    return visible


def cache_folder() -> Path:
    """Where checksums of files are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("objbench") / "objects"
