"""Metrics that compare boxes with the true objects. All of them ignore classes and clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from objbench.matching import (
    as_numpy,
    average_precision,
    best_truth,
    coco_figures,
    match,
    present,
    weighted_precision,
)
from objbench.metric import Detections, GroundTruth, Weights

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""IoU thresholds, equal to those of pycocotools to the last bit."""


def ap50(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """Average precision at IoU > 0.5, as in Pascal VOC (Everingham et al. 2010; GMAIR, Appendix C).

    All detections of all images are ranked by score; none is left out. A detection is a hit when its IoU with the
    true box that it overlaps most is > 0.5, and no detection with a higher rank has hit that box; all others are
    false. AP is the area under the precision-recall curve, in which each precision is replaced by the highest
    precision at the same or a higher recall. Detections with equal scores are added to the curve together, so the
    order of images and detections does not matter.

    NaN when there is no object in any image; 0 when there are objects and no detections.
    """
    if not len(truth.labels):
        return {"ap50": math.nan}
    hits = match(detections, best_truth(detections, truth), 0.5)
    return {"ap50": average_precision(as_numpy(detections.scores), hits, len(truth.labels))}


def ap50_weighted(
    detections: Detections, truth: GroundTruth
) -> Callable[[Weights], Mapping[str, NDArray[np.float64]]]:
    """`ap50` for many draws of the scenes at once: a hit is a hit in every draw that contains its scene."""
    hits = match(detections, best_truth(detections, truth), 0.5)
    objects = np.bincount(as_numpy(truth.image), minlength=truth.images)
    precisions = weighted_precision(as_numpy(detections.scores), hits, as_numpy(detections.image))
    return lambda weights: {"ap50": precisions(weights, weights @ objects)}


def f1(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """Precision, recall and their harmonic mean F1, of the boxes with a score >= PRESENT (0.5), at IoU > 0.5.

    Boxes are matched as in `ap50`: of several boxes on one object, one is a hit and the others are false.

    f1: 2 hits / (boxes + objects).
    precision: hits / boxes; 0 when there is no box.
    recall: hits / objects.

    All are NaN when there is no object in any image; 0 when there are objects and no boxes.
    """
    objects = len(truth.labels)
    if not objects:
        return dict.fromkeys(("f1", "precision", "recall"), math.nan)
    kept = present(detections)
    hits, boxes = int(match(kept, best_truth(kept, truth), 0.5).sum()), len(kept.image)
    return {"f1": 2 * hits / (boxes + objects), "precision": hits / max(boxes, 1), "recall": hits / objects}


def f1_weighted(
    detections: Detections, truth: GroundTruth
) -> Callable[[Weights], Mapping[str, NDArray[np.float64]]]:
    """`f1` for many draws of the scenes at once: counts of each scene, weighted."""
    kept = present(detections)
    hits = match(kept, best_truth(kept, truth), 0.5)
    image = as_numpy(kept.image)
    of_image = np.stack(  # [images, (hits, boxes, objects)]
        [np.bincount(which, minlength=truth.images) for which in (image[hits], image, as_numpy(truth.image))],
        axis=1,
    )

    def values(weights: Weights) -> dict[str, NDArray[np.float64]]:
        of_draw = weights @ of_image
        hit, boxes, objects = of_draw.T
        shares = {"f1": (2 * hit, boxes + objects), "precision": (hit, boxes), "recall": (hit, objects)}
        return {
            name: np.where(objects > 0, part / np.maximum(whole, 1), np.nan)
            for name, (part, whole) in shares.items()
        }

    return values


def count_error(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """How many objects are counted, in objects an image: detections of score >= PRESENT (0.5).

    count_error: mean over images of |detections - true objects|. Every image counts, an empty one too. 0 is
        perfect; NaN when there is no object in any image: such scenes usually have no annotations.
    count: mean over images of the detections; NaN when there are no images.
    """
    if not truth.images:
        return {"count_error": math.nan, "count": math.nan}
    counted = np.bincount(as_numpy(present(detections).image), minlength=truth.images)
    there = np.bincount(as_numpy(truth.image), minlength=truth.images)
    error = float(np.abs(counted - there).mean()) if len(truth.image) else math.nan
    return {"count_error": error, "count": float(counted.mean())}


def coco_ap(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """COCO's AP, AP75 and AR (Lin et al. 2014; cocoapi, cocoeval.py), class-agnostic.

    coco_ap: mean over the IoU thresholds .50, .55 ... .95 of the average precision.
    coco_ap75: the average precision at .75 only.
    coco_ar: mean over the same thresholds of the share of objects that are found.

    Beside the thresholds, it differs from `ap50` in three ways: the IoU must be >= threshold, a detection may match
    its second best object, and the curve is evaluated at 101 recalls. The values are equal to those of pycocotools
    with two exceptions: all detections of an image count, not only the 100 with the highest scores, and equal scores
    are added to the curve together, so the order of images and detections does not matter. `GroundTruth` has no crowd
    regions: `objbench score` leaves them out, so a detection in one is false, while COCO ignores it.

    NaN when there is no object in any image; 0 when there are objects and no detections.
    """
    names = ("coco_ap", "coco_ap75", "coco_ar")
    if not len(truth.labels):
        return dict.fromkeys(names, math.nan)
    figures = coco_figures(detections, truth, COCO_THRESHOLDS)
    precisions, recalls = [f.precision for f in figures], [f.recall for f in figures]
    values = (np.mean(precisions), precisions[5], np.mean(recalls))
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def ap50_gmair(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """AP as the published script of GMAIR computes it (EmoFuncs/GMAIR-pytorch, gmair/test/metric.py).

    Only for comparison with figures from that script. It differs from `ap50` in these ways: detections below 0.5 are
    dropped; the IoU adds one pixel to widths and heights, and must be >= 0.5; false detections in images without
    objects do not count; precision is evaluated at 1,000 score thresholds; and because of an off-by-one index, all
    detections of an image are added together, at the lowest score among them.

    NaN when there is no object in any image; 0 when there are objects and no detections.
    """
    if not len(truth.labels):
        return {"ap50_gmair": math.nan}
    kept = present(detections)
    best = best_truth(kept, truth, pixel=1.0)
    image = as_numpy(kept.image)
    lowest = np.full(truth.images, np.inf)
    np.minimum.at(lowest, image, as_numpy(kept.scores).astype(np.float64))
    thresholds = 1 - np.arange(1, 1001) / 1000
    admitted_at = np.searchsorted(-thresholds, -lowest)[image]  # the first threshold not above its lowest
    hits = match(kept, best, float(np.nextafter(0.5, 0)))  # that is, IoU >= 0.5
    counted = best.truth >= 0  # the image has objects
    return {"ap50_gmair": average_precision(-admitted_at[counted], hits[counted], len(truth.labels))}
