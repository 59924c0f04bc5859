"""`objbench predict`: what a trained detector finds in a user's own pictures, as a COCO file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from objbench.commands.shared import (
    find_cell,
    out_option,
    plugin_option,
    require_plugins,
    warn_of_changed_code,
)
from objbench.errors import UsageError
from objbench.plugins import load_plugins

if TYPE_CHECKING:
    import torch

    from objbench.scenes import SceneShape

SUFFIXES = {".png", ".jpg", ".jpeg"}
BATCH = 32


class Picture(NamedTuple):
    """One file, and the id that its detections carry."""

    id: int
    path: Path


@click.command()
@click.option("--cell", required=True, metavar="CELL", help="The beginning of its name, or its directory.")
@click.option("--images", required=True, metavar="DIR", help="PNG and JPEG pictures.")
@click.option("--to", "target", required=True, metavar="FILE", help="The COCO results list.")
@out_option
@plugin_option
def predict(cell: str, images: str, target: str, out: str, plugin_files: tuple[str, ...]) -> None:
    """Write what a trained detector finds in pictures, as a COCO results list.

    Pictures must be of the size and channels that the cell was trained on. Where an annotations.json lies
    beside them (`objbench data export` writes one), image_id is as it says. Otherwise pictures are numbered
    from 1 by name, and FILE.images.json says which is which.
    """
    folder = find_cell(cell, out)
    listed = annotated(Path(images))
    pictures = listed or numbered(Path(images))
    registry = load_plugins(plugin_files)

    import torch

    from objbench.cells.files import Damaged, verify_checksums, write_file
    from objbench.cells.identity import read_cell
    from objbench.cells.store import read_record
    from objbench.commands.devices import find_devices, threads_each
    from objbench.detector import Detections
    from objbench.score.coco import write_detections
    from objbench.score.detect import checked, device_of
    from objbench.score.mixture import load_mixture
    from objbench.score.random_state import undisturbed
    from objbench.score.trained import load_detector

    torch.set_num_threads(threads_each(1))
    key = f"{folder.parent.name}/{folder.name}"
    try:
        result, files = read_record(folder)
        if result.status != "done":
            raise UsageError(f"cell {key} is not done but {result.status}; run it first")
        verify_checksums(folder, files)
        cell_ = read_cell(folder)
        require_plugins(registry, key, cell_.training, ["model"])  # the data is not needed
        warn_of_changed_code(registry, key, cell_.training)
        detector = load_detector(registry, folder.parent, find_devices("auto")[0])
        mixture = load_mixture(folder, cell_)
    except Damaged as error:
        raise UsageError(f"cell {key}: {error}; run it again") from None
    if detector.oracle:
        raise UsageError(f"cell {key} is of an oracle, which must be given the true boxes")
    found = []
    with undisturbed(detector):
        for start in range(0, len(pictures), BATCH):
            batch = torch.stack(
                [read(picture.path, detector.shape) for picture in pictures[start : start + BATCH]]
            )
            found.append(checked(detector.detect(batch.to(device_of(detector))).to("cpu"), len(batch)))
    detections = Detections.concatenate(found)
    if mixture is not None:
        detections = mixture.apply(detections)
    try:
        write_detections(target, detections, [picture.id for picture in pictures])
        if not listed:
            _, height, width = detector.shape
            rows = [
                {"id": p.id, "file_name": p.path.name, "width": width, "height": height} for p in pictures
            ]
            write_file(Path(f"{target}.images.json"), json.dumps({"images": rows}, indent=1).encode())
    except ValueError as error:
        raise UsageError(f"cell {key}: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    click.echo(f"{len(detections.scores)} detections in {len(pictures)} pictures: {target}")
    if not listed:
        click.echo(f"which picture has which image_id: {target}.images.json", err=True)


def annotated(folder: Path) -> list[Picture]:
    """The pictures that an annotations.json in the folder, or in the one above, lists; none without one.

    UsageError when it is not a COCO file, or a picture of it is missing.
    """
    here = folder.resolve()
    for file in (here / "annotations.json", here.parent / "annotations.json"):
        if not file.is_file():
            continue
        try:
            rows: list[dict[str, Any]] = json.loads(file.read_bytes())["images"]
            pictures = [Picture(int(row["id"]), file.parent / row["file_name"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{file}: not a COCO annotations file ({type(error).__name__}: {error})"
            ) from None
        if file.parent != here:  # a file one above counts if it is about this folder
            pictures = [picture for picture in pictures if picture.path.parent == here]
        if missing := [picture.path for picture in pictures if not picture.path.is_file()]:
            raise UsageError(f"{file} lists {len(missing)} pictures that are not there, such as {missing[0]}")
        if pictures:
            return pictures
    return []


def numbered(folder: Path) -> list[Picture]:
    """The pictures in a folder by name, numbered from 1. UsageError when there are none."""
    if not folder.is_dir():
        raise UsageError(f"--images {folder}: there is no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"--images {folder}: no PNG or JPEG pictures there")
    return [Picture(i, path) for i, path in enumerate(paths, 1)]


def read(path: Path, shape: SceneShape) -> torch.Tensor:
    """A picture as [channels, height, width] float32 in 0..1; UsageError unless it is of that shape."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            mode, (width, height) = opened.mode, opened.size
            pixels = np.asarray(opened)
    except (OSError, UnidentifiedImageError):
        raise UsageError(f"{path}: not a picture that can be read") from None
    wanted = {1: "L", 3: "RGB"}.get(shape.channels)
    if (mode, height, width) != (wanted, shape.height, shape.width):
        raise UsageError(
            f"{path} is {width}x{height} {mode}; the cell was trained on {shape.width}x{shape.height} {wanted} "
            "(L is grey, RGB colour); convert it first"
        )
    values = torch.from_numpy(pixels.copy()).float() / 255
    return values.reshape(shape.height, shape.width, shape.channels).permute(2, 0, 1)
