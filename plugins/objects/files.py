"""HDF5 and npz files of multi-object scenes: which arrays are what, and their rows.

Layouts that are read, by the names and shapes of arrays (N scenes, K entities, of which the first are background):

- OCLib (Dittadi et al. 2022, object-centric-library): `image` [N, H, W, C], `mask` [N, H, W, 1] with the entity's
  number, factors such as `shape` [N, K, 1] and `visibility` [N, K] beside them;
- EfficientMORL (Emami et al. 2021): groups `train`, `val`, `test` with `imgs` [N, H, W, C], `masks` [N, K, H, W, C] and
  `factors`;
- npz with arrays of these names; those of a split as `train/imgs`.

Images may be [N, C, H, W], masks [N, H, W], [N, K, H, W] or [N, H, W, K] too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from objbench.errors import UsageError
from objbench.scenes import Split
from objbench.writing import write_file

IMAGES = ("image", "images", "imgs")
MASKS = ("mask", "masks")
NOT_FACTORS = (*IMAGES, *MASKS, "visibility", "num_actual_objects")
SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of groups, or of files in a folder, that hold a split."""
SUFFIXES = (".h5", ".hdf5", ".npz")
CHANNELS = (1, 3)
MOST_ENTITIES = 254

_BAD = (
    OSError,
    KeyError,
    AttributeError,
    RuntimeError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    EOFError,
)
"""The errors that h5py, numpy and zipfile raise for a damaged file."""


class Part:
    """The scenes of one split, or of all: their images, masks and factors."""

    def __init__(self, where: str, arrays: Mapping[str, Any]) -> None:
        """arrays: names -> arrays or HDF5 data sets. UsageError, which begins with `where`, when they do not fit."""
        self.where, self.names = where, sorted(arrays)
        self._images = self._one_of(arrays, IMAGES)
        self._masks = self._one_of(arrays, MASKS)
        self.count = self._images.shape[0] if self._images.shape else 0
        self.channels_first, self.channels, self.height, self.width = self._image_layout()
        self.stacked = self._mask_layout()
        if not self.count:
            raise UsageError(f"{where} has no scenes")
        self.factors: dict[str, Any] = {
            name.rpartition("/")[2]: array
            for name, array in arrays.items()
            if name.rpartition("/")[2] not in NOT_FACTORS and array.shape[:1] == (self.count,)
        }
        self.visibility = next((a for n, a in arrays.items() if n.rpartition("/")[2] == "visibility"), None)

    def images(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The images [n, C, H, W] of these rows; bytes become 0..1, other numbers stay what they are."""
        values = self._rows(self._images, rows, "an image")
        values = values.reshape(len(rows), *self._images.shape[1:])
        if values.ndim == 3:
            values = values[:, None]
        elif not self.channels_first:
            values = values.transpose(0, 3, 1, 2)
        scale = np.float32(255) if values.dtype == np.uint8 else np.float32(1)
        found: NDArray[np.float32] = values.astype(np.float32) / scale
        return found

    def entities(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The pixels of each entity, [n, K, H, W]; K is the same for all scenes only where the file stacks masks."""
        values = self._rows(self._masks, rows, "a mask")
        values = values > 0.5 if self.stacked and values.dtype.kind == "f" else values
        if self.stacked == "last":
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        if self.stacked:  # [n, K, H, W] or [n, K, H, W, C]
            return np.asarray((values if values.ndim == 4 else values[..., 0]) != 0)
        number = values.reshape(len(rows), self.height, self.width)
        most = int(number.max(initial=0))
        if number.min(initial=0) < 0 or most > MOST_ENTITIES or (number != np.round(number)).any():
            raise UsageError(
                f"{self.where}: masks hold {number.min():g} to {number.max():g}; they must be numbers of entities, "
                f"0 to {MOST_ENTITIES}"
            )
        return np.asarray(number[:, None] == np.arange(most + 1)[:, None, None])

    def factor(self, name: str) -> NDArray[np.int64]:
        """A categorical factor of each entity, [N, K]. UsageError when there is none of this name."""
        if name not in self.factors:
            known = ", ".join(sorted(self.factors)) or "none"
            raise UsageError(f"{self.where}: no factor '{name}' (factors: {known})")
        with self._reading(f"factor '{name}' cannot be read"):
            values = np.asarray(self.factors[name][...])
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[:, :, 0]
        whole = values.dtype.kind in "bui" or (
            values.dtype.kind == "f" and bool((values == np.round(values)).all())
        )
        if values.ndim != 2 or not whole:
            raise UsageError(
                f"{self.where}: '{name}' {list(values.shape)} of type {values.dtype} is no class: "
                "that is a whole number for each entity, [N, K]"
            )
        return values.astype(np.int64)

    def _one_of(self, arrays: Mapping[str, Any], names: tuple[str, ...]) -> Any:
        for name in names:
            if name in arrays:
                array = arrays[name]
                if array.dtype.kind not in "buif":
                    raise UsageError(f"{self.where}: {name} holds no numbers (its type is {array.dtype})")
                return array
        held = ", ".join(self.names[:8]) + ", ..." * (len(self.names) > 8)
        raise UsageError(f"{self.where}: no array {' or '.join(names)}; it holds {held or 'nothing'}")

    def _image_layout(self) -> tuple[bool, int, int, int]:
        """Whether channels come first, and channels, height and width."""
        shape = self._images.shape
        if len(shape) == 3:
            return False, 1, *shape[1:]
        if len(shape) == 4 and shape[3] in CHANNELS:
            return False, shape[3], *shape[1:3]
        if len(shape) == 4 and shape[1] in CHANNELS:
            return True, *shape[1:]
        raise UsageError(
            f"{self.where}: images of shape {list(shape)}; [N, H, W, C] is needed, with 1 or 3 channels"
        )

    def _mask_layout(self) -> Literal["", "first", "last"]:
        """Where the axis of entities is; "" when masks hold the entity's number."""
        shape, side = self._masks.shape, (self.height, self.width)
        if shape[:1] == (self.count,):
            if shape[1:] in (side, (*side, 1), (1, *side), (1, *side, 1)):
                return ""
            if shape[2:4] == side and len(shape) in (4, 5):
                return "first"
            if shape[1:3] == side and len(shape) == 4:
                return "last"
        raise UsageError(
            f"{self.where}: masks of shape {list(shape)} do not fit images of shape {list(self._images.shape)}: "
            "[N, H, W, 1] with the entity's number, or [N, K, H, W, 1]"
        )

    def _rows(self, array: Any, rows: NDArray[np.int64], what: str) -> NDArray[Any]:
        """These rows, which may repeat: each is read once, in the order of the file."""
        with self._reading(f"{what} cannot be read"):
            some, back = np.unique(rows, return_inverse=True)
            if len(some) and some[-1] - some[0] == len(some) - 1:
                values = np.asarray(array[int(some[0]) : int(some[-1]) + 1])
            else:
                values = np.asarray(array[some])
            return values[back]

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except _BAD as error:
            raise UsageError(f"{self.where}: {what} ({_line(error)})") from None


def parts_of(path: Path) -> dict[Split | None, Part]:
    """The splits of a file, or of a folder with a file for each; None stands for all scenes, where there are no splits.

    UsageError with the file's name when it cannot be read or has another layout.
    """
    if path.is_dir():
        found = {split: _file_of(path, names) for split, names in SPLITS.items()}
        if not found["train"]:
            raise UsageError(f"{path}: no train.h5, train.hdf5 or train.npz in this folder")
        return {split: Part(str(file), _arrays(file)) for split, file in found.items() if file}
    arrays = _arrays(path)
    groups = {
        split: next((name for name in names if any(a.startswith(f"{name}/") for a in arrays)), None)
        for split, names in SPLITS.items()
    }
    if not groups["train"]:
        return {None: Part(str(path), arrays)}
    return {
        split: Part(
            f"{path}: {group}",
            {name.removeprefix(f"{group}/"): a for name, a in arrays.items() if name.startswith(f"{group}/")},
        )
        for split, group in groups.items()
        if group
    }


def files_of(path: Path) -> list[Path]:
    """The files that `parts_of` reads."""
    if not path.is_dir():
        return [path]
    return [file for names in SPLITS.values() if (file := _file_of(path, names))]


def _file_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    places = (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def _arrays(path: Path) -> dict[str, Any]:
    """All arrays of a file by name; those of an HDF5 file stay on the disk, those of an npz are read."""
    import h5py

    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                size = sum(entry.file_size for entry in archive.zip.infolist())
                if size > _MOST_BYTES:
                    raise UsageError(
                        f"{path}: {size / 1e9:.1f} GB of arrays, more than an npz is read of; write them as HDF5"
                    )
                return {
                    name: archive[name] for name in archive.files if name.rpartition("/")[2] != "metadata"
                }
        opened = h5py.File(path, "r")
        arrays: dict[str, Any] = {}

        def add(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                arrays[name] = item

        opened.visititems(add)
        return arrays
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except UsageError:
        raise
    except _BAD as error:
        raise UsageError(f"{path}: cannot be read as HDF5 or npz ({_line(error)})") from None
    except Exception as error:  # zipfile has errors of its own
        raise UsageError(f"{path}: cannot be read as npz ({_line(error)})") from None


_MOST_BYTES = 2 * 10**9


def checksum(files: list[Path], index: Path) -> str:
    """The SHA-256 of the contents of files; a file is read again only when its size or time has changed.

    index: a file in the cache that remembers.
    """
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(index.read_bytes())
    now = {}
    for file in files:
        try:
            status = file.stat()
            seen = known.get(str(file))
            if not seen or seen[:2] != [status.st_size, status.st_mtime_ns]:
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                seen = [status.st_size, status.st_mtime_ns, digest]
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
        now[str(file)] = seen
    if now != known:
        with contextlib.suppress(OSError):  # it only saves time
            index.parent.mkdir(parents=True, exist_ok=True)
            write_file(index, json.dumps(now).encode())
    return hashlib.sha256("".join(now[str(file)][2] for file in files).encode()).hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
