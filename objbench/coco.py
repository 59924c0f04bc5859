"""Reads and writes COCO files: ground truth (an annotations file) and detections (a results list).

In a results list `category_id` is the *cluster*: an integer from 0, or -1 for noise. It is null in every entry if
the detector does not cluster. COCO's `bbox` is [x, y, width, height]; ours are `xyxy` (see `objbench.scenes`) in
float64, so that numbers are not rounded before they are compared. If an entry has a `segmentation` (polygons or
RLE) but no `bbox`, its box is the box of the mask. Files may be compressed with gzip.

An id is an integer or a text, and its type counts: 7 and "7" are two ids.

Any error in a file raises UsageError with the file, the entry and the reason.
"""

from __future__ import annotations

import gc
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objbench.detector import NOISE, PRESENT, Detections
from objbench.errors import UsageError
from objbench.scenes import GroundTruth
from objbench.writing import write_file

Id = int | str
Floats = NDArray[np.float64]
INFO = {"description": "written by objbench"}
"""Part of every annotations file: pycocotools 2.0.9 and 2.0.10 need it."""
LARGEST = 3.4e38
"""The largest coordinate and score allowed, so that areas of boxes are finite."""
MANY = 5
"""That this many boxes all have x1 > x0 and y1 > y0 by chance is unlikely, if these are widths and heights."""
SMALLEST = 1e-290
"""The smallest area of a box: of smaller ones, float64 cannot give the IoU."""


class ListedImage(NamedTuple):
    """An entry of "images" in a file."""

    id: Id
    file_name: str | None
    """As in the file: a path relative to the file's folder, or only a name."""
    width: float | None
    height: float | None


@dataclass(frozen=True)
class TruthFile:
    """The contents of a COCO annotations file."""

    truth: GroundTruth
    """A label is the index of the category, in the order of ids (numbers before texts)."""
    images: list[ListedImage]
    """In the file's order."""
    class_names: list[str]
    """By label."""
    crowds: int
    """How many annotations with "iscrowd": 1 were left out.

    Such a region contains several objects. COCO ignores detections in it; here they count as false positives.
    """

    @property
    def image_ids(self) -> list[Id]:
        """The id of each image, in the file's order."""
        return [image.id for image in self.images]


_KINDS = {"image": "images", "category": "categories"}


def silent(_: str) -> None:
    """For `tell`: does nothing."""


def read_truth(
    path: str | Path, skip_invalid: bool = False, tell: Callable[[str], None] = silent
) -> TruthFile:
    """Reads the ground truth from a COCO annotations file, which must have at least one object.

    skip_invalid: leave out annotations with a bbox that has no size or is not finite, or with an image or category
    that is not in the file; otherwise they raise UsageError. tell: called with a line about annotations that were
    left out, and with a line if the boxes do not look like [x, y, width, height] in pixels.
    """
    value = _read(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(value, dict) or not all(isinstance(value.get(part), list) for part in parts):
        hint = "; a list is what --detections takes" if isinstance(value, list) else ""
        raise UsageError(f"{path}: not a COCO annotations file: needs the lists {', '.join(parts)}{hint}")
    images = _images(path, value)
    category_ids = _unique_ids(f"{path}: categories", value["categories"])
    categories = dict(zip(category_ids, value["categories"], strict=True))
    ascending = sorted(category_ids, key=lambda id_: (isinstance(id_, str), id_))
    entries = Entries(f"{path}: annotations", value["annotations"], skip_invalid)
    image = entries.places("image_id", [row.id for row in images])
    labels = entries.places("category_id", ascending)
    boxes = entries.boxes()
    entries.sound &= ~(crowds := entries.crowds())
    entries.check_ids()
    order = np.argsort(image, kind="stable")
    order = order[entries.sound[order]]
    if not len(order):
        left = f"none of the {len(crowds)} annotations counts ({crowds.sum()} are crowds)"
        raise UsageError(
            f"{path}: {left if len(crowds) else 'there is no annotation'}, so nothing to score against"
        )
    entries.report(tell)
    sizes = np.array([[row.width or math.nan, row.height or math.nan] for row in images])
    _hint(f"{path}: annotations", boxes[order], sizes[image[order]], tell)
    truth = GroundTruth(len(images), *(torch.from_numpy(part[order]) for part in (image, boxes, labels)))
    names = [str(categories[id_].get("name", id_)) for id_ in ascending]
    return TruthFile(truth, images, names, int(crowds.sum()))


def read_detections(
    path: str | Path,
    there: TruthFile | Sequence[Id],
    present: float | None = None,
    skip_invalid: bool = False,
    tell: Callable[[str], None] = silent,
) -> Detections:
    """Reads detections from a COCO results list, which may be empty, or from an annotations file with scores.

    there: the truth, or the ids of its images. Scores must be in 0..1 unless `present` is given. Then they may be
    any finite numbers: scores of at least `present` are mapped to PRESENT..1, and the others to values below PRESENT.
    Only the order of scores is kept, and which of them are equal.

    skip_invalid, tell: as in `read_truth`.
    """
    value = _read(path)
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        where, listed = f"{path}: annotations", value["annotations"]
        if not any(isinstance(entry, dict) and "score" in entry for entry in listed):
            raise UsageError(
                f"{path}: not a COCO results list, and its annotations have no scores; "
                "an annotations file is what --truth takes"
            )
        if isinstance(there, TruthFile) and isinstance(value.get("images"), list):
            _same_images(path, _images(path, value), there)
    elif isinstance(value, list):
        where, listed = f"{path}: detections", value
    else:
        raise UsageError(f"{path}: not a COCO results list: needs a list of detections")
    del value
    entries = Entries(where, listed, skip_invalid)
    image_ids = there.image_ids if isinstance(there, TruthFile) else there
    image = entries.places("image_id", image_ids)
    boxes, scores, clusters = entries.boxes(), entries.scores(present), entries.clusters()
    entries.report(tell)
    sound = entries.sound
    image, boxes, scores = image[sound], boxes[sound], scores[sound]
    if isinstance(there, TruthFile):
        extent = there.truth.boxes[:, 2:].amax(0).tolist()
        sizes = np.array([[row.width or extent[0], row.height or extent[1]] for row in there.images])
        _hint(where, boxes, sizes[image], tell)
    return Detections(
        len(image_ids),
        torch.from_numpy(image),
        torch.from_numpy(boxes),
        torch.from_numpy(_mapped(scores, present)),
        None if clusters is None else torch.from_numpy(clusters[sound]),
    )


def read_images(path: str | Path) -> list[ListedImage]:
    """The images in a COCO file, in its order. UsageError when one has no file name."""
    value = _read(path)
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise UsageError(f"{path}: not a COCO annotations file: needs the list images")
    images = _images(path, value)
    for i, image in enumerate(images):
        if image.file_name is None:
            raise UsageError(f"{path}: images[{i}] has no 'file_name'")
    return images


def write_truth(
    path: str | Path,
    truth: GroundTruth,
    sizes: Sequence[tuple[int, int]],
    file_names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Writes a COCO annotations file; never leaves an incomplete file.

    Image i gets the id i + 1, sizes[i] = (width, height) in pixels, and file_names[i]. Class k gets the category
    id k + 1 and class_names[k].
    """
    boxes = _xywh(truth.boxes)
    objects = zip(truth.image.tolist(), truth.labels.tolist(), boxes, strict=True)
    _write(
        path,
        {
            "info": INFO,
            "images": [
                {"id": i + 1, "width": sizes[i][0], "height": sizes[i][1], "file_name": file_names[i]}
                for i in range(truth.images)
            ],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
            "annotations": [
                {
                    "id": j,
                    "image_id": image + 1,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for j, (image, label, box) in enumerate(objects, 1)
            ],
        },
    )


def write_detections(path: str | Path, detections: Detections, image_ids: Sequence[Id] | None = None) -> None:
    """Writes a COCO results list; never leaves an incomplete file.

    Image i gets the id image_ids[i], or i + 1 as in `write_truth`. ValueError when the detections break their
    contract: `read_detections` would refuse the file.
    """
    if fault := detections.fault():
        raise ValueError(fault)
    ids = image_ids or range(1, detections.images + 1)
    clusters = (
        [None] * len(detections.scores) if detections.clusters is None else detections.clusters.tolist()
    )
    found = zip(
        detections.image.tolist(), clusters, _xywh(detections.boxes), detections.scores.tolist(), strict=True
    )
    _write(
        path,
        [
            {"image_id": ids[image], "category_id": cluster, "bbox": box, "score": score}
            for image, cluster, box, score in found
        ],
    )


class Entries:
    """The annotations or detections of a file, read column by column, and which of them are valid."""

    def __init__(self, where: str, entries: list[Any], skip_invalid: bool) -> None:
        """UsageError unless every entry is a JSON object."""
        self.where, self.entries, self.skip_invalid = where, entries, skip_invalid
        self.sound = np.ones(len(entries), dtype=np.bool_)
        """[n] False where an entry is left out."""
        self._left_out: dict[str, int] = {}
        _check_objects(where, entries)

    def places(self, key: str, known: Sequence[Id]) -> NDArray[np.int64]:
        """[n] the index of each entry's id in `known`; -1 for an entry that is left out because its id is unknown."""
        values, kind = _column(self.where, self.entries, key), key.removesuffix("_id")
        for i, value in _of_other_types(values, int, str):
            raise self._wrong(i, f"{key} {_short(value)} is neither an integer nor a text")
        place = {id_: i for i, id_ in enumerate(known)}
        places = np.fromiter((place.get(value, -1) for value in values), np.int64, len(values))
        for i in np.flatnonzero(places < 0).tolist():
            text = f"there is no {kind} with the id {_short(values[i])} in the truth"
            twin = next((id_ for id_ in known if str(id_) == str(values[i])), None)
            hint = "" if twin is None else f", but {_short(twin)}: numbers and texts are different ids"
            self._invalid(i, text + hint, f"of {_KINDS[kind]} that are not listed")
        return places

    def boxes(self) -> Floats:
        """[n, 4] float64 xyxy."""
        rows = [self._row(i, entry) for i, entry in enumerate(self.entries)]
        shape = "four finite numbers [x, y, width, height]"
        for i, row in enumerate(rows):
            if type(row) is not list or len(row) != 4:
                raise self._wrong(i, f"bbox {_short(row)} is not {shape}")
        flat = list(itertools.chain.from_iterable(rows))
        for i, _ in _of_other_types(flat, int, float):
            raise self._wrong(i // 4, f"bbox {_short(rows[i // 4])} is not {shape}")
        xywh = _as_floats(flat).reshape(-1, 4)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
            finite = np.all(np.abs(xywh) <= LARGEST, axis=1)  # NaN is not
            small = np.all(np.abs(boxes) <= LARGEST, axis=1) & finite
            sized = np.all(boxes[:, 2:] > boxes[:, :2], axis=1) & (np.prod(xywh[:, 2:], axis=1) >= SMALLEST)
        for i in np.flatnonzero(~(small & sized)).tolist():
            if not np.isfinite(xywh[i]).all():
                self._invalid(i, f"bbox {_short(rows[i])} is not {shape}", "with a bbox that is not finite")
            elif not small[i]:
                self._invalid(
                    i, f"bbox {_short(rows[i])} is out of range", "with a bbox that is out of range"
                )
            else:
                text = f"bbox {_short(rows[i])} is of zero or negative size ([x, y, width, height])"
                self._invalid(i, text, "with a bbox of no size")
        return boxes

    def check_ids(self) -> None:
        """UsageError when two entries have the same id: pycocotools would read the last of them twice."""
        numbered = [(i, entry["id"]) for i, entry in enumerate(self.entries) if "id" in entry]
        for j, value in _of_other_types([value for _, value in numbered], int, str):
            raise self._wrong(numbered[j][0], f"id {_short(value)} is neither an integer nor a text")
        first: dict[Id, int] = {}
        for i, value in numbered:
            if (before := first.setdefault(value, i)) != i:
                text = (
                    f"id {_short(value)} is also the id of annotations[{before}]; number the annotations anew"
                )
                raise self._wrong(i, text)

    def crowds(self) -> NDArray[np.bool_]:
        """[n] True for a region with several objects. UsageError unless "iscrowd" is 0, 1, true, false or absent."""
        values = [entry.get("iscrowd", 0) for entry in self.entries]
        for i, value in enumerate(values):
            if type(value) not in (int, float, bool) or value not in (0, 1):
                raise self._wrong(i, f"iscrowd {_short(value)} is neither 0 nor 1")
        return np.array(values, dtype=np.bool_)

    def scores(self, present: float | None) -> Floats:
        """[n] float64, finite; in 0..1 unless `present` is given."""
        values = _column(self.where, self.entries, "score")
        for i, value in _of_other_types(values, int, float):
            raise self._wrong(i, f"score {_short(value)} is not a finite number")
        scores = _as_floats(values)
        with np.errstate(invalid="ignore"):
            for i in np.flatnonzero(~(np.abs(scores) <= LARGEST)).tolist():
                what = "out of range" if math.isfinite(scores[i]) else "not a finite number"
                raise self._wrong(i, f"score {_short(values[i])} is {what}")
        for i in np.flatnonzero((scores < 0) | (scores > 1)).tolist() if present is None else []:
            raise self._wrong(
                i,
                f"score {_short(values[i])} is not in 0..1; for scores on another scale "
                "use --present with the lowest score of a detection that counts as present",
            )
        return scores

    def clusters(self) -> NDArray[np.int64] | None:
        """[n] int64 from 0, or NOISE; None when all are null. Clusters with text names are numbered in name order."""
        values = _column(self.where, self.entries, "category_id")
        types = set(map(type, values))
        if types == {type(None)}:
            return None
        if types == {str}:
            number = {name: i for i, name in enumerate(sorted(set(values)))}
            return np.array([number[value] for value in values], dtype=np.int64)
        for i, value in enumerate(values):
            if type(value) is not int or not NOISE <= value < 2**63:
                raise self._wrong(
                    i,
                    f"category_id {_short(value)} (the cluster) is not an integer from 0, or -1 for noise; "
                    "null in every entry says that there are no clusters",
                )
        return np.array(values, dtype=np.int64)

    def report(self, tell: Callable[[str], None]) -> None:
        """Calls `tell` with how many entries are left out, and why."""
        if self._left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._left_out.items())
            tell(f"{self.where}: {sum(self._left_out.values())} of {len(self.sound)} are left out: {reasons}")

    def _row(self, i: int, entry: dict[str, Any]) -> Any:
        """The entry's bbox as in the file, or the box of its mask."""
        row = entry.get("bbox")
        if row or not entry.get("segmentation"):
            if "bbox" not in entry:
                raise self._wrong(i, f"has no 'bbox', only {_short(list(entry))}", "")
            return row
        try:
            return mask_box(entry["segmentation"])
        except ValueError as error:
            raise self._wrong(i, f"segmentation {_short(entry['segmentation'])} {error}") from None

    def _wrong(self, i: int, what: str, colon: str = ":") -> UsageError:
        return UsageError(f"{self.where}[{i}]{colon} {what}")

    def _invalid(self, i: int, what: str, reason: str) -> None:
        """Leaves an entry out, or raises UsageError without `skip_invalid`."""
        if not self.skip_invalid:
            raise UsageError(f"{self._wrong(i, what)}; --skip-invalid leaves such entries out")
        if self.sound[i]:
            self.sound[i] = False
            self._left_out[reason] = self._left_out.get(reason, 0) + 1


def mask_box(segmentation: Any) -> list[float]:
    """The [x, y, width, height] of a mask: COCO polygons or RLE, compressed or not. An empty mask has size 0.

    ValueError when it is neither. pycocotools is not used: it does not check RLE and reads outside of memory for
    invalid RLE.
    """
    if isinstance(segmentation, list):
        numbers = []
        for ring in segmentation:
            if type(ring) is not list or len(ring) < 6 or len(ring) % 2:
                raise ValueError("is no list of polygons [x, y, x, y, x, y ...]")
            for _ in _of_other_types(ring, int, float):
                raise ValueError("has a corner that is not a number")
            numbers += ring
        points = _as_floats(numbers).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        return [*low.tolist(), *(high - low).tolist()]
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if type(size) is not list or [type(side) for side in size] != [int, int] or min(size) < 1:
        raise ValueError("is neither polygons nor RLE with the size [height, width]")
    counts, height = segmentation.get("counts"), size[0]
    runs = _decoded(counts) if isinstance(counts, str) else counts
    if type(runs) is not list or any(type(run) is not int or run < 0 for run in runs):
        raise ValueError("has counts that are neither numbers from 0 nor COCO's text of them")
    if sum(runs) != size[0] * size[1] or size[0] * size[1] >= 2**32:
        raise ValueError(f"has counts for {sum(runs)} pixels, but a size of {size[0]}x{size[1]}")
    ends = np.cumsum(np.array(runs, dtype=np.int64))
    first, last = ends[0::2][: len(ends) // 2], ends[1::2] - 1  # pixels of each run of the mask, by column
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        return [0.0, 0.0, 0.0, 0.0]
    x0, x1 = first // height, last // height
    whole = x0 < x1  # a run that continues in the next column touches bottom and top
    top, bottom = np.where(whole, 0, first % height).min(), np.where(whole, height - 1, last % height).max()
    left, right = x0.min(), x1.max()
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def _decoded(text: str) -> list[int]:
    """The counts of compressed RLE: five bits per character; from the third count on, differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("has counts that are not compressed RLE")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("has counts that are cut short")
    return runs


def _read(path: str | Path) -> Any:
    collecting = gc.isenabled()
    gc.disable()  # otherwise it scans millions of values again and again, and none of them is garbage
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        if form := _other_format(data):
            raise UsageError(f"{path}: not JSON: it is {form}")
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        del data  # large, and no longer needed
        return json.loads(text)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: starts like a gzip file, but cannot be decompressed: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: not JSON: line {error.lineno} column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # such as binary data, a number of 5,000 digits
        raise UsageError(f"{path}: not JSON: {error}") from None
    finally:
        if collecting:
            gc.enable()


def _other_format(data: bytes) -> str:
    """What a file is that is no JSON by its first bytes, in words; "" if it may be JSON."""
    begins = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not begins:
        return "" if len(data) > 512 else "empty"
    if begins.startswith(b"<"):
        return "a page of HTML or XML; was it downloaded from a web page?"
    if begins.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; run 'git lfs pull'"
    known = {
        b"pk\x03\x04": "zip",
        b"\x1f\x8b": "gzip",
        b"bzh": "bzip2",
        b"\xfd7zxz": "xz",
        b"\x28\xb5\x2f\xfd": "zstd",
    }
    return next(
        (f"compressed with {name}; unpack it" for magic, name in known.items() if begins.startswith(magic)),
        "",
    )


def _write(path: str | Path, value: Any) -> None:
    data = json.dumps(value, allow_nan=False).encode()
    try:
        write_file(Path(path), data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _check_objects(where: str, entries: list[Any]) -> None:
    for i, entry in _of_other_types(entries, dict):
        raise UsageError(f"{where}[{i}] is not a JSON object, but {_short(entry)}")


def _column(where: str, entries: list[dict[str, Any]], key: str) -> list[Any]:
    """entries[i][key] for all i."""
    for i, entry in enumerate(entries):
        if key not in entry:
            raise UsageError(f"{where}[{i}] has no '{key}', only {_short(list(entry))}")
    return [entry[key] for entry in entries]


def _of_other_types(values: list[Any], *types: type) -> Iterator[tuple[int, Any]]:
    """(index, value) of all values that have none of these types."""
    if not set(map(type, values)) <= set(types):
        yield from ((i, value) for i, value in enumerate(values) if type(value) not in types)


def _as_floats(values: list[float]) -> Floats:
    """Numbers as float64; those outside its range become infinite."""
    try:
        return np.fromiter(values, np.float64, len(values))
    except OverflowError:  # an integer of 400 digits
        return np.array([value if abs(value) <= LARGEST else math.inf for value in values], np.float64)


def _unique_ids(where: str, entries: list[Any]) -> list[Id]:
    _check_objects(where, entries)
    ids = _column(where, entries, "id")
    for i, value in _of_other_types(ids, int, str):
        raise UsageError(f"{where}[{i}]: id {_short(value)} is neither an integer nor a text")
    seen = set()
    for i, value in enumerate(ids):
        if value in seen:
            raise UsageError(f"{where}[{i}]: id {_short(value)} occurs twice")
        seen.add(value)
    return ids


def _images(path: str | Path, value: dict[str, Any]) -> list[ListedImage]:
    """The "images" of a file, with ids and names checked."""
    where, rows = f"{path}: images", value["images"]
    ids = _unique_ids(where, rows)
    for i, row in enumerate(rows):
        if not isinstance(row.get("file_name"), str | None):
            raise UsageError(f"{where}[{i}]: file_name {_short(row['file_name'])} is not a text")
    return [
        ListedImage(id_, row.get("file_name"), _side(row.get("width")), _side(row.get("height")))
        for id_, row in zip(ids, rows, strict=True)
    ]


def _side(value: Any) -> float | None:
    """A width or height in pixels; None when the file has none, or an invalid one."""
    return float(value) if type(value) in (int, float) and 0 < value <= LARGEST else None


def base_name(file_name: str) -> str:
    """The last part of a path with / or \\ as separator."""
    return file_name.replace("\\", "/").rpartition("/")[2]


def _same_images(path: str | Path, images: list[ListedImage], there: TruthFile) -> None:
    """UsageError when an id belongs to another file name than in the truth."""
    names = {image.id: image.file_name for image in there.images}
    for image in images:
        name = names.get(image.id)
        if name and image.file_name and base_name(name) != base_name(image.file_name):
            raise UsageError(
                f"{path}: image {_short(image.id)} is {_short(image.file_name)}, but {_short(name)} in the truth"
            )


def _hint(where: str, boxes: Floats, sizes: Floats, tell: Callable[[str], None]) -> None:
    """Calls `tell` when valid boxes [n, 4] do not look like [x, y, width, height] in pixels.

    sizes: [n, 2] width and height of each box's image; NaN when not known.
    """
    if not len(boxes):
        return
    corner, end = boxes[:, :2], boxes[:, 2:]
    if boxes.min() >= 0 and boxes.max() <= 1 and (boxes % 1).any() and not (sizes <= 1).any():
        tell(f"{where}: all boxes are within 0..1, like shares of the image size; bbox must be in pixels")
    extent = end - corner  # the last two numbers in the file, which may be x1, y1
    if not (extent > corner).all():
        return
    unknown = np.isnan(sizes)
    if (end > sizes + 1).any() and ((extent <= sizes) | unknown).all():
        why = "boxes leave their images and look like [x0, y0, x1, y1]"
    elif unknown.all() and len(boxes) >= MANY:
        why = "the images have no width and height, and all boxes could be [x0, y0, x1, y1]"
    else:
        return
    tell(f"{where}: {why}; bbox must be [x, y, width, height]")


def _mapped(scores: Floats, present: float | None) -> Floats:
    """Scores [n] mapped to 0..1; see `read_detections`."""
    if present is None:
        return scores
    distinct, rank = np.unique(scores, return_inverse=True)
    below = int((distinct < present).sum())
    low = np.arange(below) / max(below, 1) * PRESENT
    return np.concatenate([low, np.linspace(PRESENT, 1, len(distinct) - below)])[rank]


def _xywh(boxes: Tensor) -> list[list[float]]:
    """Boxes [n, 4] as [x, y, width, height]; in float64, so that reading gives the same float32 boxes again."""
    corners = boxes.double()
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
