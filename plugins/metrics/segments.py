"""Metrics that compare the masks of detections with those of the true objects. All ignore classes and clusters.

All values are NaN where the data knows no masks or the detector makes none.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from objbench.matching import (
    Bools,
    Floats,
    Ints,
    Pairs,
    as_numpy,
    average_precision_coco,
    coco_ranks,
    match_coco,
    weighted_precision_coco,
)
from objbench.metric import PRESENT, Detections, GroundTruth, Weights
from objbench_plugins.metrics.detection import COCO_THRESHOLDS

NAMES = ("fg_ari", "mbo", "mask_ap", "mask_ap50")


def segments(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """How well segments agree with the true objects' pixels.

    fg_ari: the adjusted Rand index on the foreground (Hubert and Arabie 1985; Greff et al. 2019), a mean over images
        with a foreground. Foreground are the pixels of exactly one true object. Of an image, they are grouped by
        true object and by the detection of score >= PRESENT (0.5) that covers them; where several do, by that of the
        highest score; pixels that none covers are one more group. Then it is scikit-learn's `adjusted_rand_score`,
        which is 1 for an image with one object in one segment, and can be below 0. One thing differs: an image in whose
        foreground no segment has a pixel counts as 0.
    mbo: mean best overlap (Pont-Tuset et al. 2017): for each true object the highest IoU with a detection of score >=
        PRESENT in its image, 0 without one; the mean over all objects.
    mask_ap: COCO's AP (Lin et al. 2014) with the IoU of masks, mean over the thresholds .50, .55 ... .95; mask_ap50: at
        .50. All detections count. They are pycocotools' figures for `segm`, but for what `coco_ap` says of ties and of
        more than 100 detections an image.

    NaN without masks, or where no image has an object; otherwise 0 when nothing is found.
    """
    if detections.masks is None or truth.masks is None or not len(truth.labels):
        return dict.fromkeys(NAMES, math.nan)
    of_image = _of_images(detections, truth)
    hits = _hits(detections, of_image.pairs)
    scores, objects = as_numpy(detections.scores), len(truth.labels)
    precisions = [average_precision_coco(scores, hit, objects) for hit in hits]
    seen = ~np.isnan(of_image.agreement)
    return {
        "fg_ari": float(of_image.agreement[seen].mean()) if seen.any() else math.nan,
        "mbo": float(of_image.overlap.sum() / objects),
        "mask_ap": float(np.mean(precisions)),
        "mask_ap50": precisions[0],
    }


def segments_weighted(
    detections: Detections, truth: GroundTruth
) -> Callable[[Weights], Mapping[str, NDArray[np.float64]]]:
    """`segments` for many draws of the scenes at once: agreement, overlaps and matches are found once."""
    if detections.masks is None or truth.masks is None or not len(truth.labels):
        return lambda weights: dict.fromkeys(NAMES, np.full(len(weights), np.nan))
    of_image = _of_images(detections, truth)
    scores, image = as_numpy(detections.scores), as_numpy(detections.image)
    precisions = [weighted_precision_coco(scores, hit, image) for hit in _hits(detections, of_image.pairs)]
    objects = np.bincount(as_numpy(truth.image), minlength=truth.images)
    seen = ~np.isnan(of_image.agreement)
    agreement = np.where(seen, of_image.agreement, 0)

    def values(weights: Weights) -> dict[str, NDArray[np.float64]]:
        there = weights @ objects
        curves = [precision(weights, there) for precision in precisions]
        return {
            "fg_ari": _share(weights @ agreement, weights @ seen),
            "mbo": _share(weights @ of_image.overlap, there),
            "mask_ap": np.mean(curves, axis=0),
            "mask_ap50": curves[0],
        }

    return values


class _OfImages(NamedTuple):
    """What is found in one pass over the images."""

    agreement: Floats
    """`[images]` adjusted Rand index of the foreground; NaN in an image without."""
    overlap: Floats
    """`[images]` the best overlaps of an image's objects, summed."""
    pairs: Pairs
    """Of detections and objects of one image, with the IoU of their masks, where that is above 0."""


def _of_images(detections: Detections, truth: GroundTruth) -> _OfImages:
    agreement, overlap = np.full(truth.images, np.nan), np.zeros(truth.images)
    parts: list[Pairs] = []
    stands = as_numpy(detections.scores) >= PRESENT
    for i, mine, theirs, found, there in _pixels(detections, truth):
        shared = found.astype(np.float32) @ there.astype(np.float32).T  # [k, objects] exact up to 2^24 pixels
        either = found.sum(1)[:, None] + there.sum(1) - shared
        iou = np.divide(shared, either, dtype=np.float64)
        here = stands[mine]
        overlap[i] = iou[here].max(0, initial=0).sum()
        agreement[i] = _agreement(found[here], there)
        row, column = np.nonzero(shared)
        parts.append(Pairs(mine[row], theirs[column], iou[row, column]))
    if not parts:
        return _OfImages(agreement, overlap, Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)))
    return _OfImages(agreement, overlap, Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True))))


def _pixels(detections: Detections, truth: GroundTruth) -> Iterator[tuple[int, Ints, Ints, Bools, Bools]]:
    """Of each image with objects: its number, which detections and which objects are in it, and their pixels.

    Detections [k] are ordered by score, objects [l] by class and box, so that the order of the lists cannot matter;
    pixels are [k, pixels] and [l, pixels].
    """
    masks, real = _bytes(detections.masks), _bytes(truth.masks)
    if len(masks) and masks.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"masks of {list(masks.shape[1:])} bytes were found in images of {list(real.shape[1:])}"
        )
    masks, real = (some.reshape(len(some), math.prod(some.shape[1:])) for some in (masks, real))
    best_first = _ordered(
        as_numpy(detections.image), -as_numpy(detections.scores), as_numpy(detections.boxes), masks
    )
    objects = _ordered(as_numpy(truth.image), as_numpy(truth.labels), as_numpy(truth.boxes), real)
    images = np.arange(truth.images)
    of_found = np.searchsorted(as_numpy(detections.image)[best_first], [images, images + 1])
    of_truth = np.searchsorted(as_numpy(truth.image)[objects], [images, images + 1])
    for i in np.flatnonzero(of_truth[1] > of_truth[0]).tolist():
        mine, theirs = best_first[slice(*of_found[:, i])], objects[slice(*of_truth[:, i])]
        found, there = (np.unpackbits(some, axis=1).astype(np.bool_) for some in (masks[mine], real[theirs]))
        yield i, mine, theirs, found, there


def _ordered(image: Ints, first: NDArray[np.generic], boxes: Floats, masks: NDArray[np.uint8]) -> Ints:
    """An order of rows by image, then `first`, box and contents of the mask."""
    names = np.array([zlib.crc32(mask.tobytes()) for mask in masks], dtype=np.int64)
    return np.lexsort((names, *boxes.T[::-1], first, image))


def _agreement(found: Bools, there: Bools) -> float:
    """The adjusted Rand index of segments [k, pixels], the first of which go before, and objects [l, pixels]."""
    foreground = there.sum(0) == 1
    pixels = int(foreground.sum())
    if not pixels:
        return math.nan
    found = found[:, foreground]
    covered = found.any(0)
    if not covered.any():
        return 0.0
    segment = np.where(covered, found.argmax(0), len(found))  # the first that covers a pixel
    object_ = there[:, foreground].argmax(0)
    table = np.bincount(object_ * (len(found) + 1) + segment, minlength=len(there) * (len(found) + 1))
    table = table.reshape(len(there), -1)
    together = float((table**2).sum() - pixels)  # ordered pairs of pixels in one segment of one object
    one_object = float((table.sum(1) ** 2).sum() - pixels)
    one_segment = float((table.sum(0) ** 2).sum() - pixels)
    if together == one_object == one_segment:  # equal groups; also where the index would be 0/0
        return 1.0
    expected = one_object * one_segment / (pixels * (pixels - 1))
    return (together - expected) / ((one_object + one_segment) / 2 - expected)


def _hits(detections: Detections, pairs: Pairs) -> list[Bools]:
    """Which detections [m] are hits by COCO's rule, at each of its thresholds."""
    order = np.argsort(pairs.detection, kind="stable")
    pairs = Pairs(pairs.detection[order], pairs.truth[order], pairs.iou[order])
    ranks = coco_ranks(detections, pairs)
    return [match_coco(ranks, pairs, threshold) for threshold in COCO_THRESHOLDS]


def _bytes(masks: Tensor | None) -> NDArray[np.uint8]:
    assert masks is not None
    return as_numpy(masks)


def _share(part: NDArray[Any], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    share: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return share
