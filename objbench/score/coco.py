"""COCO files: a truth (annotations file) and detections (results list), read and written.

In a results list `category_id` is the *cluster*, an integer from 0; null in every entry says that the
detector does not cluster. COCO's `bbox` is [x, y, width, height]; ours are `xyxy` (see `objbench.scenes`).

Whatever is wrong with a file that is read raises UsageError with the file, the entry and the reason.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objbench.cells.files import write_file
from objbench.detector import PRESENT, Detections
from objbench.errors import UsageError
from objbench.scenes import GroundTruth


@dataclass(frozen=True)
class TruthFile:
    """What a COCO annotations file says."""

    truth: GroundTruth
    """Labels are places in the file's categories, by ascending id."""
    image_ids: list[int]
    """The file's id of each image, in the file's order."""
    crowds: int
    """How many annotations with "iscrowd": 1 were left out.

    Such a region stands for several objects. COCO forgives detections in it; here they count as false.
    """


def read_truth(path: str | Path) -> TruthFile:
    """The ground truth of a COCO annotations file; it must hold at least one object."""
    value = _read(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(value, dict) or not all(isinstance(value.get(part), list) for part in parts):
        hint = "; a list is what --detections takes" if isinstance(value, list) else ""
        raise UsageError(f"{path}: not a COCO annotations file: needs the lists {', '.join(parts)}{hint}")
    image_ids = _unique_ids(f"{path}: images", value["images"])
    category_ids = _unique_ids(f"{path}: categories", value["categories"])
    where, entries = f"{path}: annotations", value["annotations"]
    image = _places(where, entries, "image_id", image_ids)
    labels = _places(where, entries, "category_id", sorted(category_ids))
    boxes = _boxes(where, entries)
    single = torch.tensor([not entry.get("iscrowd") for entry in entries], dtype=torch.bool)
    order = torch.argsort(image, stable=True)
    order = order[single[order]]
    if not len(order):
        raise UsageError(f"{path}: there is no annotation, so nothing to score against")
    truth = GroundTruth(len(image_ids), image[order], boxes[order], labels[order])
    return TruthFile(truth, image_ids, crowds=len(entries) - len(order))


def read_detections(path: str | Path, image_ids: Sequence[int], present: float | None = None) -> Detections:
    """The detections of a COCO results list, which may be empty.

    image_ids: the truth's, see `TruthFile`. Scores must be in 0..1 unless `present` is given. Then they may
    be any finite numbers, and the detector stands by those of at least `present`: they are mapped to
    PRESENT..1, the others below it. The map keeps their order and which are equal, nothing else of them.
    """
    entries = _read(path)
    where = f"{path}: detections"
    if not isinstance(entries, list):
        hint = "; an annotations file is what --truth takes" if isinstance(entries, dict) else ""
        raise UsageError(f"{path}: not a COCO results list: needs a list of detections{hint}")
    return Detections(
        images=len(image_ids),
        image=_places(where, entries, "image_id", image_ids),
        boxes=_boxes(where, entries),
        scores=_scores(where, entries, present),
        clusters=_clusters(where, entries),
    )


def write_truth(
    path: str | Path,
    truth: GroundTruth,
    sizes: Sequence[tuple[int, int]],
    file_names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Writes a COCO annotations file, whole or not at all.

    Image i gets the id i + 1, sizes[i] = (width, height) in pixels and file_names[i]; class k gets the
    category id k + 1 and class_names[k].
    """
    boxes = _xywh(truth.boxes)
    objects = zip(truth.image.tolist(), truth.labels.tolist(), boxes, strict=True)
    _write(
        path,
        {
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


def write_detections(
    path: str | Path, detections: Detections, image_ids: Sequence[int] | None = None
) -> None:
    """Writes a COCO results list, whole or not at all.

    Image i is given the id image_ids[i], or i + 1 as in `write_truth`.
    ValueError when a box has no size or a value is not finite: nobody could read it.
    """
    corners = detections.boxes
    sound = (corners[:, 2:] > corners[:, :2]).all(1) & torch.isfinite(corners).all(1)
    sound &= torch.isfinite(detections.scores)
    if not sound.all():
        raise ValueError(
            f"{int((~sound).sum())} detections have a box of no size, or a box or score not finite"
        )
    ids = image_ids or range(1, detections.images + 1)
    clusters = [None] * len(sound) if detections.clusters is None else detections.clusters.tolist()
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


def _read(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: not JSON: line {error.lineno} column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # not text, a number of 5,000 digits, 100,000 brackets
        raise UsageError(f"{path}: not JSON: {error}") from None


def _write(path: str | Path, value: Any) -> None:
    data = json.dumps(value, allow_nan=False).encode()
    try:
        write_file(Path(path), data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _column(where: str, entries: list[Any], key: str) -> list[Any]:
    """entries[i][key] for all i."""
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UsageError(f"{where}[{i}] is not an object with keys, but {_short(entry)}")
        if key not in entry:
            raise UsageError(f"{where}[{i}] has no '{key}', only {_short(list(entry))}")
    return [entry[key] for entry in entries]


def _unique_ids(where: str, entries: list[Any]) -> list[int]:
    ids = _column(where, entries, "id")
    seen = set()
    for i, value in enumerate(ids):
        if type(value) is not int:
            raise UsageError(f"{where}[{i}]: id {_short(value)} is not an integer")
        if value in seen:
            raise UsageError(f"{where}[{i}]: id {_short(value)} occurs twice")
        seen.add(value)
    return ids


def _places(where: str, entries: list[Any], key: str, known: Sequence[int]) -> Tensor:
    """[n] int64: where each entry's id stands in `known`."""
    place = {id_: i for i, id_ in enumerate(known)}
    places = []
    for i, value in enumerate(_column(where, entries, key)):
        if type(value) is not int:
            raise UsageError(f"{where}[{i}]: {key} {_short(value)} is not an integer")
        if value not in place:
            kind = key.removesuffix("_id")
            raise UsageError(f"{where}[{i}]: there is no {kind} with the id {_short(value)} in the truth")
        places.append(place[value])
    return torch.tensor(places, dtype=torch.int64)


def _boxes(where: str, entries: list[Any]) -> Tensor:
    """[n, 4] float32 xyxy."""
    rows = _column(where, entries, "bbox")
    for i, row in enumerate(rows):
        if type(row) is not list or len(row) != 4 or not all(map(_is_number, row)):
            raise UsageError(
                f"{where}[{i}]: bbox {_short(row)} is not four finite numbers [x, y, width, height]"
            )
    xywh = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).float()
    bad = ~((boxes[:, 2:] > boxes[:, :2]).all(dim=1) & torch.isfinite(boxes).all(dim=1))
    if bad.any():
        i = int(bad.nonzero()[0])
        wrong = "is of zero or negative size" if torch.isfinite(boxes[i]).all() else "is out of range"
        raise UsageError(f"{where}[{i}]: bbox {_short(rows[i])} {wrong} ([x, y, width, height])")
    return boxes


def _scores(where: str, entries: list[Any], present: float | None) -> Tensor:
    """[n] float32 in 0..1."""
    values = _column(where, entries, "score")
    for i, value in enumerate(values):
        if not _is_number(value):
            raise UsageError(f"{where}[{i}]: score {_short(value)} is not a finite number")
        if present is None and not 0 <= value <= 1:
            raise UsageError(
                f"{where}[{i}]: score {_short(value)} is not in 0..1; for scores on another scale "
                "give --present, the score from which on the detector stands by a box"
            )
    scores = torch.tensor(values, dtype=torch.float64)
    if present is None:
        return scores.float()
    distinct, rank = torch.unique(scores, return_inverse=True)
    below = int((distinct < present).sum())
    low = torch.arange(below) / below * PRESENT if below else torch.zeros(0)
    high = torch.linspace(PRESENT, 1, len(distinct) - below)
    return torch.cat([low, high])[rank].float()


def _clusters(where: str, entries: list[Any]) -> Tensor | None:
    """[n] int64 from 0; None when all are null."""
    values = _column(where, entries, "category_id")
    if values and all(value is None for value in values):
        return None
    for i, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**63:
            raise UsageError(
                f"{where}[{i}]: category_id {_short(value)} (the cluster) is not an integer from 0; "
                "null in every entry says that there are no clusters"
            )
    return torch.tensor(values, dtype=torch.int64)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 3.4e38  # False for NaN, for infinity and for 10**400


def _xywh(boxes: Tensor) -> list[list[float]]:
    """Boxes [n, 4] as COCO writes them; in float64, so that reading gives back the same float32."""
    corners = boxes.double()
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
