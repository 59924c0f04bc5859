"""What goes wrong in a cell: kinds of errors as in TIDE, of one class, and what kind of object is found.

Lengths as in `objbench.matching`: m detections, n objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from objbench.detector import Detections
from objbench.matching import (
    Bools,
    Floats,
    as_numpy,
    average_precision_coco,
    best_truth,
    close_pairs,
    coco_matches,
    coco_ranks,
    overlaps,
)
from objbench.mistakes import BACKGROUND, BADLY_PLACED, NEAR, PLACED, Verdicts
from objbench.scenes import GroundTruth

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""COCO's thresholds of IoU."""

COVERED = 0.5
"""The share of a box from which it counts as lying inside another."""

FIXES = ("missed", "loose box", "double", "on background")
"""Kinds of errors at IoU 0.5; see `gains`."""


def gains(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """AP at IoU 0.5 that each kind of error costs: the AP without these errors, minus the AP; 0..1.

    As TIDE (Bolya et al., ECCV 2020, section 2) with one class, so without its errors of classification; all
    detections count, of any score. "loose box": the best IoU is in 0.1..0.5; repaired, the one of highest score takes
    its object if nobody else does, and the others are removed. "double": the best IoU is at least 0.5, but another
    takes the object; removed. "on background": below 0.1; removed. "missed": objects that nothing takes, and that no
    loose box would take; they are not counted. The truth must have an object.
    """
    pairs = close_pairs(detections, truth, PLACED)
    taken = coco_matches(coco_ranks(detections, pairs), pairs, PLACED)
    best = best_truth(detections, truth)
    scores, hits, n = as_numpy(detections.scores), taken >= 0, len(truth.labels)
    found = np.zeros(n, dtype=np.bool_)
    found[taken[hits]] = True
    loose = ~hits & (best.iou >= NEAR) & (best.iou < PLACED)
    double, background = ~hits & (best.iou >= PLACED), ~hits & (best.iou < NEAR)

    candidates = np.flatnonzero(loose & ~found[best.truth])
    candidates = candidates[np.lexsort((-best.iou[candidates], -scores[candidates]))]
    _, first = np.unique(best.truth[candidates], return_index=True)
    repaired = hits.copy()
    repaired[candidates[first]] = True
    missed = int((~found).sum()) - len(first)

    def precision(hits: Bools, kept: Bools, objects: int = n) -> float:
        return average_precision_coco(scores[kept], hits[kept], objects) if objects else 1.0

    everything = np.ones(len(scores), dtype=np.bool_)
    now = precision(hits, everything)
    fixed = {
        "missed": precision(hits, everything, n - missed),
        "loose box": precision(repaired, ~loose | repaired),
        "double": precision(hits, ~double),
        "on background": precision(hits, ~background),
    }
    return {kind: value - now for kind, value in fixed.items()}


def split_or_joined(detections: Detections, truth: GroundTruth, verdicts: Verdicts) -> tuple[Bools, Bools]:
    """Which wrong boxes are parts of one object, and which hold several objects: [m], [m].

    Of boxes that are on no object (IoU under 0.5). joined: at least half of each of two objects lies in the box.
    split: at least half of the box lies in an object that nothing takes, and so it is with another box.
    """
    pairs = overlaps(detections, truth)
    area = _areas(as_numpy(detections.boxes))[pairs.detection]
    whole = _areas(as_numpy(truth.boxes))[pairs.truth]
    both = pairs.iou * (area + whole) / (1 + pairs.iou)
    wrong = np.isin(verdicts.kind, (BADLY_PLACED, BACKGROUND))
    m, n = len(verdicts.kind), len(truth.labels)
    held = np.bincount(pairs.detection[both >= COVERED * whole], minlength=m)
    joined = wrong & (held > 1)
    part = (both >= COVERED * area) & (wrong & ~joined)[pairs.detection] & verdicts.missed[pairs.truth]
    parts = np.bincount(pairs.truth[part], minlength=n)
    split = np.zeros(m, dtype=np.bool_)
    split[pairs.detection[part & (parts[pairs.truth] > 1)]] = True
    return split, joined


def recall_by(values: NDArray[np.float64], edges: Sequence[float], found: Bools) -> list[float | None]:
    """The share of objects that are found in each of the bins between `edges`; None in an empty bin.

    values: [n], found: [n]. A bin holds its lower edge, the last one also its upper.
    """
    where = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    of = np.bincount(where, minlength=len(edges) - 1)
    got = np.bincount(where[found], minlength=len(edges) - 1)
    return [float(g / k) if k else None for g, k in zip(got.tolist(), of.tolist(), strict=True)]


def sizes(truth: GroundTruth) -> Floats:
    """[n] the square root of each object's area, in pixels."""
    sides: Floats = np.sqrt(_areas(as_numpy(truth.boxes)))
    return sides


def crowding(truth: GroundTruth) -> Floats:
    """[n] how many objects are in the scene of each object, itself included."""
    image = as_numpy(truth.image)
    counts: Floats = np.bincount(image, minlength=truth.images)[image].astype(np.float64)
    return counts


def _areas(boxes: NDArray[np.floating]) -> Floats:
    boxes = boxes.astype(np.float64)
    areas: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas
