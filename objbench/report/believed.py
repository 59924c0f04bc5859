"""Checks which cells of a results folder are trustworthy, beyond the checksums that `objbench.cells.store` verifies.

A checksum finds accidental damage, but a person who edits a file can also write a new checksum. Three other things
are harder to forge together: the name of a cell is the hash of its identity, its record repeats this identity, and
its figures must follow from its raw detections.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from objbench.cells.cache import keep, kept
from objbench.cells.code import code_of, digest
from objbench.cells.files import Damaged, canonical, verify_checksums
from objbench.cells.identity import Cell, read_cell, with_clusterer
from objbench.cells.matrix import is_current
from objbench.cells.result import CellResult
from objbench.cells.store import read_record, read_trained, update_record
from objbench.errors import UsageError
from objbench.hookspecs import MetricSpec
from objbench.plugins import Registry

if TYPE_CHECKING:
    from objbench.cells.store import Store


KIND = "figures"
"""The folder in the cache."""
IDENTITY = ["model", "data", "protocol", "seed", "model_config", "data_config", "clusterer", "trained"]
"""What a record repeats of the identity."""


def cell_of(result: CellResult) -> Cell:
    """The cell, read from its `cell.json` and its training's `training.json`.

    Damaged unless the names of its folders and its record agree with these, and all checksums are correct.
    """
    folder = Path(result.path)
    cell = read_cell(folder)
    by_cell = cell.result(result.status)
    for name in IDENTITY:
        says, is_ = getattr(result, name), getattr(by_cell, name)
        if says != is_ and not (name == "clusterer" and not says):  # earlier versions did not record it
            raise Damaged(f"record.json was edited: its {name} is {says}, the cell's {is_}")
    verify_checksums(folder, read_record(folder)[1])
    if result.status == "done":
        verify_checksums(folder.parent, read_trained(folder.parent).files)
    return cell


Score = Callable[[CellResult], tuple[dict[str, dict[str, float]], list[str]]]
"""Metric -> the values that it computes from a finished cell's raw detections; and a line for each that fails."""


def check_figures(registry: Registry, result: CellResult, score: Score) -> list[str]:
    """Damaged when metrics of a finished cell's raw detections differ from the figures in its record.

    Returns a line for each metric that fails. Values are kept in a cache, so a second check computes nothing.
    result: computed with the installed metrics.
    """
    code = {name: [metric_code(spec), spec.version] for name, spec in registry.metrics.items()}
    key = canonical([content_of(result), code])
    complaints: list[str] = []
    if (scored := kept(KIND, key)) is None:
        scored, complaints = score(result)
        if not complaints:
            keep(KIND, key, scored)
    for metric, values in scored.items():
        for name, value in values.items():
            says = result.metrics.get(name, math.nan)
            undefined = not math.isfinite(says) and not math.isfinite(value)  # records hold null for both
            if undefined or math.isclose(says, value, rel_tol=1e-6, abs_tol=1e-6):
                continue
            spec = registry.metrics[metric]
            if result.provenance.get("metric_code", {}).get(metric) != digest(code_of(spec.target)):
                raise Damaged(
                    f"its {name} is {says:.4f}, but {value:.4f} with the present code of the metric '{metric}', "
                    f"which was changed without a new version; raise MetricSpec.version from {spec.version}"
                )
            raise Damaged(
                f"record.json was edited: its {name} is {says:.4f}, but its detections give {value:.4f}"
            )
    return complaints


def content_of(result: CellResult) -> list[str]:
    """The checksums of the files that a finished cell's figures are computed from."""
    folder = Path(result.path)
    files = read_trained(folder.parent).files | read_record(folder)[1]
    return [files.get(f"{name}.safetensors", "") for name in ("detections", "truth", "clusters")]


def metric_code(spec: MetricSpec) -> str:
    """A digest of the code that the values of a metric depend on: its own, and that of objbench which calls it."""
    return _code(spec.target, spec.weighted)


@functools.cache
def _code(*targets: str) -> str:
    every = [*filter(None, targets), "objbench.score.draws", "objbench.matching"]
    return digest({name: text for target in every for name, text in code_of(target).items()})


def _named(result: CellResult) -> str:
    """The model with its clusterer, as `--models` has it."""
    return with_clusterer(result.model, result.clusterer)


@dataclass(frozen=True)
class Wanted:
    """Which cells a report includes; by default all."""

    protocol: str | None = None
    models: Sequence[str] = ()
    """Each a model, with any clusterer, or MODEL+CLUSTERER. Empty: any; so is `data`."""
    data: Sequence[str] = ()
    current: bool = False
    """Only cells of the installed code and data; see `is_current`."""

    def admits(self, result: CellResult) -> bool:
        """True if a cell is wanted, without a check of `current`."""
        return (
            self.protocol in (None, result.protocol)
            and (not self.models or bool({result.model, _named(result)} & set(self.models)))
            and (not self.data or result.data in self.data)
        )

    def __str__(self) -> str:
        words = [f" of {', '.join(self.models)}"] if self.models else []
        words += [f" on {', '.join(self.data)}"] if self.data else []
        words += [f" of protocol {self.protocol}"] if self.protocol else []
        return "".join([*words, " of what is installed now" if self.current else ""])


def read_cells(
    store: Store,
    registry: Registry,
    wanted: Wanted,
    score: Score | None,
    rescore: Callable[[CellResult], tuple[CellResult, list[str]]],
    hint: str = "objbench run",
) -> tuple[list[CellResult], dict[str, Cell]]:
    """The results of all wanted and trustworthy cells, with the installed metrics; and these cells by their key.

    Prints a line on stderr for each cell that is not trustworthy, and for each name in `wanted` without a cell.
    UsageError with a list of the existing cells when none is left.
    score: computes the figures of finished cells from their raw detections, which are compared with the records; None:
    they are not compared.
    rescore: returns a result with the installed metrics, and a line for each metric that fails.
    hint: the command that makes cells in this store.
    """

    found, warnings = store.results()
    results, cells = [], {}
    contents: dict[str, Any] = {}
    for result in filter(wanted.admits, found):
        try:
            cell = cell_of(result)
            if wanted.current and not is_current(registry, cell, contents):
                continue
            if result.status == "done" and not registry.up_to_date(
                result.provenance.get("metric_versions", {})
            ):
                fresh, complaints = rescore(result)
                warnings += [f"cell {result.cell}: {complaint}" for complaint in complaints]
                if fresh is not result:
                    with contextlib.suppress(OSError):  # a store without write permission
                        update_record(fresh)
                result = fresh
            elif result.status == "done" and score is not None:
                complaints = check_figures(registry, result, score)
                warnings += [f"cell {result.cell}: {complaint}" for complaint in complaints]
        except (Damaged, UsageError) as error:  # UsageError: the data set's content cannot be compared
            warnings.append(f"cell {result.cell} is left out: {error}")
            continue
        results.append(result)
        cells[result.cell] = cell
    for kind, names, known in (
        ("model", wanted.models, {name for r in found for name in (r.model, _named(r))}),
        ("data set", wanted.data, {r.data for r in found}),
    ):
        warnings += [f"no cell in {store.out} is of the {kind} '{n}'" for n in names if n not in known]
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if not results:
        kinds = Counter(f"{_named(r)} on {r.data} ({r.protocol}" for r in found)
        there = ", ".join(f"{kind}, {n})" for kind, n in sorted(kinds.items()))
        what = f"there are: {there}" if there else f"run some with `{hint}`"
        raise UsageError(f"no cells{wanted} in {store.out}; {what}")
    return results, cells
