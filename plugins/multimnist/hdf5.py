"""The published HDF5 file of scenes (`scattered_mnist_128x128_obj14x14.hdf5`).

`{train,test}/full` hold `image` [N, height, width], `bbox_w_c` [N, max, 5] = (left, top, width, height,
digit + 1), padded with rows of a class of 0 or less, and `digit_count` [N, 1]. The last tenth of train is held
out for validation; digits may occur in both.

Files from other programs may differ: pixels may be 0..255, 0..1 or boolean (decided for each part), numbers may have
any type and byte order, images may have a channel axis of length one, and `digit_count` may be missing. Any other
deviation from the layout is refused before anything is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from objbench.errors import UsageError
from objbench.scenes import GroundTruth, Scenes, SceneShape, Split
from objbench_plugins.multimnist.digits import INK, SPLITS, looks_like

if TYPE_CHECKING:
    import h5py

Floats = npt.NDArray[np.float64]

CLASSES = 10
MOST_PIXELS = 4096
"""The largest side of a scene."""
MOST_NUMBERS = 200_000_000
"""The largest `bbox_w_c` of a part; a larger one would fill the memory. The published file has 3 million numbers."""

_BLOCK = 2**24  # bytes of images read at once, approximately
_ROUNDING = 1e-3  # pixels that a box may exceed the image's edge by, because of single-precision rounding
_BAD = (OSError, KeyError, AttributeError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError)
"""The errors that h5py raises for a damaged file."""


class Part:
    """One part of the file, `train` or `test`: its images, and the objects in its table."""

    def __init__(self, path: Path, opened: h5py.File, name: str) -> None:
        """UsageError with file, part and row when it does not have the layout."""
        self.where = f"{path}: {name}/full"
        with self._reading("has no readable image and bbox_w_c"):
            group = opened[f"{name}/full"]
            self._images, table = group["image"], group["bbox_w_c"]
            image_shape, table_shape = tuple(self._images.shape), tuple(table.shape)
            kinds = self._images.dtype.kind, table.dtype.kind
        self.count = image_shape[0] if image_shape else 0
        sides = _grey(image_shape)
        if sides is None or len(table_shape) != 3 or table_shape[::2] != (self.count, 5):
            raise UsageError(
                f"{self.where} needs image [N, height, width] and bbox_w_c [N, max, 5], "
                f"got {list(image_shape)} and {list(table_shape)}"
            )
        for what, kind in zip(("image", "bbox_w_c"), kinds, strict=True):
            if kind not in "buif":
                raise UsageError(f"{self.where}/{what} holds no numbers (its type is of kind '{kind}')")
        if not self.count:
            raise UsageError(f"{self.where} has no scenes; the train and the test part both need some")
        if not all(1 <= side <= MOST_PIXELS for side in sides) or math.prod(table_shape) > MOST_NUMBERS:
            raise UsageError(
                f"{self.where} claims {self.count:,} images of {sides[1]}x{sides[0]} pixels with up to "
                f"{table_shape[1]:,} objects each, more than can be read; the file is probably damaged"
            )
        self.height, self.width = sides
        with self._reading("its bbox_w_c cannot be read"):
            self.table: Floats = np.asarray(table[:]).astype(np.float64)  # [N, max, 5]
        counts: Floats | None = None
        with self._reading("its digit_count cannot be read"):
            if "digit_count" in group:
                counts = np.asarray(group["digit_count"][...])
                if counts.dtype.kind not in "buif":
                    raise TypeError("it holds no numbers")
                counts = counts.astype(np.float64)
        self.real = self.table[:, :, 4] > 0  # [N, max] rows that are objects
        self._check_table(counts)

    def pixels(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The images [n, height, width] of these rows, in 0..1. UsageError when one with objects is almost black."""
        images = np.empty((len(rows), self.height, self.width), np.float32)
        white = self.white
        with self._reading("an image cannot be read"):
            if len(rows) and (np.diff(rows) == 1).all():  # at once: each compressed chunk is unpacked once
                images[:] = np.asarray(self._images[rows[0] : rows[-1] + 1]).reshape(images.shape)
            else:
                for i, row in enumerate(rows.tolist()):
                    images[i] = np.asarray(self._images[row]).reshape(images.shape[1:])
        most = images.max((1, 2), initial=0)  # NaN where one pixel is NaN
        for i in np.flatnonzero((most <= white / 255) & self.real[rows].any(1))[:1].tolist():
            why = (
                "its pixels seem to be 0..1, those of other scenes are 0..255"
                if most[i] > 0
                else "it is black"
            )
            raise UsageError(
                f"{self.where}, row {rows[i]}: has {self.real[rows[i]].sum()} objects, but no pixel above "
                f"{most[i]:g}, where white is {white:g}: {why}"
            )
        return images / np.float32(white)

    def digest(self, update: Callable[[bytes], None]) -> None:
        """Adds the contents of the part to a checksum, independent of how the file stores them."""
        update(f"{self._images.shape} {self._images.dtype} {self.white}".encode() + self.table.tobytes())
        for block in self._blocks():
            update(block.tobytes())

    @cached_property
    def white(self) -> float:
        """The value of white in this part: 1 or 255. UsageError when its pixels have another range.

        Reads images until one pixel is bright enough to decide. The harness checks that all others are in range.
        """
        kind = self._images.dtype.kind
        low, high = math.inf, -math.inf
        for block in self._blocks():
            if kind == "f":
                block = block[np.isfinite(block)]  # the harness refuses other values and names their scene
            if block.size:
                low, high = min(low, float(block.min())), max(high, float(block.max()))
            if (kind == "f" and INK / 255 < high <= 1) or high > INK:
                break
        if low < 0 or high > 255:
            known = "pixels are read as 0..1 or as 0..255"
            raise UsageError(f"{self.where}/image has pixels from {low:g} to {high:g}; {known}")
        black = high <= 0 and not self.real.any()
        if black or (0 < high <= 1 and (kind != "f" or high > INK / 255)):
            return 1.0
        if high > INK:
            return 255.0
        raise UsageError(
            f"{self.where}/image has pixels from {low:g} to {high:g}: too dark for digits, whether white is 1 or 255"
        )

    def _blocks(self) -> Iterator[npt.NDArray[Any]]:
        step = max(1, _BLOCK // (self.height * self.width * self._images.dtype.itemsize))
        for start in range(0, self.count, step):
            with self._reading("its images cannot be read"):
                block = np.asarray(self._images[start : start + step])
            yield block

    def _check_table(self, counts: Floats | None) -> None:
        """UsageError unless every object has a digit and a box inside the image, and all counts are correct."""
        boxes, kinds = self.table[:, :, :4], self.table[:, :, 4]
        if (bad := ~np.isfinite(self.table).all(2)).any():
            raise self._refusal(bad, "is not finite")
        sized = (boxes[:, :, 2:] > 0).all(2) & (boxes[:, :, :2] >= 0).all(2)
        if (bad := sized & (kinds == 0)).any():
            raise self._refusal(
                bad, "has a box but class 0", "the labels seem to count from 0; here they are the digit + 1"
            )
        if (bad := self.real & ((kinds != np.round(kinds)) | (kinds > CLASSES))).any():
            raise self._refusal(bad, f"has a class that is not 1 to {CLASSES}", "a class is the digit + 1")
        x, y, w, h = np.moveaxis(boxes, 2, 0)
        fits = [_near(e, limit) for e, limit in ((x + w, self.width), (y + h, self.height))]
        outside = (x < -_ROUNDING) | (y < -_ROUNDING) | ~fits[0] | ~fits[1]
        bad = self.real & (outside | (w <= 0) | (h <= 0))
        if bad.any():
            what = "leaves the image" if (outside & bad).any() else "has no size"
            raise self._refusal(bad & outside if (outside & bad).any() else bad, what, self._looks_like())
        if self.real.any() and boxes[self.real].max() <= 1 and min(self.width, self.height) > 2:
            what = "lies, as all others, within the first pixel"
            raise self._refusal(self.real, what, "the boxes seem to be fractions of the image, not pixels")
        if counts is None:
            return
        if counts.size != self.count:
            raise UsageError(
                f"{self.where} has {self.count} images, but digit_count has {list(counts.shape)}"
            )
        present = self.real.sum(1)
        if (differ := counts.reshape(-1) != present).any():
            row = int(differ.argmax())
            raise UsageError(
                f"{self.where}, row {row}: digit_count is {counts.reshape(-1)[row]:g}, but bbox_w_c has "
                f"{present[row]} objects with a class from 1 to {CLASSES} ({int(differ.sum())} rows contradict; "
                "if labels count from 0, add 1)"
            )

    def _looks_like(self) -> str:
        """A hint which other layout fits the boxes, if not left, top, width, height."""
        x, y, z, t = self.table[self.real][:, :4].T
        inside = (x >= 0) & (y >= 0)
        if (inside & (z > x) & (t > y) & _near(z, self.width) & _near(t, self.height)).all():
            return "the boxes seem to be x0, y0, x1, y1; here they are left, top, width, height"
        centred = (x - z / 2 > -1) & (y - t / 2 > -1) & (z > 0) & (t > 0)
        if (centred & (x + z / 2 < self.width + 1) & (y + t / 2 < self.height + 1)).all():
            return "the boxes seem to give their centres; here they are left, top, width, height"
        return "boxes are left, top, width, height in pixels"

    def _refusal(self, bad: npt.NDArray[np.bool_], what: str, hint: str = "") -> UsageError:
        """An error that shows the first of the bad rows, and counts them."""
        scene, row = (int(i) for i in np.argwhere(bad)[0])
        values = ", ".join(f"{v:g}" for v in self.table[scene, row])
        more = f"; {int(bad.sum())} rows are like this" if bad.sum() > 1 else ""
        why = f": {hint}" if hint else ""
        return UsageError(
            f"{self.where}, scene {scene}, row {row} of its bbox_w_c: [{values}] {what} "
            f"({self.width}x{self.height} pixels{more}){why}"
        )

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except _BAD as error:
            raise UsageError(f"{self.where} {what}: {' '.join(str(error).split())[:200]}") from None


class SceneFile:
    """An open file of scenes; images are read when they are requested."""

    def __init__(self, file: str) -> None:
        """UsageError with the file's name when it cannot be read or has another layout."""
        import h5py

        path = Path(file).expanduser()
        try:
            opened = h5py.File(path, "r")
        except _BAD as error:
            raise UsageError(f"{path}: cannot read it as HDF5: {_reason(path, error)}") from None
        with contextlib.suppress(*_BAD):  # a damaged file is refused below
            for name in ("train/full/image", "train/full/bbox_w_c", "test/full/image", "test/full/bbox_w_c"):
                if name not in opened:
                    raise UsageError(f"{path}: has no {name}; {_held(opened)}")
        self._parts = {name: Part(path, opened, name) for name in ("train", "test")}
        train, test = self._parts.values()
        if train.count < 2:
            raise UsageError(
                f"{train.where} has one scene; one more is needed, to be held out for validation"
            )
        if (train.height, train.width) != (test.height, test.width):
            raise UsageError(f"{path}: the images of train and test are of different sizes")
        self.shape = SceneShape(1, train.height, train.width)

    def size(self, split: Split) -> int:
        """How many scenes a split has."""
        _, first, end = self._range(split)
        return end - first

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, on the device of `indices`. IndexError past the end."""
        part, first, end = self._range(split)
        rows = (indices + first).cpu().numpy()
        if len(rows) and not first <= rows.min() <= rows.max() < end:
            raise IndexError(f"the {split} split has {end - first} scenes, asked for {indices.tolist()}")
        images = part.pixels(rows)
        image, slot = np.nonzero(part.real[rows])
        left, top, width, height, label = part.table[rows][image, slot].T
        boxes = np.stack([left, top, left + width, top + height], axis=1).astype(np.float32)
        boxes = boxes.clip(0, np.float32([part.width, part.height] * 2))  # removes rounding errors
        return Scenes(
            torch.from_numpy(images)[:, None].to(indices.device),
            GroundTruth(
                images=len(rows),
                image=torch.from_numpy(image).to(indices.device),
                boxes=torch.from_numpy(boxes).to(indices.device),
                labels=torch.from_numpy(label.astype(np.int64) - 1).to(indices.device),
            ),
        )

    def origin(self, split: Split, index: int) -> str:
        """File, part and row of a scene."""
        part, first, _ = self._range(split)
        return f"{part.where}, row {first + index}"

    def fingerprint(self) -> dict[str, Any]:
        """The number of scenes, and the checksum of images and boxes, independent of compression."""
        return {
            "digits": "HDF5 file of scenes",
            "counts": {split: self.size(split) for split in SPLITS},
            "sha256": self._checksum,
        }

    @cached_property
    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for part in self._parts.values():
            part.digest(digest.update)
        return digest.hexdigest()

    def _range(self, split: Split) -> tuple[Part, int, int]:
        """The part of the file that contains a split, its first scene, and the scene after its last."""
        train, test = self._parts["train"], self._parts["test"]
        if split == "test":
            return test, 0, test.count
        held_out = train.count * 9 // 10
        return (train, 0, held_out) if split == "train" else (train, held_out, train.count)


def _reason(path: Path, error: Exception) -> str:
    """Why a file is no HDF5 file: its actual format, or the library's error."""
    try:
        with path.open("rb") as file:
            begins = file.read(256)
        if not begins.startswith(b"\x89HDF"):
            return looks_like(begins)
    except OSError as wrong:
        return wrong.strerror or str(wrong)
    return " ".join(str(error).split())[:200]


def _held(opened: h5py.File) -> str:
    """The actual contents of a file that lacks a required part."""
    names: list[str] = []
    with contextlib.suppress(*_BAD):
        opened.visit(names.append)
    return f"it holds {', '.join(names[:8])}{', ...' * (len(names) > 8)}" if names else "it holds nothing"


def _grey(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of images [N, height, width], possibly with a channel axis of one; None for other shapes."""
    if len(shape) == 4 and 1 in (shape[1], shape[3]):
        return (shape[2], shape[3]) if shape[1] == 1 else (shape[1], shape[2])
    return (shape[1], shape[2]) if len(shape) == 3 else None


def _near(edge: Floats, limit: int) -> npt.NDArray[np.bool_]:
    """True if an edge is inside the image, up to single-precision rounding."""
    return np.asarray(edge <= limit + _ROUNDING)
