"""The contract of a metric.

A metric is a pure function of what was found and what is there:

    def my_metric(detections: Detections, truth: GroundTruth) -> dict[str, float]

It returns named numbers, fractions in 0..1 where the field writes percents; NaN where a number is not defined
(no detections, say). Its docstring holds the definition and the source. Because raw detections are kept, a
metric is cheap to run again: `objbench report` recomputes whatever a cell was not scored by.
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
"""[draws, images], >= 0: how often each draw holds each scene."""
Weighted = Callable[[Detections, GroundTruth], Callable[[Weights], Mapping[str, NDArray[np.float64]]]]
"""What `MetricSpec.weighted` names. It looks at detections and truth once (matches, sorts, counts by scene), and
returns a function of weights, which gives each value of the metric for each draw: [draws], NaN where the metric gives
NaN. A value must be what the metric gives for detections and truth that hold scene i `weights[i]` times, to rounding;
`objbench check` compares the two.
"""

__all__ = ["NOISE", "PRESENT", "Detections", "GroundTruth", "Metric", "Weighted", "Weights"]
