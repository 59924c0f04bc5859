"""The contract of a metric.

A metric is a pure function of what was found and what is there:

    def my_metric(detections: Detections, truth: GroundTruth) -> dict[str, float]

It returns named numbers, fractions in 0..1 where the field writes percents; NaN where a number is not defined
(no detections, say). Its docstring holds the definition and the source. Because raw detections are kept, a
metric is cheap to run again: `objbench report` recomputes whatever a cell was not scored by.
"""

from __future__ import annotations

from collections.abc import Callable

from objbench.detector import PRESENT, Detections
from objbench.scenes import GroundTruth

Metric = Callable[[Detections, GroundTruth], dict[str, float]]
"""What a metric is."""

__all__ = ["PRESENT", "Detections", "GroundTruth", "Metric"]
