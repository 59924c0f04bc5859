"""The toolkit of a metric's author: which detection lies on which object. No loop over images.

Lengths: m detections, n objects (truths), p pairs of a detection and an object of the same image. All of it
is numpy in float64; the tensors of `Detections` and `GroundTruth` are converted here, at the edge. A box
whose right or bottom edge lies before its left or top edge has no area and overlaps nothing.

    best = best_truth(detections, truth)
    hits = match(detections, best, 0.5)
    ap = average_precision(as_numpy(detections.scores), hits, len(truth.labels))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from objbench.detector import PRESENT, Detections
from objbench.scenes import GroundTruth

Ints = NDArray[np.int64]
"""Indices."""
Floats = NDArray[np.float64]
"""Values."""
Bools = NDArray[np.bool_]
"""Which of several."""


class Pairs(NamedTuple):
    """Every pair of a detection and an object in the same image, ordered by detection."""

    detection: Ints
    """`[p]` index into the detections."""
    truth: Ints
    """`[p]` index into the truth."""
    iou: Floats
    """`[p]` in 0..1."""


class Best(NamedTuple):
    """For every detection, the object of its image that it overlaps most."""

    truth: Ints
    """`[m]` index into the truth; -1 where the image has no object."""
    iou: Floats
    """`[m]` in 0..1; 0 where the image has no object."""


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """The values of a tensor, wherever it lives."""
    return tensor.detach().cpu().numpy()


def present(detections: Detections) -> Detections:
    """Those detections that the detector stands by: score >= PRESENT. What-latents are left out."""
    keep = detections.scores >= PRESENT
    return Detections(
        detections.images,
        detections.image[keep],
        detections.boxes[keep],
        detections.scores[keep],
        None if detections.clusters is None else detections.clusters[keep],
    )


def overlaps(detections: Detections, truth: GroundTruth, pixel: float = 0.0) -> Pairs:
    """The intersection over union of all pairs of a detection and an object in the same image.

    A detection's pairs are ordered by the objects' boxes (then labels), not by their place in the lists, so
    that whoever takes the first of equals does not depend on the order of the objects.

    pixel: added to every width and height; 1 gives the IoU of early detection code, which took x1 and y1 for
    the index of the last pixel. Ours are edges (see `objbench.scenes`), which need 0.
    """
    image, truth_image = as_numpy(detections.image), as_numpy(truth.image)
    found = as_numpy(detections.boxes).astype(np.float64).T.copy()  # [4, m]
    real = as_numpy(truth.boxes).astype(np.float64).T.copy()  # [4, n]
    order = np.lexsort((as_numpy(truth.labels), *real[::-1], truth_image))
    counts = np.bincount(truth_image, minlength=truth.images)
    starts = np.cumsum(counts) - counts  # where each image's objects begin in `order`

    repeats = counts[image]
    detection = np.repeat(np.arange(len(image)), repeats)
    first_pair = np.cumsum(repeats) - repeats
    object_ = order[np.arange(len(detection)) + np.repeat(starts[image] - first_pair, repeats)]

    def shared(low: int, high: int) -> Floats:
        """[p] how far the two boxes of each pair overlap along one axis."""
        end = np.minimum(found[high][detection], real[high][object_])
        extent: Floats = end - np.maximum(found[low][detection], real[low][object_]) + pixel
        return np.maximum(extent, 0, out=extent)

    both = shared(0, 2) * shared(1, 3)
    either = _area(found, pixel)[detection] + _area(real, pixel)[object_] - both
    return Pairs(detection, object_, np.divide(both, either, out=np.zeros_like(both), where=both > 0))


def best_truth(detections: Detections, truth: GroundTruth, pixel: float = 0.0) -> Best:
    """The object that each detection overlaps most; of equals, the one with the least (x0, y0, x1, y1)."""
    pairs = overlaps(detections, truth, pixel)
    best = Best(np.full(len(detections.image), -1), np.zeros(len(detections.image)))
    if len(pairs.iou):
        starts = np.flatnonzero(np.diff(pairs.detection, prepend=-1))
        lengths = np.diff(starts, append=len(pairs.iou))
        highest = np.maximum.reduceat(pairs.iou, starts)
        tops = np.flatnonzero(pairs.iou == np.repeat(highest, lengths))
        tops = tops[np.diff(pairs.detection[tops], prepend=-1) > 0]  # the first of a detection's equals
        best.truth[pairs.detection[starts]] = pairs.truth[tops]
        best.iou[pairs.detection[starts]] = highest
    return best


def match(detections: Detections, best: Best, threshold: float) -> Bools:
    """Which detections are hits, as VOC matches them: [m].

    A detection is a hit when its best object (and no other) overlaps it by an IoU strictly above `threshold`
    and no detection ranked higher has hit that object. Detections are ranked by score over all images, equal
    scores by IoU; so which objects are hit by which score does not depend on the order of the lists.
    """
    close = np.flatnonzero(best.iou > threshold)
    keys = (-best.iou[close], -as_numpy(detections.scores)[close], best.truth[close])
    ranked = close[np.lexsort(keys)]
    hits = np.zeros(len(best.iou), dtype=np.bool_)
    hits[ranked[np.diff(best.truth[ranked], prepend=-1) > 0]] = True
    return hits


def average_precision(scores: NDArray[Any], hits: Bools, objects: int) -> float:
    """The area under the interpolated precision-recall curve, 0..1.

    All-point interpolation: at each recall, the highest precision at that recall or a higher one (VOC since
    2010). Detections of equal score enter the curve together, so their order cannot matter.

    scores, hits: [m], of all images together. objects: how many there are to find, at least 1.
    """
    order = np.argsort(-scores)
    last_of_equals = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    found = np.cumsum(hits[order])[last_of_equals]
    precision = found / (last_of_equals + 1)
    highest_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(found, prepend=0) * highest_from_here) / objects)


def _area(sides: Floats, pixel: float) -> Floats:
    """[n] areas from the sides [4, n] of boxes."""
    x0, y0, x1, y1 = sides
    area: Floats = (x1 - x0 + pixel) * (y1 - y0 + pixel)
    return area
