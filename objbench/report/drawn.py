"""Draws of the test scenes of finished cells, computed once and then read from the user's cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np

from objbench.cells.cache import keep, kept
from objbench.cells.files import canonical
from objbench.cells.result import CellResult
from objbench.errors import UsageError
from objbench.hookspecs import MetricSpec
from objbench.plugins import Registry
from objbench.report.believed import content_of, metric_code
from objbench.report.statistics import Run

PLAIN_DRAWS = 200
"""How many draws at most for a metric that is called once per draw."""
PLAIN_AT_ONCE = 25
"""How many draws of such a metric are asked for together."""
QUICK = 10
"""Up to so many requests show no progress, unless metrics are called once per draw."""
KIND = "draws"
"""The folder in the cache."""

Draw = Callable[[CellResult, str, int, int], Mapping[str, Any]]
"""The values of a finished cell by a metric, for draws first..end-1: see `objbench.score.draws.draw_cell`. UsageError
when the metric fails."""


class Tested(NamedTuple):
    """Values of a finished cell by its metrics, as measured and for draws of its test scenes."""

    scenes: str
    """Identifies the test scenes."""
    runs: Mapping[str, Run]
    """Metric value -> what it is."""


class Drawn:
    """Computes draws, or reads them from the cache, where they are stored under what they depend on: the detections,
    the truth, and the code of the metric."""

    def __init__(self, registry: Registry, draws: int, draw: Draw) -> None:
        """draws: for each metric; one that is called once per draw gets PLAIN_DRAWS at most."""
        self.draws = draws
        self._registry, self._draw = registry, draw

    def __call__(self, results: Sequence[CellResult], specs: Sequence[MetricSpec]) -> dict[str, Tested]:
        """The values of finished cells by these metrics, by the cell's path.

        A metric that fails is left out, with a line on stderr; a cell for which all fail is left out too.
        """
        found: dict[str, list[Mapping[str, Any]]] = {result.path: [] for result in results}
        missing = []
        for result in results:
            for spec in specs:
                if body := kept(KIND, self._key(result, spec)):
                    found[result.path].append(body)
                else:
                    missing.append((result, spec))
        pieces = sum(len(list(self._pieces(spec))) for _, spec in missing)
        plain = dict.fromkeys(spec.name for _, spec in missing if not spec.weighted)
        label = f"calling {', '.join(plain)} for each draw" if plain else "computing intervals"
        complaints = []
        hidden = not plain and pieces <= QUICK
        with click.progressbar(length=pieces, label=label, file=sys.stderr, hidden=hidden) as bar:
            for result, spec in missing:
                try:
                    body = self._computed(result, spec, lambda: bar.update(1))
                except UsageError as error:
                    complaints.append(f"cell {result.cell}: no intervals: {error}")
                    continue
                keep(KIND, self._key(result, spec), body)
                found[result.path].append(body)
        for complaint in complaints:
            click.echo(f"warning: {complaint}", err=True)
        return {
            path: Tested(bodies[0]["scenes"], {n: r for body in bodies for n, r in _runs(body)})
            for path, bodies in found.items()
            if bodies
        }

    def notes(self, specs: Sequence[MetricSpec]) -> list[str]:
        """Which metrics have fewer draws than the others, a line each."""
        return [
            f"{spec.name}: {fewer} draws only, because its spec has no `weighted`."
            for spec in specs
            if (fewer := self._number(spec)) < self.draws
        ]

    def _number(self, spec: MetricSpec) -> int:
        return self.draws if spec.weighted else min(self.draws, PLAIN_DRAWS)

    def _pieces(self, spec: MetricSpec) -> Iterator[tuple[int, int]]:
        """The first draw and the end of each request."""
        number = self._number(spec)
        step = number if spec.weighted else PLAIN_AT_ONCE
        return ((first, min(first + step, number)) for first in range(0, number, step))

    def _computed(self, result: CellResult, spec: MetricSpec, tick: Callable[[], None]) -> dict[str, Any]:
        parts = []
        for first, end in self._pieces(spec):
            parts.append(self._draw(result, spec.name, first, end))
            tick()
        of = {
            name: [v for part in parts for v in part["replicates"][name]] for name in parts[0]["replicates"]
        }
        return {"scenes": parts[0]["scenes"], "points": parts[0]["points"], "replicates": of}

    def _key(self, result: CellResult, spec: MetricSpec) -> str:
        return canonical([content_of(result), spec.name, metric_code(spec), spec.version, self._number(spec)])


def _runs(body: Mapping[str, Any]) -> Iterator[tuple[str, Run]]:
    for name, point in body["points"].items():
        yield name, Run(point, np.array(body["replicates"][name], dtype=np.float64))
