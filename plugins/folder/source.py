"""Pictures in a folder, made equal in size, with the true boxes of a COCO file if there is one."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objbench import images as reader
from objbench.coco import TruthFile, read_truth
from objbench.errors import UsageError
from objbench.listings import annotations_in, pictures_listed
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split
from objbench_plugins.folder import decoded
from objbench_plugins.folder.placing import Placing, placing_of

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""Names of folders, with a year after them or not, that hold a split."""
NONE = "none"


@dataclass(frozen=True)
class FolderConfig:
    """Options of `folder`."""

    images: str = option(
        "",
        "folder of PNG and JPEG pictures; its subfolders train, validation (or val, valid) and test are the splits",
        identity=False,
    )
    annotations: str = option(
        "",
        "COCO file with the true boxes; when empty, annotations.json, _annotations.coco.json or instances_*.json in "
        f"the folder of the pictures or of their split; '{NONE}' uses no annotations",
        identity=False,
    )
    size: int = option(128, "height and width of a scene in pixels", low=8, high=2048)
    fit: str = option(
        "fit",
        "how a picture becomes square: fit (whole, with bars), crop (its middle), stretch",
        choices=("fit", "crop", "stretch"),
    )
    background: str = option("black", "colour of bars and behind transparent pixels: #rrggbb, or a name")
    channels: str = option(
        "auto",
        "grey (1 channel), colour (3), or auto: grey if every picture is",
        choices=("auto", "grey", "colour"),
    )
    validation: float = option(0.1, "share for validation, where no subfolder is", above=0, high=0.5)
    test: float = option(0.2, "share for the test, where no subfolder is", above=0, high=0.5)
    split_seed: int = option(0, "chooses which pictures these shares are", low=0)
    strict: bool = option(False, "refuse a folder with a broken picture, instead of leaving that picture out")
    skip_invalid: bool = option(
        False, "leave out annotations that are not valid, instead of refusing the file"
    )


class Folder(SceneSource):
    """Pictures of the folder `images` and of the folders in it, as `objbench.images` reads them.

    Splits: the subfolders train, validation and test; without them, shares of the pictures by a hash of their
    names, so that a picture that is added does not move the others. A picture that cannot be read is left out, named
    on stderr, and counted in the fingerprint.

    With annotations, a picture is matched with its entry as `objbench.listings` says. Boxes go with the picture
    when it is resized, and are cut at the edge of the scene. Without annotations there are no true boxes: detectors
    train, and tables show no AP, ACC or NMI.

    Decoded pictures are kept in the cache folder, and mapped into memory.
    """

    Config = FolderConfig
    classes: tuple[str, ...] = ()

    @classmethod
    def settings(cls, protocol: str) -> dict[str, Any]:
        """128x128 pixels under `paper`, 64x64 otherwise."""
        return {} if protocol == "paper" else {"size": 64}

    def __init__(self, config: FolderConfig, seed: int) -> None:
        """Decodes the pictures unless that was done before. The seed chooses nothing. UsageError names the file."""
        if not config.images:
            raise UsageError("the data set 'folder' needs a folder of pictures: -o folder.images=DIR")
        root = Path(config.images).expanduser().resolve()
        if not root.is_dir():
            raise UsageError(f"folder.images={config.images}: there is no such folder")
        behind = reader.colour(config.background)
        folders = split_folders(root)
        self._root = root
        annotated = annotation_files(config.annotations, root, folders)
        files = [
            f for f in reader.files_in(root, reader.SUFFIXES, below=True) if _in_a_split(f, root, folders)
        ]
        if not files:
            raise UsageError(f"folder.images={config.images}: no PNG or JPEG pictures there")
        self._kept = decoded.decode(root, files, config.size, config.fit, behind, config.channels)
        self._report(config)
        self.shape = SceneShape(self._kept.images.shape[1], config.size, config.size)
        self._splits = self._split(config, folders)
        self._truth, self._annotations = self._read_truth(config, annotated)

    def size(self, split: Split) -> int:
        """How many pictures a split has."""
        return len(self._splits[split])

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, on the device that `indices` are on. IndexError past the end."""
        rows = self._splits[split][indices.cpu().numpy()]
        images = torch.from_numpy(self._kept.images[rows]).to(indices.device).float().div_(255)
        boxes = [self._truth[row][0] for row in rows]
        labels = [self._truth[row][1] for row in rows]
        truth = GroundTruth.of(boxes, labels)
        parts = (part.to(indices.device) for part in (truth.image, truth.boxes, truth.labels))
        return Scenes(images, GroundTruth(len(rows), *parts))

    def fingerprint(self) -> dict[str, Any]:
        """How many pictures a split, how many were broken, and checksums of pictures and annotations."""
        return {
            "scenes": {split: len(rows) for split, rows in self._splits.items()},
            "broken": len(self._kept.broken),
            "sha256": self._kept.checksum,
            "annotations": self._annotations,
        }

    def origin(self, split: Split, index: int) -> str:
        """The picture's file."""
        return str(self._root / self._kept.names[self._splits[split][index]])

    def _report(self, config: FolderConfig) -> None:
        """Says which pictures are broken or were turned."""
        broken = self._kept.broken
        if config.strict and broken:
            raise UsageError(f"{len(broken)} broken pictures, and folder.strict is set: {broken[0]}")
        for line in broken[:5]:
            print(f"folder: left out: {line}", file=sys.stderr)
        if len(broken) > 5:
            print(f"folder: left out: {len(broken) - 5} more", file=sys.stderr)
        if self._kept.turned:
            print(
                f"folder: {reader.turned_line([Path(name) for name in self._kept.turned])}", file=sys.stderr
            )

    def _split(self, config: FolderConfig, folders: dict[Split, Path]) -> dict[Split, NDArray[np.int64]]:
        """Which rows of the decoded pictures each split has."""
        names = self._kept.names
        rows: dict[Split, list[int]] = {split: [] for split in get_args(Split)}
        of_train = []
        for row, name in enumerate(names):
            split = next((s for s, f in folders.items() if (self._root / name).is_relative_to(f)), "train")
            rows[split].append(row)
            of_train += [row] if split == "train" else []
        shares: dict[Split, float] = {"test": config.test, "validation": config.validation}
        missing = [split for split in shares if split not in folders]
        drawn = sorted(
            of_train,
            key=lambda row: hashlib.sha256(f"{config.split_seed} {names[row]}".encode()).digest(),
        )
        for split in missing:
            count = max(1, round(shares[split] * len(of_train)))
            rows[split], drawn = sorted(drawn[:count]), drawn[count:]
        rows["train"] = sorted(drawn)
        for split, chosen in rows.items():
            if not chosen:
                raise UsageError(
                    f"{self._root}: {len(names)} pictures that can be read, and none is left for {split}"
                )
        return {split: np.array(chosen, dtype=np.int64) for split, chosen in rows.items()}

    def _read_truth(
        self, config: FolderConfig, found: list[tuple[Path, Path]]
    ) -> tuple[list[tuple[Tensor, Tensor]], str | None]:
        """The true boxes [k, 4] and labels [k] of each decoded picture; and the annotations' checksum, or None."""
        nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        truth = [nothing] * len(self._kept.names)
        if not found:
            return truth, None
        row_of = {self._root / name: row for row, name in enumerate(self._kept.names)}
        broken = {self._root / name for name in self._kept.broken_names}
        read = [
            (folder, file, read_truth(file, config.skip_invalid, lambda line: print(line, file=sys.stderr)))
            for folder, file in found
        ]
        self.classes = tuple(dict.fromkeys(name for _, _, there in read for name in there.class_names))
        lost = 0
        for folder, file, there in read:
            hint = f"; -o folder.annotations=FILE names another file, {NONE} uses none"
            number = torch.tensor([self.classes.index(name) for name in there.class_names])
            for path, i in pictures_listed(folder, file, there.images, hint).items():
                if path in broken or path not in row_of:
                    continue
                row = row_of[path]
                placing = placing_of(self._kept.sizes[row], config.size, config.fit)
                truth[row], without = self._placed(file, there, i, path, placing, number)
                lost += without
        if lost:
            print(
                f"folder: {lost} annotated boxes lie outside of their scenes, and are left out",
                file=sys.stderr,
            )
        digest = hashlib.sha256()
        for _, file, _ in read:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return truth, digest.hexdigest()

    def _placed(
        self, file: Path, there: TruthFile, i: int, path: Path, placing: Placing, number: Tensor
    ) -> tuple[tuple[Tensor, Tensor], int]:
        """The boxes and labels of entry i as they are in its scene, and how many boxes are not in it."""
        entry = there.images[i]
        if (entry.width, entry.height) not in ((None, None), placing.picture):
            width, height = placing.picture
            raise UsageError(
                f"{file}: says that {path.name} has {entry.width:g}x{entry.height:g} pixels; it has {width}x{height}"
            )
        first, end = torch.searchsorted(there.truth.image, torch.tensor([i, i + 1])).tolist()
        mine = slice(first, end)
        boxes = placing.of_boxes(there.truth.boxes[mine])
        inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)  # less than a pixel shows nothing
        labels = number[there.truth.labels[mine]]
        return (boxes[inside].float(), labels[inside]), int((~inside).sum())


def split_folders(root: Path) -> dict[Split, Path]:
    """The subfolders that hold splits; empty unless one of them is for training.

    UsageError when two of them hold the same split.
    """
    found: dict[Split, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for split, names in SPLIT_FOLDERS.items():
            if folder.name.lower().rstrip("0123456789_-") in names:
                if split in found:
                    raise UsageError(f"{root}: {found[split].name} and {folder.name} are both for {split}")
                found[split] = folder
    return {split: found[split] for split in SPLIT_FOLDERS if split in found} if "train" in found else {}


def _in_a_split(file: Path, root: Path, folders: dict[Split, Path]) -> bool:
    return not folders or any(file.is_relative_to(folder) for folder in folders.values())


def annotation_files(option: str, root: Path, folders: dict[Split, Path]) -> list[tuple[Path, Path]]:
    """Pairs of a folder of pictures and the annotations file of these."""
    if option == NONE:
        return []
    if option:
        file = Path(option).expanduser()
        if not file.is_file():
            raise UsageError(f"folder.annotations={option}: there is no such file")
        return [(root, file)]
    of_splits = [(folder, _of_split(folder, root)) for folder in folders.values()]
    found = [(folder, file) for folder, file in of_splits if file]
    if found and len(found) < len(of_splits):
        without = next(folder for folder, file in of_splits if not file)
        raise UsageError(
            f"{found[0][1]} has annotations, but there are none for {without}; "
            f"name a file with -o folder.annotations=FILE, or {NONE}"
        )
    if found:
        return found
    file_of_all = annotations_in(root)
    return [(root, file_of_all)] if file_of_all else []


def _of_split(folder: Path, root: Path) -> Path | None:
    """The annotations of one split: in its folder, or COCO's annotations/instances_<folder>.json."""
    for place in (root / "annotations", root):
        for suffix in (".json", ".json.gz"):
            if (file := place / f"instances_{folder.name}{suffix}").is_file():
                return file
    return annotations_in(folder)
