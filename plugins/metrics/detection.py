"""Whether boxes are where the objects are. All of these ignore classes and clusters."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import torch
from torch import Tensor

from objbench.matching import as_numpy, average_precision, best_truth, match, present
from objbench.metric import Detections, GroundTruth


def ap50(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """Average precision at IoU > 0.5, as in Pascal VOC (Everingham et al. 2010; GMAIR, Appendix C).

    All detections of all images are ranked by score, whatever their score. One is a hit when the true box it
    overlaps most has an IoU > 0.5 with it and no detection ranked higher has hit that box; every other one is
    false. AP is the area under the precision-recall curve, each precision raised to the highest at that or
    a higher recall. Detections of equal score enter together, so no order of images or detections matters.

    NaN when there is no object in any image; 0 when there are objects and no detections.
    """
    if not len(truth.labels):
        return {"ap50": math.nan}
    hits = match(detections, best_truth(detections, truth), 0.5)
    return {"ap50": average_precision(as_numpy(detections.scores), hits, len(truth.labels))}


def count_error(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """Mean over images of |detections of score >= PRESENT (0.5) - true objects|, in objects an image.

    Every image counts, an empty one too. 0 is perfect; NaN when there are no images.
    """
    if not truth.images:
        return {"count_error": math.nan}
    counted = np.bincount(as_numpy(present(detections).image), minlength=truth.images)
    there = np.bincount(as_numpy(truth.image), minlength=truth.images)
    return {"count_error": float(np.abs(counted - there).mean())}


def coco_ap(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """COCO's headline AP: mean over the IoU thresholds .50, .55 ... .95, by pycocotools, class-agnostic.

    It differs from `ap50` in more than the thresholds: IoU >= threshold, a detection may take its second best
    object, the curve is read at 101 recalls, and only the 100 highest scores of an image count. pycocotools
    ranks equal scores by the order of the images, so there, and only there, the order shows.

    NaN when there is no object in any image; 0 when there are objects and no detections.
    """
    if not len(truth.labels):
        return {"coco_ap": math.nan}
    if not len(detections.scores):  # pycocotools cannot load an empty list
        return {"coco_ap": 0.0}
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        annotated = COCO()
        annotated.dataset = {
            "images": [{"id": i} for i in range(truth.images)],
            "categories": [{"id": 1}],
            "annotations": [
                # ids from 1: pycocotools takes a match with id 0 for no match
                {
                    "id": i,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for i, (image, box) in enumerate(
                    zip(truth.image.tolist(), _xywh(truth.boxes), strict=True), 1
                )
            ],
        }
        annotated.createIndex()
        results = [
            {"image_id": image, "category_id": 1, "bbox": box, "score": score}
            for image, box, score in zip(
                detections.image.tolist(), _xywh(detections.boxes), detections.scores.tolist(), strict=True
            )
        ]
        evaluation = COCOeval(annotated, annotated.loadRes(results), "bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes: the only one read here
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    return {"coco_ap": float(evaluation.eval["precision"][..., -1].mean())}


def ap50_gmair(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """AP as the published script of GMAIR computes it (EmoFuncs/GMAIR-pytorch, gmair/test/metric.py).

    For comparison with figures made by that script, and with nothing else. It differs from `ap50` so:
    detections below 0.5 are dropped; the IoU adds one pixel to widths and heights, and is to be >= 0.5;
    false detections in images without objects are forgiven; precision is read at 1,000 score thresholds; and
    an index that is off by one admits all detections of an image together, at the lowest score among them.

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
    admitted_at = np.searchsorted(-thresholds, -lowest)[image]  # by the first threshold not above its lowest
    hits = match(kept, best, float(np.nextafter(0.5, 0)))  # that is, IoU >= 0.5
    counted = best.truth >= 0  # the image has objects
    return {"ap50_gmair": average_precision(-admitted_at[counted], hits[counted], len(truth.labels))}


def _xywh(boxes: Tensor) -> list[list[float]]:
    """Boxes [n, 4] as (x, y, width, height)."""
    corners = boxes.detach().double().cpu()
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
