"""Decoded pictures: made once, kept in the cache folder, mapped into memory after that."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objbench import images as reader
from objbench.errors import UsageError
from objbench.writing import write_file
from objbench_plugins.folder.placing import placing_of

VERSION = 1
"""Raised when the same pictures are decoded in another way."""


@dataclass(frozen=True)
class Decoded:
    """All pictures of a folder that can be read."""

    names: list[str]
    """Paths from the folder, in order."""
    sizes: list[tuple[int, int]]
    """Width and height of each picture in its file, after the turn that EXIF asks for."""
    images: NDArray[np.uint8]
    """`[n, channels, size, size]`, mapped from the file in the cache."""
    broken: list[str]
    """An error message for each picture that cannot be read."""
    broken_names: list[str]
    turned: list[str]
    """Names of those that EXIF asked to turn."""
    checksum: str
    """Of names and contents of all files, in order."""


def cache_folder() -> Path:
    """Where decoded pictures are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("objbench") / "folder"


def decode(
    root: Path,
    files: Sequence[Path],
    size: int,
    fit: str,
    behind: tuple[int, int, int],
    channels: str,
) -> Decoded:
    """The pictures `files` of the folder `root` as scenes of that size; from the cache if they are there.

    channels: grey, colour, or auto. UsageError when there is no place to keep them, no picture can be read, or grey
    was asked for and a picture has colours.
    """
    names = [str(file.relative_to(root)) for file in files]
    digests = _digests(root, files)
    checksum = hashlib.sha256(json.dumps([names, digests]).encode()).hexdigest()
    recipe = json.dumps([VERSION, reader.VERSION, checksum, size, fit, behind, channels])
    stem = hashlib.sha256(recipe.encode()).hexdigest()[:24]
    listing, pixels = cache_folder() / f"{stem}.json", cache_folder() / f"{stem}.pixels"
    about = _kept(listing, pixels)
    if about is None:
        about = _make(root, names, size, fit, behind, channels, listing, pixels)
    images = np.memmap(pixels, np.uint8, mode="c", shape=tuple(about["shape"]))
    return Decoded(
        about["names"],
        [(width, height) for width, height in about["sizes"]],
        images,
        about["broken"],
        about["broken_names"],
        about["turned"],
        checksum,
    )


def _kept(listing: Path, pixels: Path) -> dict[str, Any] | None:
    """What an earlier call wrote; None when it is not there, or not whole."""
    try:
        about: dict[str, Any] = json.loads(listing.read_bytes())
        if pixels.stat().st_size == np.prod(about["shape"]) > 0:
            return about
    except (OSError, ValueError, KeyError):
        pass
    return None


def _make(
    root: Path,
    names: list[str],
    size: int,
    fit: str,
    behind: tuple[int, int, int],
    channels: str,
    listing: Path,
    pixels: Path,
) -> dict[str, Any]:
    """Decodes the pictures into a file in the cache, one after another; so little of it is in memory."""
    kept: list[str] = []
    sizes: list[tuple[int, int]] = []
    broken: list[str] = []
    broken_names: list[str] = []
    turned: list[str] = []
    coloured = ""
    depth = 1 if channels == "grey" else 3
    beside = pixels.with_name(f".{pixels.name}.{os.getpid()}")
    try:
        pixels.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as out:
            for name in _shown(names, f"folder: decoding {len(names):,} pictures"):
                try:
                    picture = reader.read_picture(root / name, behind)
                except UsageError as error:
                    broken.append(str(error))
                    broken_names.append(name)
                    continue
                height, width, _ = picture.pixels.shape
                if not coloured and reader.with_channels(picture, 1) is None:
                    coloured = name
                    if channels == "grey":
                        raise UsageError(f"folder.channels=grey, but {root / name} has colours")
                values = reader.with_channels(picture, depth)
                assert values is not None
                background = behind if depth == 3 else (_grey(behind),)
                scene = placing_of((width, height), size, fit).of_pixels(values, background)
                out.write(scene.transpose(2, 0, 1).tobytes())
                kept.append(name)
                sizes.append((width, height))
                turned += [name] if picture.turned else []
        if not kept:
            raise UsageError(f"{root}: none of its {len(names)} pictures can be read; {broken[0]}")
        shape = [len(kept), depth, size, size]
        if channels == "auto" and not coloured and behind[0] == behind[1] == behind[2]:
            shape[1] = 1
            _first_channels(beside, size)
        about = {
            "names": kept,
            "sizes": sizes,
            "shape": shape,
            "broken": broken,
            "broken_names": broken_names,
            "turned": turned,
        }
        os.replace(beside, pixels)
        write_file(listing, json.dumps(about).encode())
    except OSError as error:
        raise UsageError(
            f"folder: cannot keep decoded pictures in {pixels.parent}: {error.strerror}"
        ) from None
    finally:
        with suppress(OSError):
            beside.unlink()
    return about


def _grey(colour: tuple[int, int, int]) -> int:
    """Its luminance, as pillow has it."""
    red, green, blue = colour
    return (299 * red + 587 * green + 114 * blue) // 1000


def _first_channels(file: Path, size: int) -> None:
    """Keeps the first of three equal channels of every scene in the file, in place."""
    plane = size * size
    with file.open("r+b") as both:
        scenes = both.seek(0, os.SEEK_END) // (3 * plane)
        for i in range(scenes):
            both.seek(3 * plane * i)
            first = both.read(plane)
            both.seek(plane * i)
            both.write(first)
        both.truncate(scenes * plane)


def _digests(root: Path, files: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file; read again only where its size or time has changed since the last call.

    "" for a file that cannot be read, such as a link to nothing: it is then a broken picture.
    """
    index = cache_folder() / f"index-{hashlib.sha256(str(root).encode()).hexdigest()[:24]}.json"
    known: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(index.read_bytes())
    now: dict[str, list[Any]] = {}
    for file in files:
        name = str(file.relative_to(root))
        try:
            status = file.stat()
            seen = known.get(name)
            if seen and seen[:2] == [status.st_size, status.st_mtime_ns]:
                now[name] = seen
                continue
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError:
            continue
        now[name] = [status.st_size, status.st_mtime_ns, digest]
    if now != known:
        with suppress(OSError):  # it only saves time
            index.parent.mkdir(parents=True, exist_ok=True)
            write_file(index, json.dumps(now).encode())
    return [now.get(str(file.relative_to(root)), [0, 0, ""])[2] for file in files]


def _shown(names: Sequence[str], what: str) -> Iterator[str]:
    """The names, with a progress bar on stderr; one line where stderr is no terminal."""
    if not sys.stderr.isatty():
        print(f"{what} (once)", file=sys.stderr)
        yield from names
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(names, what, console=Console(stderr=True))
