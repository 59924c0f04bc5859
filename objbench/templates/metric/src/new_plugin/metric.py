"""How many of the objects were found."""

from __future__ import annotations

import math

from torchvision.ops import box_iou

from objbench.metric import PRESENT, Detections, GroundTruth


def new_plugin(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """The share of true objects that a detection of score >= PRESENT overlaps with IoU > 0.5.

    NaN when there is no object in any image.
    """
    if not len(truth.boxes):
        return {"new_plugin": math.nan}
    found = 0
    for image in range(truth.images):
        boxes = detections.boxes[(detections.image == image) & (detections.scores >= PRESENT)]
        found += int((box_iou(truth.boxes[truth.image == image], boxes) > 0.5).any(1).sum())
    return {"new_plugin": found / len(truth.boxes)}
