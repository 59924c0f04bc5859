"""Finds picture files, pairs them with other files, and reads their pixels.

A picture is grey or in colour, with 8 bits per value, for every kind of file:

- 16 bits become 8 by division by 257, so that white stays white (for colour, pillow drops the lower 8 bits). A 16-bit
  grey picture with all values in 0..255 would be black, and is refused;
- 1 bit becomes 0 and 255; palette, CMYK and other modes are converted to grey or RGB;
- transparent pixels show the colour behind them: black, or another colour that the caller chooses;
- a rotation or mirroring in the EXIF data is applied, and `Picture.turned` is then True.

Any error in a file raises UsageError: one line with the file's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from objbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

VERSION = 1
"""To be raised when the same file gives other pixels; part of the name under which pictures are cached."""
SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
"""Formats by content, not by suffix; a file of another format is refused."""
GREY, COLOUR = 1, 3
BLACK = (0, 0, 0)


class Picture(NamedTuple):
    """The contents of a picture file."""

    pixels: NDArray[np.uint8]
    """[height, width, channels]; one channel (GREY) or three (COLOUR: red, green, blue)."""
    turned: bool
    """True if the EXIF data asked for a rotation or mirroring, which was applied."""


def read_picture(path: Path, behind: tuple[int, int, int] = BLACK) -> Picture:
    """The picture in a PNG or JPEG file, grey or in colour like the file. behind: red, green, blue in 0..255."""
    with _opened(path) as image:
        turned = _turned(image)
        return Picture(_pixels(_upright(image), path, behind), turned)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of the picture in a PNG or JPEG file, after its EXIF rotation. Its pixels are not checked."""
    with _opened(path) as image:
        # Only EXIF data at the beginning of the file is used: pillow would read the whole picture to find other EXIF.
        across = "exif" in image.info and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        width, height = image.size
        return (height, width) if across else (width, height)


def with_channels(picture: Picture, channels: int) -> NDArray[np.uint8] | None:
    """The pixels [height, width, channels] as grey (1) or colour (3); None if colours would be lost.

    A picture with three equal channels is grey.
    """
    pixels = picture.pixels
    if pixels.shape[2] == channels:
        return pixels
    if channels == COLOUR:
        return np.repeat(pixels, 3, axis=2)
    return pixels[:, :, :1] if (pixels == pixels[:, :, :1]).all() else None


def colour(text: str) -> tuple[int, int, int]:
    """Parses "#rrggbb", "white" or another CSS colour name. UsageError when it is no colour."""
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError:
        raise UsageError(f"'{text}' is no colour; write it as #rrggbb, or as a name such as white") from None
    return red, green, blue


def files_in(folder: Path, suffixes: Iterable[str], below: bool = False) -> list[Path]:
    """The files of a folder with one of these suffixes (in lower or upper case), sorted by name, without hidden files.

    A link to a file that does not exist is among them, so that it is reported by the code that reads it. below: also
    the files of its subfolders. UsageError when the folder cannot be read.
    """
    wanted = tuple(suffixes)
    found, folders = [], [folder]
    try:
        for here in folders:
            for path in here.iterdir():
                if path.name.startswith("."):
                    continue
                if path.suffix.lower() in wanted and is_file(path):
                    found.append(path)
                elif below and path.is_dir() and not path.is_symlink():
                    folders.append(path)
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from None
    return sorted(found, key=lambda path: (path.parent, path.stem, path.name))


def is_file(path: Path) -> bool:
    """True for a file, and for a link to a file, also if that does not exist."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def joined_by_name(first: list[Path], second: list[Path], where: str) -> list[tuple[Path, Path]]:
    """Pairs each file of `first` with the file of `second` that has the same name without the suffix.

    In the order of `first`. UsageError, beginning with `where`, when a file has no partner or more than one.
    """
    by_name = [_by_stem(files) for files in (first, second)]
    if strange := sorted(by_name[0].keys() ^ by_name[1].keys()):
        folders = [files[0].parent.name if files else "nothing" for files in (first, second)]
        raise UsageError(
            f"{where}: '{strange[0]}' is in only one of {folders[0]} and {folders[1]} "
            f"({len(first)} and {len(second)} files)"
        )
    return [(path, by_name[1][path.stem]) for path in first]


def _by_stem(files: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise UsageError(f"{path.parent}: {found[path.stem].name} and {path.name} have the same name")
        found[path.stem] = path
    return found


def turned_line(turned: list[Path]) -> str:
    """A message that pictures were rotated or mirrored."""
    return f"{len(turned)} pictures were turned as their EXIF data requires, such as {turned[0]}"


_ORIENTATION = 0x0112
"""The EXIF tag: 1 is upright, 2 to 8 are rotations and mirrorings."""


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens the file; any error with it in the block becomes a UsageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as warnings about invalid EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except UsageError:
        raise
    except FileNotFoundError:
        what = "is a link to a file that does not exist" if path.is_symlink() else "there is no such file"
        raise UsageError(f"{path}: {what}") from None
    except UnidentifiedImageError:
        raise UsageError(f"{path}: cannot be read as an image: it is not a PNG or JPEG file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError(
            f"{path}: cannot be read as an image: it claims to have more than "
            f"{Image.MAX_IMAGE_PIXELS or 0:,} pixels"
        ) from None
    except Exception as error:  # pillow raises OSError, SyntaxError, struct.error, ValueError, zlib.error ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path}: cannot be read as an image ({reason[:100]})") from None


def _turned(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in range(2, 9)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image) if _turned(image) else image


def _pixels(image: Image.Image, path: Path, behind: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The pixels [height, width, 1 or 3] of an image of any mode."""
    from PIL import Image

    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        return _eight_bits(np.asarray(image.convert("I")), path)[:, :, None]
    if mode == "F":
        raise UsageError(
            f"{path}: its pixels are floating-point numbers; write it with 8 or 16 bits per value"
        )
    if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, (*behind, 255)), shown).convert("RGB")
        if mode in ("1", "L", "LA", "La") and behind[0] == behind[1] == behind[2]:
            image = image.convert("L")
    elif mode in ("1", "L"):
        image = image.convert("L")
    else:  # RGB, P, CMYK, YCbCr, LAB, HSV
        image = image.convert("RGB")
    pixels: NDArray[np.uint8] = np.array(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _eight_bits(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """16-bit values [height, width] as 8-bit values; 65,535 becomes 255."""
    if 0 < values.max(initial=0) < 256:
        raise UsageError(
            f"{path}: has 16 bits per value, but no value above {values.max()}, so it is almost black; "
            "write it with 8 bits per value"
        )
    rounded = (np.clip(values, 0, 65_535).astype(np.int64) + 128) // 257
    return np.asarray(rounded, dtype=np.uint8)
