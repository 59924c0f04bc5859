"""Fruit2D as it was published with GMAIR: folders of images and text labels."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from objbench import images as reader
from objbench.errors import UsageError
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, Split
from objbench_plugins.fruit2d.kept import Bytes, KeptScenes

CLASSES = 9
MOST = 100
"""Objects of a scene beyond so many are left out, as the published code does."""
PARTS = ("train", "test")
FOLDERS = tuple(f"{part}_{kind}" for part in PARTS for kind in ("images", "labels"))
ARCHIVES = "the four Fruit2D archives linked in the README of https://github.com/EmoFuncs/GMAIR-pytorch"


@dataclass(frozen=True)
class Fruit2DConfig:
    """Options of fruit2d."""

    root: str = option(
        "",
        "folder of train_images, train_labels, test_images and test_labels; "
        "when empty, the one that 'objbench data fetch fruit2d' names",
        identity=False,
    )
    size: int = option(128, "side of a scene in pixels; others are resized, boxes too", low=32, high=512)
    background: str = option("black", "colour behind transparent pixels: #rrggbb, or a name")
    validation: float = option(
        0.1,
        "share of the training folder held out for validation: its last scenes by name",
        above=0,
        high=0.5,
    )


class Labelled(NamedTuple):
    """An image file and what its label file says."""

    image: Path
    size: tuple[int, int]
    """Width and height of the file's image in pixels; boxes are in these."""
    boxes: Tensor  # [k, 4] float32, xyxy
    labels: Tensor  # [k] int64, from 0


class Fruit2D(KeptScenes):
    """The fruit scenes of the paper's section 4.1, read from the published files.

    `root` holds train_images/*.png (or .jpg), train_labels/*.txt, test_images and test_labels; files pair by
    name, and pictures are read as `objbench.images` says. A label file gives the number of objects on a line of
    its own, and a line `x y w h c` for each: centre and size of its box in pixels, and its class from 1. Which
    class is which fruit was not published. Boxes are cut off at the image's edge.

    The files have no validation split: the last scenes of the training folder, by sorted name, are held out
    for it. The published test script scores Fruit2D on the training folder; here it is the test folder.
    """

    Config = Fruit2DConfig
    classes = tuple(f"class {c}" for c in range(1, CLASSES + 1))
    name = "fruit2d"

    @classmethod
    def settings(cls, protocol: str) -> dict[str, Any]:
        """The published size is the default; the others are half as wide."""
        return {} if protocol == "paper" else {"size": 64}

    @classmethod
    def fetch(cls) -> str:
        """What to download by hand and where to put it; or what is there. UsageError when it is not whole."""
        root = default_root()
        if not root.exists():
            return f"fruit2d: download {ARCHIVES} and unpack them as {', '.join(FOLDERS)} in {root}"
        parts = {part: read_part(root, part) for part in PARTS}
        counts = " and ".join(f"{len(scenes):,} {part} scenes" for part, scenes in parts.items())
        objects = sum(len(scene.labels) for scenes in parts.values() for scene in scenes)
        return f"{root}: {counts}, {objects:,} objects, sha256 {checksum(root)}"

    def __init__(self, config: Fruit2DConfig, seed: int) -> None:
        """Reads the labels, not yet the images. The seed chooses nothing. UsageError names file and line."""
        self._root = Path(config.root).expanduser() if config.root else default_root()
        self.shape = SceneShape(3, config.size, config.size)
        train, test = (read_part(self._root, part) for part in PARTS)
        first = len(train) - math.ceil(len(train) * config.validation)
        if not first:
            raise UsageError(
                f"{self._root / FOLDERS[0]}: one scene is too few to hold any out for validation"
            )
        self._scenes: dict[Split, list[Labelled]] = {
            "train": train[:first],
            "validation": train[first:],
            "test": test,
        }
        self.truth = {
            split: GroundTruth.of(
                [config.size * s.boxes / s.size[0] for s in scenes], [s.labels for s in scenes]
            )
            for split, scenes in self._scenes.items()
        }
        self._checksum = checksum(self._root)
        self._behind = reader.colour(config.background)
        self._turned = False

    def picture(self, split: Split, index: int) -> Bytes:
        """[3, size, size] one image, averaged down to that size."""
        file = self._scenes[split][index].image
        picture = reader.read_picture(file, self._behind)
        if picture.turned and not self._turned:
            print(
                f"{self.name}: turned as their EXIF data asks for are {file} and perhaps others",
                file=sys.stderr,
            )
            self._turned = True
        pixels = reader.with_channels(picture, reader.COLOUR)
        assert pixels is not None, "grey can always be shown in colour"
        if pixels.shape[:2] != (self.shape.height, self.shape.width):
            size = (self.shape.width, self.shape.height)
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        return pixels.transpose(2, 0, 1)

    def origin(self, split: Split, index: int) -> str:
        """The image's file."""
        return str(self._scenes[split][index].image)

    def recipe(self) -> dict[str, Any]:
        """The files, how they are split, and how they are read."""
        return self.fingerprint() | {"reader": reader.VERSION, "behind": self._behind}

    def fingerprint(self) -> dict[str, Any]:
        """How many scenes a split, and the checksum of all files."""
        counts = {split: len(scenes) for split, scenes in self._scenes.items()}
        return {"scenes": counts, "sha256": self._checksum}


def default_root() -> Path:
    """Where the files are looked for when the options do not say."""
    from platformdirs import user_data_path

    return user_data_path("objbench") / "fruit2d"


def checksum(root: Path) -> str:
    """SHA-256 of what is in the images and labels, in the order of their names."""
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for file in _files(root / folder):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def read_part(root: Path, part: str) -> list[Labelled]:
    """The scenes of `part` (train or test) by name. UsageError names the file and line that is wrong."""
    images, labels = _files(root / f"{part}_images"), _files(root / f"{part}_labels")
    return [_labelled(image, label) for image, label in reader.joined_by_name(images, labels, str(root))]


def read_label(file: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(boxes [k, 4] xyxy in pixels, classes [k] from 0) in an image of that width and height; k <= 100."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as text ({error})") from None
    count, boxes, classes = None, [], []
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if len(fields) == 1 and count is None and fields[0].isdecimal():
            count = int(fields[0])
        elif len(fields) == 5:
            box, kind = _object(f"{file}, line {number}", [_number(f) for f in fields], size)
            boxes.append(box)
            classes.append(kind)
        elif fields:
            raise UsageError(
                f"{file}, line {number}: '{line.strip()[:60]}' is neither a count nor 'x y w h c'"
            )
    if count != len(boxes):
        said = "no count" if count is None else f"a count of {count}"
        raise UsageError(f"{file}: has {said}, and {len(boxes)} objects")
    corners = torch.tensor(boxes[:MOST], dtype=torch.float32).reshape(-1, 4)
    return corners, torch.tensor(classes[:MOST], dtype=torch.int64)


def write_part(root: Path, part: str, scenes: Scenes) -> None:
    """Writes scenes of three channels as the published files are, so that published code can read them."""
    images, labels = root / f"{part}_images", root / f"{part}_labels"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for i, image in enumerate(scenes.images):
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        Image.fromarray(pixels).save(images / f"{i:06}.png")
        here = scenes.truth.image == i
        boxes, classes = scenes.truth.boxes[here].double(), scenes.truth.labels[here]
        rows = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1).tolist()
        lines = [
            f"{x:.6f} {y:.6f} {w:.6f} {h:.6f} {c + 1}" for (x, y, w, h), c in zip(rows, classes, strict=True)
        ]
        (labels / f"{i:06}.txt").write_text("\n".join([str(len(lines)), *lines, ""]))


def _files(folder: Path) -> list[Path]:
    """The files of one of FOLDERS, by name. UsageError when there are none."""
    endings = reader.SUFFIXES if folder.name.endswith("_images") else (".txt",)
    found = reader.files_in(folder, endings) if folder.is_dir() else []
    if not found:
        raise UsageError(
            f"{folder}: has no {' or '.join(endings)} files; "
            "run 'objbench data fetch fruit2d', or set -o fruit2d.root=DIR"
        )
    return found


def _labelled(image: Path, label: Path) -> Labelled:
    size = reader.read_size(image)
    if size[0] != size[1]:
        raise UsageError(f"{image}: is {size[0]}x{size[1]} pixels, but scenes must be square")
    return Labelled(image, size, *read_label(label, size))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _object(where: str, fields: list[float], size: tuple[int, int]) -> tuple[list[float], int]:
    """The box, cut off at the image's edge, and the class from 0. UsageError says where."""
    x, y, w, h, kind = fields
    if not all(map(math.isfinite, fields)) or w <= 0 or h <= 0:
        raise UsageError(f"{where}: must be five numbers, width and height above 0")
    if kind not in range(1, CLASSES + 1):
        raise UsageError(f"{where}: class {kind:g} is not one of 1 to {CLASSES}")
    x0, x1 = (min(max(edge, 0.0), size[0]) for edge in (x - w / 2, x + w / 2))
    y0, y1 = (min(max(edge, 0.0), size[1]) for edge in (y - h / 2, y + h / 2))
    if x0 >= x1 or y0 >= y1:
        raise UsageError(f"{where}: the box lies outside of the {size[0]}x{size[1]} image")
    return [x0, y0, x1, y1], int(kind) - 1
