"""Checks that the scenes of a data plugin follow the contract, before anything is trained on them.

In a data set of known size every scene is decoded and checked, once: if all are correct, this is remembered in the
user's cache under a hash of the data set's name, options, source code and fingerprint. In a data set generated
without end, the first `FIRST` scenes of each split are checked, every time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import click
import torch
from torch import Tensor

from objbench.cells.files import canonical
from objbench.cells.identity import Cell
from objbench.cells.result import CellResult
from objbench.errors import UsageError
from objbench.guarded import Ask, PluginFailed, ask_here, calling
from objbench.masks import mask_fault
from objbench.options import build
from objbench.plugins import Registry, load_target
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split
from objbench.writing import write_file

SPLITS: tuple[Split, ...] = get_args(Split)
FIRST = 32
"""How many scenes of a split without end are checked."""
VERSION = 2
"""To be raised when the checks change: then data sets that were remembered as correct are checked again."""

_BATCH = 256
_VALUES = 2**24  # pixel values in a batch at most: 64 MB
_MANY = 1000  # a check of more scenes than this is announced


class Fault(NamedTuple):
    """One error in a batch of scenes."""

    part: Literal["images", "truth"]
    scene: int | None
    """The scene's index in the batch; None when the batch as a whole is wrong."""
    what: str


def faults(scenes: Scenes, shape: SceneShape, classes: int, expected: int) -> list[Fault]:
    """The errors in `expected` scenes of this shape and number of classes; an empty list when there is no error.

    Images must be `[n, *shape]` float32, finite and in 0..1. The truth must be for n images, with `image` ascending
    in 0..n-1, boxes finite, of positive size and inside the image, and labels in 0..classes-1. The list has at most
    one entry per scene for its pixels, one for its boxes and one for its labels.
    """
    if not (isinstance(scenes, Scenes) and isinstance(scenes.images, Tensor)):
        return [Fault("images", None, f"{type(scenes).__name__} instead of Scenes with a tensor of images")]
    if not isinstance(scenes.truth, GroundTruth):
        return [Fault("truth", None, f"their truth is {type(scenes.truth).__name__}, not GroundTruth")]
    return _of_images(scenes.images, shape, expected) + _of_truth(scenes.truth, shape, classes, expected)


def _of_images(images: Tensor, shape: SceneShape, expected: int) -> list[Fault]:
    if list(images.shape) != [expected, *shape]:
        return [Fault("images", None, f"images of shape {list(images.shape)}, not {[expected, *shape]}")]
    if images.dtype != torch.float32:
        return [Fault("images", None, f"images of type {_type(images)}, not float32")]
    if not images.numel():
        return []
    low, high = torch.aminmax(images.flatten(1), dim=1)  # NaN where one pixel is NaN
    found = []
    for i in torch.nonzero(~((low >= 0) & (high <= 1)))[:, 0].tolist():
        if bad := int((~images[i].isfinite()).sum()):
            what = f"{bad} of {images[i].numel()} pixels are NaN or infinite"
        else:
            what = f"pixels from {low[i]:.4g} to {high[i]:.4g}; they must be in 0..1"
        found.append(Fault("images", i, what))
    return found


def _of_truth(truth: GroundTruth, shape: SceneShape, classes: int, n: int) -> list[Fault]:
    image, boxes, labels = truth.image, truth.boxes, truth.labels
    if truth.images != n:
        return [Fault("truth", None, f"their truth is of {truth.images} images, not {n}")]
    for name, values, dtype in (
        ("image", image, torch.int64),
        ("boxes", boxes, torch.float32),
        ("labels", labels, torch.int64),
    ):
        if not isinstance(values, Tensor):
            return [Fault("truth", None, f"truth.{name} is {type(values).__name__}, not a tensor")]
        if values.dtype != dtype:
            right = str(dtype).removeprefix("torch.")
            return [Fault("truth", None, f"truth.{name} of type {_type(values)}, not {right}")]
    if truth.masks is not None and (fault := mask_fault(truth.masks, shape.height, shape.width)):
        return [Fault("truth", None, f"truth.masks: {fault}")]
    if not len(image):
        return []
    if not ((image.diff() >= 0).all() and image[0] >= 0 and image[-1] < n):
        return [Fault("truth", None, f"truth.image is not ascending in 0..{n - 1}: {_some(image)}")]
    limits = boxes.new_tensor([shape.width, shape.height] * 2)
    good = (boxes >= 0).all(1) & (boxes <= limits).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    found = []
    for i, j in _first_of_each(image, ~good):
        box = boxes[j]
        if not box.isfinite().all():
            what = "is not finite"
        elif not (box[2:] > box[:2]).all():
            what = "has no size (x0, y0, x1, y1 with x1 > x0 and y1 > y0)"
        else:
            what = f"leaves the image of {shape.width}x{shape.height} pixels"
        found.append(Fault("truth", i, f"{_place(image, i, j)}: box {_some(box)} {what}"))
    for i, j in _first_of_each(image, (labels < 0) | (labels >= classes)):
        what = f"label {int(labels[j])} is not one of the {classes} classes, 0 to {classes - 1}"
        found.append(Fault("truth", i, f"{_place(image, i, j)}: {what}"))
    return found


def check_scenes(name: str, source: SceneSource, split: Split, indices: Tensor) -> Scenes:
    """The scenes at `indices` [n]. UsageError with data set, split, scene and value when one is wrong."""
    scenes = scenes_of(name, source, split, indices)
    for fault in faults(scenes, source.shape, len(source.classes), len(indices)):
        raise UsageError(described(name, source, split, indices, fault))
    return scenes


def check_source(name: str, source: SceneSource, identity: Mapping[str, Any] | None = None) -> None:
    """Checks the scenes of every split: all scenes of a split with a size, the first `FIRST` of one without end.

    identity: everything that the scenes depend on, as JSON values. If it is given, a data set of known size that is
    correct is remembered and not decoded again. Raises UsageError for the first error.
    """
    sizes = checked_sizes(name, source)
    scenes = sum(size or 0 for size in sizes.values())
    remembered = None
    if identity is not None and scenes:
        described = {**identity, "shape": source.shape, "classes": source.classes, "checks": VERSION}
        remembered = _memory() / hashlib.sha256(canonical(described).encode()).hexdigest()[:32]
    if remembered is None or not remembered.exists():
        if scenes > _MANY:
            click.echo(f"{name}: checking all {scenes:,} scenes (only once)", err=True)
        for split, size in sizes.items():
            if size is not None:
                plain = 0
                for indices in batches(source.shape, size):
                    plain += int(of_one_colour(check_scenes(name, source, split, indices).images).sum())
                if plain == size:
                    raise UsageError(f"{name}: {nothing_to_see(split, size)}")
        if remembered is not None:
            with suppress(OSError):  # if the cache cannot be written, the data set is checked again next time
                remembered.parent.mkdir(parents=True, exist_ok=True)
                write_file(remembered, b"")
    for split, size in sizes.items():
        if size is None:
            check_scenes(name, source, split, torch.arange(FIRST))


def of_one_colour(images: Tensor) -> Tensor:
    """[n] True where all pixels of an image [n, channels, height, width] are equal."""
    pixels = images.flatten(2)
    return (pixels == pixels[:, :, :1]).flatten(1).all(1)


def nothing_to_see(split: Split, count: int) -> str:
    """The error of a split in which every image is of one colour."""
    return f"each of the {count:,} {split} images is of one colour; was its file created, but never filled?"


def check_data_of(
    registry: Registry, cells: Iterable[Cell], ask: Ask = ask_here, failures: list[CellResult] | None = None
) -> list[Cell]:
    """Checks the scenes of every data set that the cells use, each once. Raises the errors of `check_source`.

    Returns the cells that did not fail. ask, failures: as in `objbench.cells.matrix.matrix`.
    """
    failed: dict[str, PluginFailed | None] = {}
    left = []
    for cell in cells:
        identity = cell.training.identity
        depends_on = {name: identity[name] for name in ("data", "data_config", "data_code", "fingerprint")}
        if (key := canonical(depends_on)) not in failed:
            try:
                ask(f"'{identity['data']}'", _check_data, registry, cell.training.data_config, depends_on)
                failed[key] = None
            except PluginFailed as error:
                if failures is None:
                    raise
                failed[key] = error
        if failures is not None and (error_ := failed[key]):
            failures.append(replace(cell.result("failed"), cell="", error=str(error_)))
        else:
            left.append(cell)
    return left


def _check_data(registry: Registry, config: Mapping[str, Any], depends_on: Mapping[str, Any]) -> None:
    name = depends_on["data"]
    with calling(f"'{name}'", "its constructor"):
        source_class = load_target(registry.data_spec(name).target)
        source = source_class(build(source_class.Config, name, config), 0)
    check_source(name, source, depends_on)


def checked_sizes(name: str, source: SceneSource) -> dict[Split, int | None]:
    """How many scenes each split has; None for a split without end. UsageError when a split has no scenes."""
    with calling(f"'{name}'", "its size"):
        sizes = {split: source.size(split) for split in SPLITS}
    for split, size in sizes.items():
        if size is not None and not (isinstance(size, int) and not isinstance(size, bool) and size > 0):
            raise UsageError(
                f"{name}: its {split} split has {size!r} scenes; it needs at least one (None means without end)"
            )
    return sizes


def batches(shape: SceneShape, count: int) -> Iterator[Tensor]:
    """The indices 0..count-1 in consecutive parts whose images need at most about 64 MB."""
    length = max(1, min(_BATCH, _VALUES // max(1, shape.channels * shape.height * shape.width)))
    yield from torch.split(torch.arange(count), length)


def scenes_of(name: str, source: SceneSource, split: Split, indices: Tensor) -> Scenes:
    """The scenes at `indices` [n]. Any error of the plugin becomes PluginFailed, with a text of one line."""
    try:
        with calling(f"'{name}'", "its scenes"):
            return source.scenes(split, indices)
    except PluginFailed as error:
        span = f"{int(indices[0])} to {int(indices[-1])}" if len(indices) else "(none)"
        raise PluginFailed(
            f"{name}: {split} scenes {span} cannot be made: {error.what}", error.what
        ) from None


def described(name: str, source: SceneSource, split: Split, indices: Tensor, fault: Fault) -> str:
    """A fault of the scenes at `indices` in one line: data set, split, scene, its origin, and the error."""
    if fault.scene is None:
        return f"{name}: {split} scenes {int(indices[0])} to {int(indices[-1])}: {fault.what}"
    index = int(indices[fault.scene])
    with calling(f"'{name}'", "its origin"):
        origin = source.origin(split, index)
    return f"{name}: {split} scene {index}{f' ({origin})' * bool(origin)}: {fault.what}"


def _memory() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("objbench") / "checked"


def _first_of_each(image: Tensor, bad: Tensor) -> Iterator[tuple[int, int]]:
    """(image, object) of the first bad object of each image."""
    seen = -1
    for j in torch.nonzero(bad)[:, 0].tolist():
        if (i := int(image[j])) != seen:
            seen = i
            yield i, j


def _place(image: Tensor, i: int, j: int) -> str:
    return f"object {j - int((image < i).sum())}"


def _some(values: Tensor) -> str:
    shown = ", ".join(f"{v:.6g}" for v in values[:8].tolist())
    return f"[{shown}{', ...' * (len(values) > 8)}]"


def _type(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
