"""The uncertainty of a table's figures: intervals over test scenes and seeds, and paired comparisons.

A row of the table is one model on one data set with several seeds. Each seed is a training run; runs are tested on
the same scenes or on different ones. The mean over runs is uncertain for two reasons:

- **Scenes.** The test scenes of each run are drawn again with replacement and scored again, many times. The draws
  depend only on the true boxes, so all runs tested on the same scenes use the same draws: comparisons are paired.
- **Seeds.** Three runs are too few to resample: the 95 % interval of resampled means would be their range, which
  contains the true median only 75 % of the time. So intervals are those of Student's t distribution.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 6, 8, 13 (percentiles).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from objbench.plugins import Registry

if TYPE_CHECKING:
    from objbench.report.drawn import Drawn
    from objbench.report.rows import Row


Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
"""The share of repeated experiments whose interval should contain the true value."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One metric value of one training run: as measured, and for resampled test scenes."""

    point: float
    replicates: Floats  # [resamples]


def interval(runs: Sequence[Run]) -> tuple[float, float]:
    """The 95 % interval of the mean over runs, or over paired differences of runs; (nan, nan) if one is undefined.

    Two things make the mean uncertain. The draw of test scenes shifts all runs alike; the variance of this shift is
    estimated from the bootstrap. The rest differs from run to run; its variance is estimated from the spread between
    the n runs, with n - 1 degrees of freedom. The interval is Student's t for the sum of both, after Satterthwaite
    1946, An approximate distribution of estimates of variance components. His degrees of freedom are (n - 1) r^2, where
    r is the sum divided by the rest. But r is large where the rest is small by chance: for 3 runs such an interval
    contains the true value only 92 % of the time when the shift has a tenth of the variance. With (n - 1) r it is 94
    to 96 %.

    With one run it is the bootstrap's own interval, over scenes alone: how far other seeds differ is unknown.
    """
    points = np.array([run.point for run in runs])
    if not len(points) or np.isnan(points).any():
        return math.nan, math.nan
    replicates = np.stack([run.replicates for run in runs])  # [runs, draws]
    # Repeated scenes bias some metrics (NMI upwards), so only deviations from the mean of the replicates are used.
    deviations = replicates - np.nanmean(replicates, axis=1, keepdims=True)
    shift = np.nanmean(deviations, axis=0)  # of the mean, in each draw
    n, tail = len(points), (1 - LEVEL) / 2
    if n == 1:
        low, high = np.nanquantile(points[0] + shift, [tail, 1 - tail])
        return float(low), float(high)
    own = (
        float(np.nanmean(np.nanvar(deviations, axis=0, ddof=1))) / n
    )  # the part of the shift that runs do not share
    alike = max(0.0, float(np.nanvar(shift)) - own)
    rest = float(points.var(ddof=1)) / n
    ratio = (alike + rest) / rest if rest else math.inf
    freedom = min((n - 1) * ratio, 1e9)
    reach = float(stdtrit(freedom, 1 - tail)) * math.sqrt(alike + rest)
    return float(points.mean()) - reach, float(points.mean()) + reach


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


def compare_rows(rows: list[Row], registry: Registry, drawn: Drawn) -> Comparison:
    """Intervals and paired comparisons of rows, from draws of the test scenes of all finished cells."""
    specs = [spec for spec in registry.metrics.values() if spec.columns]
    tested = drawn([result for row in rows for result in row.done], specs)
    runs: list[dict[tuple[int, str], Mapping[str, Run]]] = [
        {(r.seed, tested[r.path].scenes): tested[r.path].runs for r in row.done if r.path in tested}
        for row in rows
    ]
    contenders = [not (row.oracle or row.oracle_clusterer) for row in rows]
    compared = compare(runs, [row.block for row in rows], contenders, drawn.draws)
    return replace(compared, notes=drawn.notes(specs))
