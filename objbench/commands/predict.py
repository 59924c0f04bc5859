"""`objbench predict`: runs a trained detector on a user's own pictures, and writes a COCO file."""

from __future__ import annotations

import contextlib
import json
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

    from objbench.coco import Id
    from objbench.scenes import SceneShape

BATCH = 32


class Named(NamedTuple):
    """A picture's file, and the image_id of its detections."""

    id: Id
    path: Path


@click.command()
@click.option("--cell", required=True, metavar="CELL", help="The beginning of its key, or its directory.")
@click.option("--images", required=True, metavar="DIR", help="PNG and JPEG pictures.")
@click.option("--to", "target", required=True, metavar="FILE", help="The COCO results list.")
@click.option(
    "--annotations",
    metavar="FILE",
    help="COCO file with the image ids. Default: annotations.json, _annotations.coco.json or instances_*.json in DIR "
    "or in its parent folder.",
)
@click.option("--no-annotations", is_flag=True, help="Number the pictures; do not use an annotations file.")
@click.option(
    "--background",
    default="black",
    show_default=True,
    metavar="COLOUR",
    help="Colour behind transparent pixels: #rrggbb, or a name.",
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
    """Run a trained detector on pictures, and write its detections as a COCO results list.

    Pictures must have the image size that the cell was trained on. image_id is the id of the picture in the annotations
    file: it is found by the picture's path, or by its file name if this is unique. It is an error if a picture is not
    in the file, or an image of the file not in the folder. Without an annotations file, pictures are numbered from 1
    in the order of their names, and FILE.images.json lists the numbers.
    """
    from objbench.images import colour, turned_line

    if annotations and no_annotations:
        raise UsageError("--annotations and --no-annotations contradict each other; use only one of them")
    behind = colour(background)
    folder = find_cell(cell, out)
    if not Path(images).is_dir():
        raise UsageError(f"--images {images}: there is no such folder")
    if Path(target).is_dir() or not Path(target).absolute().parent.is_dir():
        raise UsageError(f"--to {target}: must be a file in an existing folder")
    listing = None if no_annotations else Path(annotations) if annotations else usual_file(Path(images))
    pictures = numbered(Path(images)) if listing is None else listed(Path(images), listing)
    registry = load_plugins(plugin_files)

    import torch

    from objbench.cells.files import Damaged, verify_checksums
    from objbench.cells.identity import EVALUATED, OWN, read_cell
    from objbench.cells.store import read_record, read_trained
    from objbench.clusterer import ObjectShape
    from objbench.coco import INFO, write_detections
    from objbench.commands.devices import find_devices, threads_each
    from objbench.detector import Detections
    from objbench.score.detect import checked, device_of
    from objbench.score.fitted import load_fitted
    from objbench.score.random_state import undisturbed
    from objbench.score.trained import load_detector
    from objbench.writing import write_file

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
        if origin := cell_.training.identity.get(EVALUATED):
            raise UsageError(
                f"cell {key} is an evaluation, without weights of its own; name training {origin['training']}"
            )
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
        raise UsageError(f"cell {key} is a cell of an oracle, which needs the true boxes")
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
        click.echo(f"the image_id of each picture: {beside}", err=True)
    elif not annotations:
        click.echo(f"image_id is the id in {listing}", err=True)


def usual_file(folder: Path) -> Path | None:
    """The annotations file in the folder, or else in the one above. UsageError when one of these has several."""
    from objbench.listings import annotations_in

    try:
        here = folder.resolve()
        return annotations_in(here) or annotations_in(here.parent)
    except UsageError as error:
        raise UsageError(f"{error} with --annotations") from None


def listed(folder: Path, file: Path) -> list[Named]:
    """The pictures in a folder with the ids that a COCO file gives them; see `pictures_listed`."""
    from objbench.coco import read_images
    from objbench.listings import pictures_listed

    rows = read_images(file)
    hint = "; --annotations FILE names another file, --no-annotations numbers the pictures"
    return [
        Named(rows[i].id, path) for path, i in pictures_listed(folder.resolve(), file, rows, hint).items()
    ]


def numbered(folder: Path) -> list[Named]:
    """The pictures in a folder, numbered from 1 in the order of their names. UsageError when there are none."""
    from objbench.images import SUFFIXES, files_in

    paths = files_in(folder, SUFFIXES)
    if not paths:
        raise UsageError(f"--images {folder}: no PNG or JPEG pictures there")
    return [Named(i, path) for i, path in enumerate(paths, 1)]


def read(path: Path, shape: SceneShape, behind: tuple[int, int, int]) -> tuple[torch.Tensor, bool]:
    """A picture as [channels, height, width] float32 in 0..1, and whether it was turned.

    UsageError unless it has this size, and is grey if the shape has one channel.
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
