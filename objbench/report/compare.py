"""Two rows, cells or stores held against each other: which is better, by how much, how sure, at what cost, and where.

What is compared was tested on the same scenes; runs of the same seed are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from objbench.cells.result import CellResult
from objbench.cells.store import read_trained
from objbench.detector import Detections
from objbench.errors import UsageError
from objbench.matching import as_numpy
from objbench.mistakes import RIGHT, verdicts
from objbench.plugins import Registry
from objbench.report.drawn import Drawn
from objbench.report.rows import Row
from objbench.report.statistics import Run, interval
from objbench.report.tables import build, columns_of
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_truth
from objbench.score.draws import scenes_digest

NAMED = 3
"""How many scenes a paragraph names."""


class Figure(NamedTuple):
    """One metric value of both; NaN where it is not defined."""

    heading: str
    first: float
    second: float
    difference: float
    """first - second, the mean over pairs of runs."""
    low: float
    high: float
    """The 95 % interval of the difference."""
    higher_is_better: bool
    """Whether that is known: of a column of the main table it is."""

    @property
    def verdict(self) -> str:
        """What the first is: "better", "worse" or "not told apart"; "different" where neither direction is better."""
        if not (self.low > 0 or self.high < 0):
            return "not told apart"
        if not self.higher_is_better:
            return "different"
        return "better" if self.low > 0 else "worse"


class ByClass(NamedTuple):
    """The shares of a class's objects that are right: taken by a detection whose cluster stands for the class."""

    name: str
    objects: int
    first: float
    second: float


@dataclass(frozen=True)
class Duel:
    """What sets two rows apart that were tested on the same scenes."""

    first: str
    second: str
    """As tables write them."""
    data: str
    protocol: str
    seeds: list[tuple[int, int]]
    """Of the runs that were paired: the first's seed, the second's."""
    scenes: int
    """How many test scenes there are."""
    figures: Mapping[str, Figure]
    """Metric value -> what it is for both."""
    cost: Mapping[str, tuple[float, float]]
    """"seconds" of training, "peak_memory_mb": means over the paired runs."""
    by_scene: NDArray[np.float64]
    """`[scenes]` how many more objects the first has right, the mean over pairs."""
    by_class: Sequence[ByClass]
    """The class in which the first is furthest ahead comes first."""
    notes: Sequence[str]
    """What a reader must know, a sentence each."""

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; scenes as {"scene", "difference"}, only those in which the two differ."""
        known = {name: getattr(self, name) for name in ("first", "second", "data", "protocol", "scenes")}
        return known | {
            "seeds": [list(pair) for pair in self.seeds],
            "figures": {
                name: {k: _plain(v) for k, v in figure._asdict().items()} | {"verdict": figure.verdict}
                for name, figure in self.figures.items()
            },
            "cost": {
                name: dict(zip(("first", "second"), pair, strict=True)) for name, pair in self.cost.items()
            },
            "scenes_that_differ": [
                {"scene": i, "difference": float(self.by_scene[i])} for i in scenes_that_differ(self.by_scene)
            ],
            "classes": [row._asdict() for row in self.by_class],
            "notes": list(self.notes),
        }


def scenes_that_differ(by_scene: NDArray[np.float64]) -> list[int]:
    """The scenes in which two do not have as many objects right, the largest differences first."""
    order = np.lexsort((np.arange(len(by_scene)), -np.abs(by_scene)))
    return [int(i) for i in order if by_scene[i]]


class Tested(NamedTuple):
    """A finished run, read."""

    result: CellResult
    found: Detections
    truth: GroundTruth
    scenes: bytes
    """Tells one set of test scenes from another."""


def read(result: CellResult) -> Tested:
    """The detections and the truth of a finished cell. Damaged where they cannot be read."""
    found, truth = load_detections(Path(result.path)), load_truth(Path(result.path))
    return Tested(result, found, truth, scenes_digest(truth))


def paired(first: Sequence[Tested], second: Sequence[Tested]) -> list[tuple[Tested, Tested]]:
    """Runs on the same scenes: those of the same seed; where no seed is shared, in the order of their seeds."""
    theirs = {(run.scenes, run.result.seed): run for run in second}
    pairs = [(run, theirs[key]) for run in first if (key := (run.scenes, run.result.seed)) in theirs]
    if pairs:
        return pairs
    for scenes in dict.fromkeys(run.scenes for run in first):
        ours, others = ([r for r in side if r.scenes == scenes] for side in (first, second))
        if others:
            return list(zip(ours, others, strict=False))
    return []


def duel(
    first: Row,
    second: Row,
    registry: Registry,
    drawn: Drawn,
    labels: tuple[str, str, str] | None = None,
) -> Duel:
    """Compares two rows, by their raw detections.

    drawn: computes draws of the test scenes. labels: of the first, the second and their data; as in tables if not
    given.
    UsageError when they have no finished runs on the same scenes.
    """
    ours, theirs = ([read(result) for result in row.done] for row in (first, second))
    pairs = paired(ours, theirs)
    one, other, data = labels or labels_of([first, second], registry)
    if not pairs:
        kinds = f"{one} has {len(ours)} finished runs, {other} {len(theirs)}"
        raise UsageError(
            f"{one} and {other} have no finished runs on the same test scenes of {data} ({kinds})"
        )
    figures, notes = _figures(pairs, registry, drawn)
    seeds = [(a.result.seed, b.result.seed) for a, b in pairs]
    notes = [*_notes(pairs, seeds, (len(ours), len(theirs)), (one, other)), *notes]
    by_scene, by_class = _where(pairs)
    cost = {
        name: (
            _mean([getattr(a.result, name) for a, _ in pairs]),
            _mean([getattr(b.result, name) for _, b in pairs]),
        )
        for name in ("seconds", "peak_memory_mb")
    }
    return Duel(
        one,
        other,
        data,
        first.protocol,
        seeds,
        pairs[0][0].truth.images,
        figures,
        cost,
        by_scene,
        by_class,
        notes,
    )


def labels_of(rows: Sequence[Row], registry: Registry) -> tuple[str, str, str]:
    """How tables write the models of two rows, and the data of the first."""
    a, b = build(rows, columns_of(registry), registry).frame.to_dict("records")
    return str(a["model_label"]), str(b["model_label"]), str(a["data_label"])


def _figures(
    pairs: Sequence[tuple[Tested, Tested]], registry: Registry, drawn: Drawn
) -> tuple[dict[str, Figure], list[str]]:
    """The values that tables have headings for, and notes on them."""
    figures: dict[str, Figure] = {}
    specs = [spec for spec in registry.metrics.values() if spec.columns or (spec.more and spec.weighted)]
    notes = drawn.notes(specs)
    tested = drawn([run.result for pair in pairs for run in pair], specs)
    for spec in specs:
        runs = [
            [tested[r.result.path].runs if r.result.path in tested else {} for r in side]
            for side in zip(*pairs, strict=True)
        ]
        for name, heading in {**spec.columns, **spec.more}.items():
            if not all(name in values for side in runs for values in side):
                continue  # the metric failed, which was reported
            a, b = ([values[name] for values in side] for side in runs)
            if all(math.isnan(run.point) for run in (*a, *b)):
                continue  # not defined for these: masks, where there are none
            between = [Run(x.point - y.point, x.replicates - y.replicates) for x, y in zip(a, b, strict=True)]
            first, second = (_mean([run.point for run in side]) for side in (a, b))
            figures[name] = Figure(
                heading, first, second, _mean([run.point for run in between]), *interval(between),
                name in spec.columns,
            )  # fmt: skip
            if name in spec.meaningful:
                limit, least = spec.meaningful[name]
                if any(values[limit].point < least for side in runs for values in side):
                    notes.append(f"{heading} is not meaningful: {limit} of a run is under {least:g}.")
    return figures, notes


def _where(
    pairs: Sequence[tuple[Tested, Tested]],
) -> tuple[NDArray[np.float64], list[ByClass]]:
    """`Duel.by_scene` and `Duel.by_class`."""
    truth = pairs[0][0].truth
    labels = as_numpy(truth.labels)
    names = read_trained(Path(pairs[0][0].result.path).parent).classes
    rights = []  # of each side [n]: the share of the pairs in which an object is right
    for side in zip(*pairs, strict=True):
        right = np.zeros(len(labels))
        for run in side:
            said = verdicts(run.found, run.truth)
            right[said.object[said.kind == RIGHT]] += 1 / len(pairs)
        rights.append(right)
    by_scene = np.zeros(truth.images)
    np.add.at(by_scene, as_numpy(truth.image), rights[0] - rights[1])
    by_scene[np.abs(by_scene) < 1e-9] = 0
    rows = []
    for label, name in enumerate(names):
        mine = labels == label
        if mine.any():
            rows.append(ByClass(str(name), int(mine.sum()), *(float(right[mine].mean()) for right in rights)))
    return by_scene, sorted(rows, key=lambda row: row.second - row.first)


def _notes(
    pairs: Sequence[tuple[Tested, Tested]],
    seeds: Sequence[tuple[int, int]],
    counts: tuple[int, int],
    labels: tuple[str, str],
) -> list[str]:
    notes = []
    if len(pairs) == 1:
        notes.append("One pair of runs: how far other seeds would differ is not known.")
    if any(a != b for a, b in seeds):
        notes.append(f"No seed is shared: seeds {', '.join(f'{a} and {b}' for a, b in seeds)} were paired.")
    for count, label in zip(counts, labels, strict=True):
        if count > len(pairs):
            notes.append(
                f"{count - len(pairs)} of the {count} runs of {label} have no partner and were left out."
            )
    devices = {str(run.result.provenance.get("device", "")) for pair in pairs for run in pair}
    if len(devices) > 1:
        notes.append(
            f"They were run on different devices ({', '.join(sorted(devices))}): costs do not compare."
        )
    return notes


def paragraph(duel: Duel) -> str:
    """It all in a paragraph."""
    n = len(duel.seeds)
    parts = [
        f"{duel.first} against {duel.second} on {duel.data} ({duel.protocol}, {n} seed{'s' * (n > 1)}, "
        f"{duel.scenes} test scenes):"
    ]
    said = []
    for figure in (f for f in duel.figures.values() if f.higher_is_better):
        if math.isnan(figure.difference):
            said.append(f"{figure.heading} is not defined for both")
            continue
        interval = (
            f"95 % interval {_number(figure.low, figure.heading)} to {_number(figure.high, figure.heading)}"
        )
        both = f"{_number(figure.first, figure.heading)} against {_number(figure.second, figure.heading)}"
        by = _number(abs(figure.difference), figure.heading)
        if figure.verdict == "not told apart":
            said.append(f"{figure.heading} cannot be told apart ({both}, {interval} of the difference)")
        else:
            said.append(f"{figure.heading} is {figure.verdict} by {by} ({both}, {interval})")
    parts.append("; ".join(said) + "." if said else "no metric makes columns.")
    parts.append(_cost_words(duel))
    more, fewer = int((duel.by_scene > 0).sum()), int((duel.by_scene < 0).sum())
    parts.append(f"It has more objects right in {more} scenes{_most(duel.by_scene)}")
    parts[-1] += f" and fewer in {fewer}{_most(-duel.by_scene)}."
    if duel.by_class:
        ahead, behind = duel.by_class[0], duel.by_class[-1]
        if ahead.first > ahead.second:
            parts.append(f"It is furthest ahead in the class {_class_words(ahead)}")
            parts[-1] += (
                f" and furthest behind in {_class_words(behind)}." if behind.first < behind.second else "."
            )
        elif behind.first < behind.second:
            parts.append(f"It is ahead in no class, and furthest behind in {_class_words(behind)}.")
    return " ".join([part for part in parts if part] + list(duel.notes))


def _cost_words(duel: Duel) -> str:
    said = []
    for name, noun, unit in (("seconds", "training time", "s"), ("peak_memory_mb", "memory", "MB")):
        a, b = duel.cost[name]
        if a > 0 and b > 0:
            said.append(f"{_times(a / b)} {noun} ({_short(a)} {unit} against {_short(b)})")
    return f"It took {' and '.join(said)}." if said else ""


def _times(ratio: float) -> str:
    """A ratio in words: "1.2 times the", "about the same"."""
    if ratio < 0.01:
        return f"1/{1 / ratio:.0f} of the"
    text = _short(ratio)
    return "about the same" if text == "1" else f"{text} times the"


def _short(value: float) -> str:
    """Two digits of a small number, all of a large one before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _most(by_scene: NDArray[np.float64]) -> str:
    """ " (most in 3, 7, 9)": the scenes with the largest positive values; "" without any."""
    top = [str(i) for i in scenes_that_differ(by_scene) if by_scene[i] > 0][:NAMED]
    return f" (most in {', '.join(top)})" if top else ""


def _class_words(row: ByClass) -> str:
    return f"{row.name} ({100 * row.first:.0f} % of its objects right against {100 * row.second:.0f} %)"


def _number(value: float, heading: str) -> str:
    text = f"{100 * value:.1f}" if "%" in heading else f"{value:.3f}"
    return text.replace("-", "−")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
