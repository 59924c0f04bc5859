"""The values of metrics for test scenes that are drawn again, with replacement: what a bootstrap needs.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 6.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from objbench.detector import Detections
from objbench.guarded import calling
from objbench.hookspecs import MetricSpec
from objbench.metric import Metric, Weighted
from objbench.plugins import load_target
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_truth, select_scenes
from objbench.score.metrics import copied

DRAWS_AT_ONCE = 250
"""Draws that are computed together: enough for efficient numpy loops, few enough for the arrays to fit a cache."""

Floats = NDArray[np.float64]


Drawn = tuple[float, Floats]
"""One value of a metric: as measured, and for each draw of the scenes [draws]. NaN where it is not finite."""


def draw_cell(folder: str, spec: MetricSpec, first: int, end: int) -> dict[str, Any]:
    """The values of a metric for the draws first..end-1 of the test scenes of the cell in a folder, as JSON values.

    `scenes` identifies the test scenes, `points` and `replicates` are the values by name. The draws of a number are
    the same in every call. PluginFailed when the metric fails.
    """
    found, truth = load_detections(Path(folder)), load_truth(Path(folder))
    metric = load_target(spec.target)
    if spec.weighted:
        values = resample_weighted(found, truth, metric, load_target(spec.weighted), end, first, spec.name)
    else:
        values = resample(found, truth, metric, end, first, spec.name)
    return {
        "scenes": scenes_digest(truth).hex(),
        "points": {name: point for name, (point, _) in values.items()},
        "replicates": {name: of_draws.tolist() for name, (_, of_draws) in values.items()},
    }


def resample(
    detections: Detections,
    truth: GroundTruth,
    metric: Metric,
    draws: int,
    first: int = 0,
    name: str = "",
) -> dict[str, Drawn]:
    """Every value of a metric for draws of the scenes, those of numbers first..draws-1.

    Calls the metric once per draw. This works for every metric; `resample_weighted` is faster.
    """

    def values(found: Detections, there: GroundTruth) -> dict[str, float]:
        with calling(f"metric '{name}'", "its function"):
            return _finite(metric(found, there))

    points = values(copied(detections), copied(truth))
    replicates: dict[str, list[float]] = {name: [] for name in points}
    for indices in itertools.islice(_draws(truth, draws), first, None):
        drawn = values(*select_scenes(detections, truth, torch.from_numpy(indices)))
        for name_, of in replicates.items():
            of.append(drawn.get(name_, math.nan))
    return {name: (points[name], np.array(of)) for name, of in replicates.items()}


def resample_weighted(
    detections: Detections,
    truth: GroundTruth,
    metric: Metric,
    weighted: Weighted,
    draws: int,
    first: int = 0,
    name: str = "",
) -> dict[str, Drawn]:
    """Like `resample`, for a metric that computes many draws at once: the same draws and, up to rounding, values."""
    with calling(f"metric '{name}'", "its function"):
        points = _finite(metric(copied(detections), copied(truth)))
    with calling(f"metric '{name}'", "its weighted function"):
        of_weights = weighted(copied(detections), copied(truth))
    numbered = itertools.islice(_draws(truth, draws), first, None)
    parts: list[Mapping[str, Floats]] = []
    while chunk := list(itertools.islice(numbered, DRAWS_AT_ONCE)):
        weights = np.stack([np.bincount(indices, minlength=truth.images) for indices in chunk])
        with calling(f"metric '{name}'", "its weighted function"):
            part = of_weights(weights)
            parts.append({value: np.asarray(part[value], dtype=np.float64) for value in points})
    joined = {value: np.concatenate([part[value] for part in parts]) for value in points}
    return {value: (points[value], np.where(np.isfinite(v), v, np.nan)) for value, v in joined.items()}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """NaN for a value that is not finite, as in records."""
    known = {str(name): float(value) for name, value in values.items()}
    return {name: v if math.isfinite(v) else math.nan for name, v in known.items()}


def _draws(truth: GroundTruth, draws: int) -> Iterator[NDArray[np.int64]]:
    """The scene indices [images] of each draw; they depend only on the truth, so runs on the same scenes share them."""
    generator = np.random.default_rng(list(scenes_digest(truth)))
    for _ in range(draws):
        yield generator.integers(truth.images, size=truth.images)


def scenes_digest(truth: GroundTruth) -> bytes:
    """16 bytes that identify a set of test scenes."""
    digest = hashlib.sha256(str(truth.images).encode())
    for tensor in (truth.image, truth.boxes, truth.labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()[:16]
