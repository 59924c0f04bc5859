"""`objbench data`: draws, checks and exports the scenes of a data set, and downloads its source files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from objbench.cells.files import written_beside
from objbench.cells.overrides import build_source_config, parse_overrides
from objbench.cells.protocols import protocol
from objbench.commands.shared import (
    json_option,
    overrides_option,
    plugin_option,
    protocol_option,
    seed_option,
    split_option,
)
from objbench.errors import UsageError
from objbench.guarded import calling
from objbench.plugins import load_plugins, load_target

if TYPE_CHECKING:
    from objbench.scenes import GroundTruth, Scenes, SceneSource, Split
    from objbench.score.scene_survey import Survey


_BATCH = 256

_ON_SHEET = 48


@click.group()
def data() -> None:
    """Draw, check or export the scenes of a data set, or download its source files."""


@data.command()
@click.argument("name")
@click.option(
    "--n", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="How many scenes."
)
@click.option("--to", "folder", required=True, metavar="DIR", help="A new or empty folder.")
@split_option
@seed_option
@protocol_option
@overrides_option
@plugin_option
def export(
    name: str,
    n: int,
    folder: str,
    split: Split,
    seed: int,
    protocol_name: str,
    options: tuple[str, ...],
    plugin_files: tuple[str, ...],
) -> None:
    """Write scenes as PNG files and a COCO annotations file. After an error, nothing is left in DIR."""
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"--to {folder}: exists already and is not an empty folder; choose a new one")
    source = _source(name, protocol_name, seed, options, plugin_files)
    from objbench.coco import write_truth
    from objbench.report.contact_sheet import as_pictures
    from objbench.scenes import GroundTruth

    files = [f"images/{i:06}.png" for i in range(n)]
    truths = []
    with written_beside(target) as beside:
        (beside / "images").mkdir(parents=True)
        for start, batch in _batches(name, source, split, n):
            for i, picture in enumerate(as_pictures(batch), start):
                picture.save(beside / files[i])
            truths.append(batch.truth)
        truth = GroundTruth.concatenate(truths)
        sizes = [(source.shape.width, source.shape.height)] * n
        write_truth(beside / "annotations.json", truth, sizes, files, source.classes)
    click.echo(f"{n} scenes with {len(truth.labels)} objects: {target / 'annotations.json'}")


@data.command()
@click.argument("name")
@click.option(
    "--n", type=click.IntRange(1), default=24, show_default=True, metavar="N", help="How many scenes."
)
@click.option("--to", "file", metavar="FILE.png", help="The picture. [default: NAME-SPLIT.png]")
@split_option
@seed_option
@protocol_option
@overrides_option
@plugin_option
def show(
    name: str,
    n: int,
    file: str | None,
    split: Split,
    seed: int,
    protocol_name: str,
    options: tuple[str, ...],
    plugin_files: tuple[str, ...],
) -> None:
    """Draw scenes with their true boxes in one picture, and count their objects."""
    source = _source(name, protocol_name, seed, options, plugin_files)
    import torch

    from objbench.report.contact_sheet import contact_sheet
    from objbench.scenes import GroundTruth
    from objbench.score.scene_checks import check_scenes

    truth = GroundTruth.concatenate([batch.truth for _, batch in _batches(name, source, split, n)])
    title = f"{name}: {split} scenes, seed {seed}, {protocol_name} protocol"
    drawn = check_scenes(name, source, split, torch.arange(min(n, _ON_SHEET)))
    target = Path(file or f"{name}-{split}.png")
    with written_beside(target) as beside:
        contact_sheet(drawn, source.classes, title).save(beside, "PNG")
    _, height, width = source.shape
    click.echo(f"{title}: {n} of {width}x{height} pixels\n")
    click.echo(_summary(truth, source.classes))
    click.echo(f"{len(drawn)} scenes drawn: {target}", err=True)


@data.command()
@click.argument("name")
@click.option(
    "--n",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="How many scenes of a split that is generated without end.",
)
@seed_option
@protocol_option
@overrides_option
@plugin_option
@json_option
def check(
    name: str,
    n: int,
    seed: int,
    protocol_name: str,
    options: tuple[str, ...],
    plugin_files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Decode all scenes, and report their contents and their errors.

    Errors are: an image, a box or a label that breaks the contract, the same image in two splits, a class that is
    missing in one of the splits, and a split in which every image is of one colour. Exit code 0: no errors; 1: some
    errors; 2: the data cannot be read.
    """
    source = _source(name, protocol_name, seed, options, plugin_files)
    from objbench.score.scene_survey import survey

    found = survey(name, source, n)
    wrong = found.wrong()
    if as_json:
        about = {"data": name, "protocol": protocol_name, "seed": seed, "shape": source.shape}
        click.echo(json.dumps(about | found.as_json(), indent=2))
    else:
        _, height, width = source.shape
        click.echo(f"{name}: seed {seed}, {protocol_name} protocol, {width}x{height} pixels\n")
        click.echo(_surveyed(found))
        click.echo("\n".join(f"wrong: {line}" for line in wrong) or "nothing is wrong")
    sys.exit(bool(wrong))


@data.command()
@click.argument("name")
@plugin_option
def fetch(name: str, plugin_files: tuple[str, ...]) -> None:
    """Download the source files of a data set, and verify them."""
    target = load_plugins(plugin_files).data_spec(name).target
    with calling(f"'{name}'", "its fetch"):
        fetch_source = getattr(load_target(target), "fetch", None)
        said = fetch_source() if fetch_source else f"{name}: there is nothing to fetch"
    click.echo(said)


def _source(
    name: str, protocol_name: str, seed: int, options: tuple[str, ...], plugin_files: tuple[str, ...]
) -> SceneSource:
    registry = load_plugins(plugin_files)
    overrides = parse_overrides(options)
    if strange := sorted(set(overrides) - {name}):
        raise UsageError(
            f"-o {strange[0]}.{next(iter(overrides[strange[0]]))}: only options of {name} can be set here"
        )
    with calling(f"'{name}'", "its settings"):
        config = build_source_config(registry, name, protocol(protocol_name).name, overrides)
    with calling(f"'{name}'", "its constructor"):
        source: SceneSource = load_target(registry.data_spec(name).target)(config, seed)
    return source


def _batches(name: str, source: SceneSource, split: Split, n: int) -> Iterator[tuple[int, Scenes]]:
    """Batches of the first n scenes of a split, checked, each with the index of its first scene."""
    import torch

    from objbench.score.scene_checks import check_scenes

    with calling(f"'{name}'", "its size"):
        size = source.size(split)
    if size is not None and n > size:
        raise UsageError(f"--n {n}: the {split} split of {name} has {size} scenes")
    for start in range(0, n, _BATCH):
        yield start, check_scenes(name, source, split, torch.arange(start, min(n, start + _BATCH)))


def _summary(truth: GroundTruth, classes: tuple[str, ...]) -> str:
    """The objects of each class, objects per image and box sizes, as lines of text."""
    import torch

    per_class = torch.bincount(truth.labels, minlength=len(classes)).tolist()
    total, wide = len(truth.labels), max(len(name) for name in (*classes, "all classes"))
    lines = [f"{'class':<{wide}}  objects   share"]
    for name, count in (*zip(classes, per_class, strict=True), ("all classes", total)):
        lines.append(f"{name:<{wide}}  {count:>7,}  {count / max(total, 1):>6.1%}")
    per_image = torch.bincount(truth.image, minlength=truth.images)
    sizes = (truth.boxes[:, 2:] - truth.boxes[:, :2]).T
    lines.append(f"\n{'':<{wide}}  {'least':>7} {'mean':>7} {'most':>7}")
    for what, values in (
        ("objects", per_image.float()),
        ("box width", sizes[0]),
        ("box height", sizes[1]),
    ):
        if len(values):
            least, mean, most = values.min(), values.mean(), values.max()
            lines.append(f"{what:<{wide}}  {least:>7.4g} {mean:>7.2f} {most:>7.4g}")
    return "\n".join([*lines, ""])


def _surveyed(found: Survey) -> str:
    """One row per split: scenes, range of pixels, objects per image, and missing classes."""
    lines = [f"{'split':<10}  {'scenes':>12}  {'pixels':>13}  {'objects':>8}  an image: least, mean, most"]
    for split, row in found.as_json()["splits"].items():
        pixels = "{:.4g} to {:.4g}".format(*row["pixels"]) if row["pixels"] else "--"
        spread = "{}, {:.2f}, {}".format(*row["objects_per_image"]) if row["objects_per_image"] else "--"
        scenes = f"{'first ' * row['without_end']}{row['scenes']:,}"
        lines.append(f"{split:<10}  {scenes:>12}  {pixels:>13}  {row['objects']:>8,}  {spread}")
        if row["missing"]:
            lines.append(f"{'':<10}  no object of {', '.join(row['missing'])}")
        if row["repeated"]:
            lines.append(f"{'':<10}  {row['repeated']:,} images occur more than once")
        if row["one_colour"]:
            lines.append(f"{'':<10}  {row['one_colour']:,} images are of one colour")
    return "\n".join([*lines, ""])
