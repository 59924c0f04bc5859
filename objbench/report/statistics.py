"""The uncertainty of a table's figures: bootstrap intervals over test scenes and seeds, and paired comparisons.

A row of the table is one model on one data set with several seeds. Each seed is a training run; runs are tested on
the same scenes or on different ones. The mean over runs is uncertain for two reasons, and the bootstrap models both:

- **Scenes.** The test scenes of each run are drawn again with replacement and scored again, many times. The draws
  depend only on the true boxes, so all runs tested on the same scenes use the same draws: comparisons are paired.
- **Seeds.** Three runs are too few to resample: the 95 % interval of resampled means would be their range, which
  contains the true median only 75 % of the time. So this part is drawn from Student's t distribution with n - 1
  degrees of freedom. Its width is the spread between runs that the scenes do not explain.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 6, 8, 13 (percentiles).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import numpy as np
import torch
from numpy.typing import NDArray

from objbench.detector import Detections
from objbench.metric import Metric, Weighted
from objbench.plugins import Registry, load_target
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_truth, select_scenes

if TYPE_CHECKING:
    from objbench.report.rows import Row


Key = TypeVar("Key", bound=Hashable)

DRAWS_AT_ONCE = 250
"""Draws that are computed together: enough for efficient numpy loops, few enough for the arrays to fit a cache."""
PLAIN_DRAWS = 200
"""How many draws at most for a metric that is called once per draw."""
LEVEL = 0.95
"""The share of repeated experiments whose interval should contain the true value."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One metric value of one training run: as measured, and for resampled test scenes."""

    point: float
    replicates: Floats  # [resamples]


def resample(
    detections: Detections,
    truth: GroundTruth,
    metrics: Sequence[Metric],
    resamples: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Run]:
    """Every value of every metric for `resamples` draws of the scenes; `tick` is called after each draw.

    Calls the metrics once per draw. This works for every metric; `resample_weighted` is faster.
    """
    points = _score(metrics, detections, truth)
    replicates: dict[str, list[float]] = {name: [] for name in points}
    for indices in _draws(truth, resamples):
        drawn = _score(metrics, *select_scenes(detections, truth, torch.from_numpy(indices)))
        for name, values in replicates.items():
            values.append(drawn[name])
        tick()
    return {name: Run(points[name], np.array(values)) for name, values in replicates.items()}


def resample_weighted(
    detections: Detections, truth: GroundTruth, metric: Metric, weighted: Weighted, resamples: int
) -> dict[str, Run]:
    """Like `resample`, for a metric that computes many draws at once: the same draws and, up to rounding, values."""
    points = _score([metric], detections, truth)
    of_weights = weighted(detections, truth)
    draws = _draws(truth, resamples)
    parts: list[Mapping[str, Floats]] = []
    while chunk := list(itertools.islice(draws, DRAWS_AT_ONCE)):
        weights = np.stack([np.bincount(indices, minlength=truth.images) for indices in chunk])
        parts.append(of_weights(weights))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in points}
    return {name: Run(points[name], np.where(np.isfinite(v), v, np.nan)) for name, v in joined.items()}


def _score(metrics: Sequence[Metric], detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """The values of all metrics; NaN for a value that is not finite, as in records."""
    values = {name: float(v) for metric in metrics for name, v in metric(detections, truth).items()}
    return {name: v if math.isfinite(v) else math.nan for name, v in values.items()}


def _draws(truth: GroundTruth, resamples: int) -> Iterator[NDArray[np.int64]]:
    """The scene indices [images] of each draw; they depend only on the truth, so runs on the same scenes share them."""
    generator = np.random.default_rng(list(scenes_digest(truth)))
    for _ in range(resamples):
        yield generator.integers(truth.images, size=truth.images)


def scenes_digest(truth: GroundTruth) -> bytes:
    """16 bytes that identify a set of test scenes."""
    digest = hashlib.sha256(str(truth.images).encode())
    for tensor in (truth.image, truth.boxes, truth.labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()[:16]


def interval(runs: Sequence[Run]) -> tuple[float, float]:
    """The 95 % interval of the mean over runs; (nan, nan) if the value of a run is undefined.

    With one run, only the uncertainty over scenes is included; that over seeds is unknown.
    """
    if not runs or np.isnan([run.point for run in runs]).any():
        return float("nan"), float("nan")
    points = np.array([run.point for run in runs])
    replicates = np.stack([run.replicates for run in runs])  # [runs, resamples]
    # Repeated scenes bias some metrics (NMI upwards), so only deviations from the mean of the replicates are used.
    deviations = replicates - np.nanmean(replicates, axis=1, keepdims=True)
    of_scenes = np.nanmean(deviations, axis=0)
    means = points.mean() + of_scenes + _between_seeds(points, deviations)
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _between_seeds(points: Floats, deviations: Floats) -> Floats | float:
    """Draws [resamples] of the error of the mean over seeds that the draw of scenes does not explain."""
    n = len(points)
    if n == 1:
        return 0.0
    of_scenes = np.nanmean(np.nanvar(deviations, axis=0, ddof=1))
    spread = np.sqrt(max(0.0, points.var(ddof=1) - of_scenes))
    generator = np.random.default_rng(n)
    draws: Floats = generator.standard_t(n - 1, size=deviations.shape[1]) * spread / np.sqrt(n)
    return draws


def difference(ours: Mapping[Key, Run], theirs: Mapping[Key, Run]) -> tuple[float, float, float]:
    """The mean of `ours - theirs` with its 95 % interval, paired run by run; all NaN without a common key.

    Runs with the same key are paired; they must have been tested on the same scenes.
    """
    shared = [key for key in ours if key in theirs]
    runs = [Run(ours[k].point - theirs[k].point, ours[k].replicates - theirs[k].replicates) for k in shared]
    if not runs:
        return (float("nan"),) * 3
    return float(np.mean([run.point for run in runs])), *interval(runs)


def best_and_tied(rows: Sequence[Mapping[Key, Run]]) -> list[bool]:
    """Which rows are the best or not distinguishable from it: the paired 95 % interval of their difference contains 0.

    Higher is better. There is no correction for the number of pairs. A row that shares no test scenes with the best
    is not distinguishable from it. A row whose value is undefined is never best.
    """
    means = [float(np.mean([run.point for run in row.values()])) if row else np.nan for row in rows]
    if np.isnan(means).all():
        return [False] * len(rows)
    best = rows[int(np.nanargmax(means))]
    worse = [difference(best, row)[1] > 0 for row in rows]
    return [not (np.isnan(mean) or w) for mean, w in zip(means, worse, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Intervals of the rows of a table, and differences between them."""

    resamples: int
    intervals: list[dict[str, tuple[float, float]]]
    """For each row: metric value -> 95 % interval of its mean over seeds."""
    best: list[set[str]]
    """For each row: the metric values in which it is the best of its block, or not distinguishable from the best."""
    pairs: list[tuple[int, int, dict[str, tuple[float, float, float]]]]
    """Two rows of a block, and for each metric value the mean of first - second with its 95 % interval."""
    notes: Sequence[str] = ()
    """Further notes for readers, one line each."""


def compare(
    rows: Sequence[Mapping[Key, Mapping[str, Run]]],
    blocks: Sequence[Hashable],
    contenders: Sequence[bool],
    resamples: int,
) -> Comparison:
    """Compares the rows within each block.

    rows: the runs of each row, by test scenes and seed; runs with the same key are paired.
    contenders: which rows may be marked as the best; a row that is alone in its block is never marked.
    """
    names = list(dict.fromkeys(name for row in rows for runs in row.values() for name in runs))
    of = [{n: {k: r[n] for k, r in row.items() if n in r} for n in names} for row in rows]
    best: list[set[str]] = [set() for _ in rows]
    for block in dict.fromkeys(blocks):
        rivals = [i for i, b in enumerate(blocks) if b == block and contenders[i] and rows[i]]
        for name in names if len(rivals) > 1 else ():
            flags = best_and_tied([of[i][name] for i in rivals])
            for i in itertools.compress(rivals, flags):
                best[i].add(name)
    pairs = [
        (a, b, {n: difference(of[a][n], of[b][n]) for n in names})
        for a, b in itertools.combinations(range(len(rows)), 2)
        if blocks[a] == blocks[b] and rows[a].keys() & rows[b].keys()
    ]
    intervals = [{n: interval(list(runs.values())) for n, runs in row.items()} for row in of]
    return Comparison(resamples, intervals, best, pairs)


def compare_rows(rows: list[Row], registry: Registry, resamples: int) -> Comparison:
    """Intervals and paired comparisons, from the raw detections of all finished cells.

    A metric without `weighted` is called once per draw, so it gets at most PLAIN_DRAWS draws.
    """
    torch.set_num_threads(1)  # the tensors are small, so more threads would only wait for each other
    specs = [spec for spec in registry.metrics.values() if spec.columns]
    plain = [spec for spec in specs if not spec.weighted]
    fewer = min(resamples, PLAIN_DRAWS)
    runs: list[dict[tuple[int, bytes], dict[str, Run]]] = [{} for _ in rows]
    total = sum(len(row.done) for row in rows) * fewer * len(plain)
    label = f"calling {', '.join(spec.name for spec in plain)} for each draw of the test scenes"
    with click.progressbar(length=total, label=label, file=sys.stderr, hidden=not total) as bar:
        for row, of_row in zip(rows, runs, strict=True):
            for result in row.done:
                found, truth = load_detections(Path(result.path)), load_truth(Path(result.path))
                values: dict[str, Run] = {}
                for spec in specs:
                    metric = load_target(spec.target)
                    if spec.weighted:
                        values |= resample_weighted(
                            found, truth, metric, load_target(spec.weighted), resamples
                        )
                    else:
                        values |= resample(found, truth, [metric], fewer, lambda: bar.update(1))
                of_row[result.seed, scenes_digest(truth)] = values
    notes = [f"{spec.name}: {fewer} draws, as it cannot weigh scenes." for spec in plain if fewer < resamples]
    contenders = [not row.oracle for row in rows]
    return replace(compare(runs, [row.block for row in rows], contenders, resamples), notes=notes)
