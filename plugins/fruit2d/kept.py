"""Finite sets of scenes whose images are made once, kept in the cache, and mapped into memory after that."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objbench.scenes import GroundTruth, Scenes, SceneSource, Split

Bytes = NDArray[np.uint8]


class KeptScenes(SceneSource):
    """A subclass says what is in its scenes and how one image is made; this makes, keeps and serves them."""

    name: str
    """Of the data set; also of its files in the cache."""
    truth: dict[Split, GroundTruth]
    """Everything that is in the scenes of each split."""

    @abstractmethod
    def picture(self, split: Split, index: int) -> Bytes:
        """[channels, height, width] one image; depends on nothing but these, `recipe` and the source."""

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """JSON values that the images depend on, the source of this package not counted."""

    def size(self, split: Split) -> int:
        """How many scenes a split has."""
        return self.truth[split].images

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, on the device that `indices` are on. IndexError past the end."""
        images = self._images(split, indices.device)[indices].float().div_(255)
        return Scenes(images, _chosen(self.truth[split], indices))

    def _images(self, split: Split, device: torch.device) -> Tensor:
        """[size, channels, height, width] uint8, all of a split."""
        if (split, device) not in self._at_hand:
            self._at_hand[split, device] = torch.from_numpy(self._kept(split)).to(device)
        return self._at_hand[split, device]

    @cached_property
    def _at_hand(self) -> dict[tuple[Split, torch.device], Tensor]:
        return {}

    def _kept(self, split: Split) -> Bytes:
        shape = (self.size(split), *self.shape)
        file = self._file(split)
        try:
            return read_images(file, shape)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            print(f"{self.name}: {file}: {error}; made again", file=sys.stderr)
        images = np.empty(shape, np.uint8)
        _, height, width = self.shape
        for i in _shown(range(len(images)), f"{self.name}: making {split} images of {width}x{height}"):
            images[i] = self.picture(split, i)
        try:
            write_images(file, images)
            for outdated in file.parent.glob(f"{file.name.rpartition('-')[0]}-*.images"):
                if outdated != file:
                    outdated.unlink(missing_ok=True)
        except OSError as error:
            print(
                f"{self.name}: cannot keep the images ({error}); they are made again next time",
                file=sys.stderr,
            )
        return images

    def _file(self, split: Split) -> Path:
        """Named by all that the images are made from: the recipe, and every line of this package."""
        recipe = hashlib.sha256(json.dumps([self.recipe(), self.shape], sort_keys=True).encode())
        source = hashlib.sha256()
        for file in sorted(Path(__file__).parent.glob("*.py")):
            source.update(file.read_bytes())
        made_from = f"{recipe.hexdigest()[:12]}-{source.hexdigest()[:12]}"
        return cache_folder() / f"{self.name}-{split}-{made_from}.images"


def cache_folder() -> Path:
    """Where images are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("objbench") / "fruit2d"


def write_images(file: Path, images: Bytes) -> None:
    """Writes a checksum and the images beside `file`, then renames: whoever reads it reads all of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")  # one for each process
    try:
        with beside.open("wb") as out:
            out.write(hashlib.sha256(images).digest())
            out.write(images)
        os.replace(beside, file)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def read_images(file: Path, shape: tuple[int, ...]) -> Bytes:
    """Maps what `write_images` wrote into memory. ValueError when it is cut short or altered."""
    data = np.memmap(file, np.uint8, mode="c")
    digest, images = data[:32], data[32:]
    if len(images) != np.prod(shape):
        raise ValueError(f"holds {len(images)} bytes of images where {np.prod(shape)} belong")
    if hashlib.sha256(images).digest() != digest.tobytes():
        raise ValueError("was altered (its checksum differs)")
    return images.reshape(shape)


def _chosen(truth: GroundTruth, indices: Tensor) -> GroundTruth:
    """The truth of the images at `indices`, in that order."""
    counts = torch.bincount(truth.image, minlength=truth.images)
    starts = counts.cumsum(0) - counts
    counts, starts = counts[indices.cpu()], starts[indices.cpu()]
    image = torch.repeat_interleave(torch.arange(len(counts)), counts)
    objects = torch.arange(len(image)) + (starts - (counts.cumsum(0) - counts))[image]
    device = indices.device
    return GroundTruth(
        len(counts), image.to(device), truth.boxes[objects].to(device), truth.labels[objects].to(device)
    )


def _shown(steps: range, what: str) -> Iterator[int]:
    """The steps, with a progress bar on stderr; a line only where stderr is no terminal."""
    if not sys.stderr.isatty():
        print(f"{what} ({len(steps)}, once)", file=sys.stderr)
        yield from steps
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(steps, what, console=Console(stderr=True))
