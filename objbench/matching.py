"""Functions for authors of metrics: matching detections to objects, without a loop over images.

Lengths: m detections, n objects (ground truth), p pairs of a detection and an object of the same image. All
computations use numpy in float64; this module converts the tensors of `Detections` and `GroundTruth`. A box whose
right or bottom edge comes before its left or top edge has no area and overlaps nothing.

    best = best_truth(detections, truth)
    hits = match(detections, best, 0.5)
    ap = average_precision(as_numpy(detections.scores), hits, len(truth.labels))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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

PAIRS_AT_ONCE = 1_000_000
"""The number of pairs whose overlaps are computed together; more pairs are computed in parts, to save memory."""
RECALLS = np.linspace(0, 1, 101)
"""The recalls at which COCO samples a precision-recall curve."""


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
    """The values of a tensor on any device, as a numpy array."""
    return tensor.detach().cpu().numpy()


def present(detections: Detections) -> Detections:
    """The detections with score >= PRESENT, without what-latents and masks."""
    return chosen(detections, detections.scores >= PRESENT)


def chosen(detections: Detections, keep: Tensor) -> Detections:
    """The detections where `keep` [m] bool is true, without what-latents and masks."""
    return replace(detections, what=None, masks=None).select(keep.nonzero()[:, 0])


def overlaps(detections: Detections, truth: GroundTruth, pixel: float = 0.0) -> Pairs:
    """The intersection over union of all pairs of a detection and an object in the same image.

    A detection's pairs are ordered by the objects' boxes (then labels), not by their positions in the lists. So
    code that takes the first of several equal pairs does not depend on the order of the objects.

    pixel: added to every width and height; 1 gives the IoU of early detection code, in which x1 and y1 are the
    index of the last pixel. In objbench x1 and y1 are edges (see `objbench.scenes`), which need 0.
    """
    return _joined(list(_in_parts(detections, truth, pixel)))


def close_pairs(detections: Detections, truth: GroundTruth, least: float) -> Pairs:
    """The pairs of `overlaps` with an IoU of at least `least`, in the same order."""
    close = []
    for part in _in_parts(detections, truth, 0.0):
        keep = part.iou >= least
        close.append(Pairs(part.detection[keep], part.truth[keep], part.iou[keep]))
    return _joined(close)


def best_truth(detections: Detections, truth: GroundTruth, pixel: float = 0.0) -> Best:
    """The object that each detection overlaps most; among equals, the one with the smallest (x0, y0, x1, y1)."""
    best = Best(np.full(len(detections.image), -1), np.zeros(len(detections.image)))
    for pairs in _in_parts(detections, truth, pixel):
        starts = np.flatnonzero(np.diff(pairs.detection, prepend=-1))
        lengths = np.diff(starts, append=len(pairs.iou))
        highest = np.maximum.reduceat(pairs.iou, starts)
        tops = np.flatnonzero(pairs.iou == np.repeat(highest, lengths))
        tops = tops[np.diff(pairs.detection[tops], prepend=-1) > 0]  # the first of a detection's equals
        best.truth[pairs.detection[starts]] = pairs.truth[tops]
        best.iou[pairs.detection[starts]] = highest
    return best


def match(detections: Detections, best: Best, threshold: float) -> Bools:
    """Which detections are hits by VOC's matching rule: [m].

    A detection is a hit when its best object (and no other) overlaps it by an IoU strictly above `threshold`
    and no detection ranked higher has hit that object. Detections are ranked by score over all images, equal
    scores by IoU. So the result does not depend on the order of the lists.
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


def weighted_precision(
    scores: NDArray[Any], hits: Bools, image: Ints
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]:
    """`average_precision` for many draws (resamples) of the images at once: sorts once, then applies weights.

    scores, hits, image: [m], of all images together. The function returned takes weights [draws, images], how often a
    draw holds each image, and objects [draws], how many there are to find; it gives the average precisions [draws],
    NaN where there are no objects.
    """
    order = np.argsort(-scores)
    last_of_equals = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    image, hits = image[order], hits[order]

    def precisions(weights: NDArray[np.int64], objects: NDArray[np.int64]) -> Floats:
        of_detection = weights[:, image]  # [draws, m]
        ranked = of_detection.cumsum(1)[:, last_of_equals]
        found = (of_detection * hits).cumsum(1)[:, last_of_equals]
        # A group of which a draw holds nothing repeats the one before it, or is 0 of 0, and adds no area.
        precision = found / np.maximum(ranked, 1)
        highest_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        area = (np.diff(found, axis=1, prepend=0) * highest_from_here).sum(1)
        share: Floats = np.divide(area, objects, out=np.full(len(weights), np.nan), where=objects > 0)
        return share

    return precisions


def coco_ranks(detections: Detections, pairs: Pairs, ties: Sequence[NDArray[Any]] = ()) -> Ints:
    """The rank [m] of each detection in COCO's matching order: by score, the highest first.

    Equal scores are ordered by their highest IoU, then by their boxes; never by their position in the list.

    pairs: from `close_pairs`, at the lowest threshold that is used. ties: keys [m] that order detections equal
    in all of these; the first key counts first.
    """
    highest = np.zeros(len(detections.image))
    np.maximum.at(highest, pairs.detection, pairs.iou)
    boxes = as_numpy(detections.boxes)
    order = np.lexsort((*ties[::-1], *boxes.T[::-1], -highest, -as_numpy(detections.scores)))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def match_coco(ranks: Ints, pairs: Pairs, threshold: float) -> Bools:
    """Which detections are hits by COCO's matching rule: [m]; see `coco_matches`."""
    return coco_matches(ranks, pairs, threshold) >= 0


def coco_matches(ranks: Ints, pairs: Pairs, threshold: float) -> Ints:
    """The object that each detection takes by COCO's matching rule: [m] index into the truth; -1 where it takes none.

    In the order of `ranks`, each detection takes one object: among the objects that are not taken yet and have an
    IoU of at least `threshold` with it, the one with the highest IoU; among equals, the last one in `pairs`.
    So, unlike in `match`, a detection may take its second-best object.

    There is no loop over detections. All detections request their best object at once. Each object keeps the
    request of the highest rank, and the other detections request their next best object. All objects prefer
    detections in the same order, so this (Gale and Shapley 1962) gives the same result as the sequential rule.
    """
    taken = np.full(len(ranks), -1, dtype=np.int64)
    kept = np.flatnonzero(pairs.iou >= min(threshold, 1 - 1e-10))  # as in pycocotools; for a threshold of 1
    if not len(kept):
        return taken
    # A list of wishes for each detection that has any, the best first. Asker a is the a-th of these by rank.
    kept = kept[np.lexsort((-kept, -pairs.iou[kept], ranks[pairs.detection[kept]]))]
    detection, wish = pairs.detection[kept], pairs.truth[kept]
    now = np.flatnonzero(np.diff(detection, prepend=-1))
    end, asker = np.append(now[1:], len(kept)), detection[now]
    nobody = len(asker)
    holder = np.full(int(wish.max()) + 1, nobody)
    asking = np.arange(nobody)
    while len(asking):
        asked = wish[now[asking]]
        before = holder[asked]
        np.minimum.at(holder, asked, asking)
        put_out = before[(before < nobody) & (holder[asked] != before)]
        refused = np.unique(np.concatenate([asking[holder[asked] != asking], put_out]))
        now[refused] += 1
        asking = refused[now[refused] < end[refused]]
    objects = np.flatnonzero(holder < nobody)
    taken[asker[holder[objects]]] = objects
    return taken


def average_precision_coco(scores: NDArray[Any], hits: Bools, objects: int) -> float:
    """The mean of the interpolated precision at 101 recalls (0, .01 ... 1), as in COCO, 0..1.

    Detections of equal score enter the curve together; pycocotools differs in this.

    scores, hits: [m], of all images together. objects: how many there are to find, at least 1.
    """
    if not len(scores):
        return 0.0
    order = np.argsort(-scores)
    last_of_equals = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    found = np.cumsum(hits[order], dtype=np.int64)[last_of_equals]
    return interpolated_coco(found, last_of_equals + 1, objects)


def interpolated_coco(found: Ints, ranked: Ints, objects: int) -> float:
    """`average_precision_coco` of a curve: at each of its points, `found` of `ranked` detections are hits.

    found, ranked: [p], ascending. Points that find nothing new may be left out. objects: as there.
    """
    precision = np.append(found / ranked, 0.0)
    highest_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(highest_from_here[np.searchsorted(found / objects, RECALLS)].mean())


def weighted_precision_coco(
    scores: NDArray[Any], hits: Bools, image: Ints
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]:
    """`average_precision_coco` for many draws of the images at once; arguments and result: see `weighted_precision`."""
    order = np.argsort(-scores)
    last_of_equals = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    image, hits = image[order], hits[order]

    def precisions(weights: NDArray[np.int64], objects: NDArray[np.int64]) -> Floats:
        of_detection = weights[:, image]  # [draws, m]
        ranked = of_detection.cumsum(1)[:, last_of_equals]
        found = (of_detection * hits).cumsum(1)[:, last_of_equals]
        precision = np.append(found / np.maximum(ranked, 1), np.zeros((len(weights), 1)), axis=1)
        highest_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recalls = found / np.maximum(objects, 1)[:, None]
        curves = zip(recalls, highest_from_here, strict=True)
        area = np.array([highest[np.searchsorted(recall, RECALLS)].mean() for recall, highest in curves])
        return np.where(objects > 0, area, np.nan)

    return precisions


class CocoFigures(NamedTuple):
    """By COCO's rules, at one IoU threshold."""

    precision: float
    """Average precision, 0..1."""
    recall: float
    """Share of the objects that are found, 0..1."""


def coco_figures(
    detections: Detections, truth: GroundTruth, thresholds: Sequence[float]
) -> list[CocoFigures]:
    """At each threshold of IoU (above 0, at most 1); the truth must have an object. See `match_coco`."""
    pairs = close_pairs(detections, truth, min(*thresholds, 1 - 1e-10))
    ranks, scores, objects = coco_ranks(detections, pairs), as_numpy(detections.scores), len(truth.labels)
    figures = []
    for threshold in thresholds:
        hits = match_coco(ranks, pairs, threshold)
        figures.append(CocoFigures(average_precision_coco(scores, hits, objects), int(hits.sum()) / objects))
    return figures


def contingency(labels: Ints, clusters: Ints) -> tuple[Ints, Ints, Ints]:
    """The number of boxes for each pair of class and cluster; only classes and clusters that occur.

    labels, clusters: [b]. Returns the table [classes, clusters], the class of each row and the cluster of
    each column, both ascending.
    """
    classes, row = np.unique(labels, return_inverse=True)
    groups, column = np.unique(clusters, return_inverse=True)
    size = len(classes) * len(groups)
    table = np.bincount(row * len(groups) + column, minlength=size).reshape(len(classes), len(groups))
    return table, classes, groups


def _in_parts(detections: Detections, truth: GroundTruth, pixel: float) -> Iterator[Pairs]:
    """What `overlaps` returns, in parts of about PAIRS_AT_ONCE; a detection's pairs are all in one part."""
    image, truth_image = as_numpy(detections.image), as_numpy(truth.image)
    real = as_numpy(truth.boxes).astype(np.float64).T.copy()  # [4, n]
    order = np.lexsort((as_numpy(truth.labels), *real[::-1], truth_image))
    counts = np.bincount(truth_image, minlength=truth.images)
    starts = np.cumsum(counts) - counts  # where each image's objects begin in `order`
    real_area = _area(real, pixel)

    with_any = np.flatnonzero(counts[image])
    parts = np.cumsum(counts[image[with_any]]) // PAIRS_AT_ONCE
    for some in np.split(with_any, np.flatnonzero(np.diff(parts)) + 1):
        if not len(some):
            continue
        found = as_numpy(detections.boxes)[some].astype(np.float64).T.copy()  # [4, part of m]
        repeats = counts[image[some]]
        place = np.repeat(np.arange(len(some)), repeats)
        first_pair = np.cumsum(repeats) - repeats
        object_ = order[np.arange(len(place)) + np.repeat(starts[image[some]] - first_pair, repeats)]

        def shared(low: int, high: int, found: Floats, place: Ints, object_: Ints) -> Floats:
            """[p] how far the two boxes of each pair overlap along one axis."""
            end = np.minimum(found[high][place], real[high][object_])
            extent: Floats = end - np.maximum(found[low][place], real[low][object_]) + pixel
            return np.maximum(extent, 0, out=extent)

        both = shared(0, 2, found, place, object_) * shared(1, 3, found, place, object_)
        either = _area(found, pixel)[place] + real_area[object_] - both
        iou = np.divide(both, either, out=np.zeros_like(both), where=both > 0)
        yield Pairs(some[place], object_, iou)


def _joined(parts: list[Pairs]) -> Pairs:
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    detection, truth, iou = zip(*parts, strict=True)
    return Pairs(np.concatenate(detection), np.concatenate(truth), np.concatenate(iou))


def _area(sides: Floats, pixel: float) -> Floats:
    """[n] areas from the sides [4, n] of boxes."""
    x0, y0, x1, y1 = sides
    area: Floats = (x1 - x0 + pixel) * (y1 - y0 + pixel)
    return area
