"""The contract of a metric.

A metric is a pure function of the detections and the ground truth:

    def my_metric(detections: Detections, truth: GroundTruth) -> dict[str, float]

It returns named numbers: fractions in 0..1 for values usually written as percents, and NaN for values that are not
defined (for example, without detections). Its docstring gives the definition and the source. Raw detections are
kept, so a metric is cheap to run again: `objbench report` computes the metrics that a cell does not have yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from objbench.detector import NOISE, PRESENT, Detections
from objbench.scenes import GroundTruth

Metric = Callable[[Detections, GroundTruth], dict[str, float]]
"""What a metric is."""

Weights = NDArray[np.int64]
"""[draws, images], >= 0: how many times each draw (resample) contains each scene."""
Weighted = Callable[[Detections, GroundTruth], Callable[[Weights], Mapping[str, NDArray[np.float64]]]]
"""The type of the function that `MetricSpec.weighted` names.

It processes detections and truth once (matches, sorts, counts by scene) and returns a function of weights. That
function returns each value of the metric for each draw: [draws], NaN where the metric gives NaN. A value must equal,
up to rounding, the metric on detections and truth that contain scene i `weights[i]` times; `objbench check` compares
the two.
"""

__all__ = ["NOISE", "PRESENT", "Detections", "GroundTruth", "Metric", "Weighted", "Weights"]
