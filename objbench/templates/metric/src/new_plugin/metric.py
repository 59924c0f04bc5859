"""How many of the objects were found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from objbench.metric import PRESENT, Detections, GroundTruth, Weights

Counts = NDArray[np.int64]


def new_plugin(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """The share of true objects that a detection of score >= PRESENT overlaps with IoU > 0.5.

    NaN when there is no object in any image.
    """
    found, objects = counts(detections, truth)
    return {"new_plugin": float(found.sum() / objects.sum()) if objects.any() else math.nan}


def new_plugin_weighted(
    detections: Detections, truth: GroundTruth
) -> Callable[[Weights], Mapping[str, NDArray[np.float64]]]:
    """`new_plugin` for many draws of the scenes, which intervals need.

    Optional: without it (and without `weighted` in the spec) `new_plugin` is called once per draw, which is slow.
    """
    found, objects = counts(detections, truth)  # once: what a scene contains is the same in every draw

    def values(weights: Weights) -> dict[str, NDArray[np.float64]]:
        """weights [draws, images]: how many times each draw contains each scene."""
        with np.errstate(invalid="ignore"):  # 0 / 0 = NaN: a draw without objects
            return {"new_plugin": (weights @ found) / (weights @ objects)}

    return values


def counts(detections: Detections, truth: GroundTruth) -> tuple[Counts, Counts]:
    """The number of found objects and of all objects in each image, [images] each."""
    found = torch.zeros(len(truth.boxes), dtype=torch.bool)
    for image in range(truth.images):
        here = truth.image == image
        boxes = detections.boxes[(detections.image == image) & (detections.scores >= PRESENT)]
        found[here] = (box_iou(truth.boxes[here], boxes) > 0.5).any(1)
    return (
        np.bincount(truth.image[found], minlength=truth.images),
        np.bincount(truth.image, minlength=truth.images),
    )
