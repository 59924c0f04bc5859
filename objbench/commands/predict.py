"""`objbench predict`: what a trained detector finds in a user's own pictures, as a COCO file."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from objbench.commands.shared import (
    find_cell,
    out_option,
    plugin_option,
    require_plugins,
    warn_of_changed_code,
)
from objbench.errors import UsageError
from objbench.guarded import calling
from objbench.plugins import load_plugins

if TYPE_CHECKING:
    import torch

    from objbench.scenes import SceneShape
    from objbench.score.coco import Id

BATCH = 32
USUAL_NAMES = ("annotations.json", "_annotations.coco.json", "instances_*.json")
"""Of annotations files, with .gz or without."""


class Named(NamedTuple):
    """One picture's file, and the id that its detections carry."""

    id: Id
    path: Path


@click.command()
@click.option("--cell", required=True, metavar="CELL", help="The beginning of its name, or its directory.")
@click.option("--images", required=True, metavar="DIR", help="PNG and JPEG pictures.")
@click.option("--to", "target", required=True, metavar="FILE", help="The COCO results list.")
@click.option(
    "--annotations",
    metavar="FILE",
    help="COCO file whose images have the ids. Without it: annotations.json, _annotations.coco.json or "
    "instances_*.json in DIR or in the folder above.",
)
@click.option("--no-annotations", is_flag=True, help="Number the pictures, whatever annotations there are.")
@click.option(
    "--background",
    default="black",
    show_default=True,
    metavar="COLOUR",
    help="Behind transparent pixels: #rrggbb, or a name.",
)
@out_option
@plugin_option
def predict(
    cell: str,
    images: str,
    target: str,
    annotations: str | None,
    no_annotations: bool,
    background: str,
    out: str,
    plugin_files: tuple[str, ...],
) -> None:
    """Write what a trained detector finds in pictures, as a COCO results list.

    Pictures must be of the size that the cell was trained on. image_id is the id that the annotations file gives
    to a picture, looked up by its path and then by its name alone where only one has it. Pictures that are not in
    the file, or not in the folder, are an error. Where there is no annotations file, pictures are numbered from 1
    by name, and FILE.images.json says which is which.
    """
    from objbench.images import colour, turned_line

    if annotations and no_annotations:
        raise UsageError("--annotations and --no-annotations contradict each other; give one of them")
    behind = colour(background)
    folder = find_cell(cell, out)
    if not Path(images).is_dir():
        raise UsageError(f"--images {images}: there is no such folder")
    if Path(target).is_dir() or not Path(target).absolute().parent.is_dir():
        raise UsageError(f"--to {target}: must be a file in a folder that is there")
    listing = None if no_annotations else Path(annotations) if annotations else usual_file(Path(images))
    pictures = numbered(Path(images)) if listing is None else listed(Path(images), listing)
    registry = load_plugins(plugin_files)

    import torch

    from objbench.cells.files import Damaged, verify_checksums, write_file
    from objbench.cells.identity import OWN, read_cell
    from objbench.cells.store import read_record, read_trained
    from objbench.clusterer import ObjectShape
    from objbench.commands.devices import find_devices, threads_each
    from objbench.detector import Detections
    from objbench.score.coco import INFO, write_detections
    from objbench.score.detect import checked, device_of
    from objbench.score.fitted import load_fitted
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
        require_plugins(registry, cell_, ["model", "clusterer"])  # the data is not needed
        warn_of_changed_code(registry, cell_)
        verify_checksums(folder.parent, read_trained(folder.parent).files)
        who = f"'{cell_.training.identity['model']}'"
        with calling(who, "its constructor"):
            detector = load_detector(registry, folder.parent, find_devices("auto")[0])
        fitted = None
        if cell_.clusterer["name"] != OWN:
            shape = result.provenance.get("object_shape")
            if shape is None:
                raise UsageError(f"cell {key} was clustered by an earlier version of objbench; run it again")
            fitted = load_fitted(registry, folder, cell_, ObjectShape(*shape))
    except Damaged as error:
        raise UsageError(f"cell {key}: {error}; run it again") from None
    if detector.oracle:
        raise UsageError(f"cell {key} is of an oracle, which must be given the true boxes")
    if detector.shape.channels not in (1, 3):
        raise UsageError(
            f"cell {key} was trained on images of {detector.shape.channels} channels; pictures have 1 or 3"
        )
    found, turned = [], []
    with undisturbed(detector):
        for start in range(0, len(pictures), BATCH):
            part = pictures[start : start + BATCH]
            read_ = [read(picture.path, detector.shape, behind) for picture in part]
            turned += [p.path for p, r in zip(part, read_, strict=True) if r[1]]
            batch = torch.stack([values for values, _ in read_])
            with calling(who, "its detect"):
                seen = detector.detect(batch.to(device_of(detector))).to("cpu")
            found.append(checked(seen, len(batch)))
            if fitted is not None:
                found[-1] = replace(found[-1], clusters=fitted.clusters(found[-1], batch))
    detections = Detections.concatenate(found)
    beside = Path(f"{target}.images.json")
    try:
        if listing is None:
            _, height, width = detector.shape
            rows = [
                {"id": p.id, "file_name": p.path.name, "width": width, "height": height} for p in pictures
            ]
            body = {"info": INFO, "images": rows, "annotations": [], "categories": []}
            write_file(beside, json.dumps(body, indent=1).encode())
        write_detections(target, detections, [picture.id for picture in pictures])
    except (ValueError, UsageError, OSError) as error:
        if listing is None:
            with contextlib.suppress(OSError):
                beside.unlink()
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {target}: {error.strerror}") from None
        raise UsageError(f"cell {key}: {error}") from None
    click.echo(f"{len(detections.scores)} detections in {len(pictures)} pictures: {target}")
    if turned:
        click.echo(turned_line(turned), err=True)
    if listing is None:
        click.echo(f"which picture has which image_id: {beside}", err=True)
    elif not annotations:
        click.echo(f"image_id is as in {listing}", err=True)


def usual_file(folder: Path) -> Path | None:
    """The annotations file in the folder, or else in the one above. UsageError when one of these has several."""
    here = folder.resolve()
    for place in (here, here.parent):
        found = sorted(
            {
                path
                for pattern in USUAL_NAMES
                for path in (*place.glob(pattern), *place.glob(f"{pattern}.gz"))
                if path.is_file()
            }
        )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UsageError(
                f"{place} has several annotations files ({names}); choose one with --annotations"
            )
        if found:
            return found[0]
    return None


def listed(folder: Path, file: Path) -> list[Named]:
    """The pictures in a folder with the ids that a COCO file gives them, in the file's order.

    A file name is a path from the file's folder or from `folder`; else its last part counts, where one picture
    and one entry alone have it. Entries of pictures that lie elsewhere are not meant. UsageError when an entry has no
    picture, or a picture no entry: half of a lookup is no answer.
    """
    from objbench.images import SUFFIXES, files_in
    from objbench.score.coco import base_name, read_images

    here = folder.resolve()
    rows = read_images(file)
    there = files_in(here, SUFFIXES, below=True)
    by_name: dict[str, list[Path]] = {}
    for picture in there:
        by_name.setdefault(picture.name, []).append(picture)
    names = Counter(base_name(str(row.file_name)) for row in rows)
    found: dict[Path, Named] = {}
    missing = []
    for row in rows:
        name = str(row.file_name)
        path, same = _at(name, (file.absolute().parent.resolve(), here)), by_name.get(base_name(name), [])
        if path is None and len(same) == 1 and names[base_name(name)] == 1:
            path = same[0]
        if path is None:
            missing.append(name)
        elif path in found:
            raise UsageError(f"{file}: the ids {found[path].id!r} and {row.id!r} are both of {path}")
        elif path.is_relative_to(here):
            if path.suffix.lower() not in SUFFIXES:
                raise UsageError(f"{file}: {json.dumps(name)} is not a PNG or JPEG file by its name")
            found[path] = Named(row.id, path)
    way_out = "--annotations FILE names another file, --no-annotations numbers the pictures"
    if missing:
        raise UsageError(
            f"{file}: {len(missing)} of its {len(rows)} images are not in {folder}, such as "
            f"{json.dumps(missing[0])}; {way_out}"
        )
    if not found:
        raise UsageError(f"{file}: none of its {len(rows)} images is in {folder}; {way_out}")
    folders = {path.parent for path in found} | {here}
    if lost := [path for path in there if path not in found and path.parent in folders]:
        raise UsageError(
            f"{file}: does not list {len(lost)} of the pictures in {folder}, such as {lost[0].name}; {way_out}"
        )
    return list(found.values())


def _at(name: str, places: tuple[Path, ...]) -> Path | None:
    """The file that a name written on any system leads to from one of these folders."""
    for place in places:
        for spelling in (name, name.replace("\\", "/")):
            with contextlib.suppress(OSError, ValueError):  # a name too long, or with a zero in it
                path = Path(os.path.normpath(place / spelling))
                if path.is_file():
                    return path
    return None


def numbered(folder: Path) -> list[Named]:
    """The pictures in a folder by name, numbered from 1. UsageError when there are none."""
    from objbench.images import SUFFIXES, files_in

    paths = files_in(folder, SUFFIXES)
    if not paths:
        raise UsageError(f"--images {folder}: no PNG or JPEG pictures there")
    return [Named(i, path) for i, path in enumerate(paths, 1)]


def read(path: Path, shape: SceneShape, behind: tuple[int, int, int]) -> tuple[torch.Tensor, bool]:
    """A picture as [channels, height, width] float32 in 0..1, and whether it was turned.

    UsageError unless it has that size, and no colours where one channel is wanted.
    """
    import torch

    from objbench.images import read_picture, with_channels

    picture = read_picture(path, behind)
    height, width, _ = picture.pixels.shape
    pixels = with_channels(picture, shape.channels)
    if pixels is None or (height, width) != (shape.height, shape.width):
        is_ = {1: "grey", 3: "colour"}
        raise UsageError(
            f"{path} is {width}x{height} {is_[picture.pixels.shape[2]]}; the cell was trained on "
            f"{shape.width}x{shape.height} {is_[shape.channels]}; convert it first"
        )
    return torch.from_numpy(pixels.copy()).float().div_(255).permute(2, 0, 1), picture.turned
