"""Which cells of a results folder can be believed, beyond the checksums that `objbench.cells.store` looks at.

A checksum tells an accident from what was written, but whoever edits a file can write a new one. What cannot
be made to agree so easily: a cell's name is the hash of its identity, its record repeats that identity, its
raw detections score what the record says.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from objbench.cells.files import Damaged, verify_checksums
from objbench.cells.identity import Cell, read_cell, with_clusterer
from objbench.cells.matrix import is_current
from objbench.cells.result import CellResult
from objbench.cells.store import read_record, read_trained, update_record
from objbench.errors import UsageError
from objbench.plugins import Registry

if TYPE_CHECKING:
    from objbench.cells.store import Store


IDENTITY = ["model", "data", "protocol", "seed", "model_config", "data_config", "clusterer"]
"""What a record repeats of the identity."""


def cell_of(result: CellResult) -> Cell:
    """What the cell is, by its `cell.json` and its training's `training.json`.

    Damaged unless its folders are named by that, its record is of that, and every file with a checksum is as it was
    written.
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


def check_figures(registry: Registry, result: CellResult) -> None:
    """Damaged when the raw detections of a finished cell do not score what its record says.

    result: by the metrics as they are now. Imports torch, and scores.
    """
    from objbench.score.arrays import load_detections, load_truth
    from objbench.score.metrics import by_these_metrics, score_each, to_stderr

    folder = Path(result.path)
    for spec, values in score_each(registry, load_detections(folder), load_truth(folder), to_stderr):
        for name, value in values.items():
            says = result.metrics.get(name, math.nan)
            undefined = not math.isfinite(says) and not math.isfinite(value)  # records hold null for both
            if undefined or math.isclose(says, value, rel_tol=1e-6, abs_tol=1e-6):
                continue
            then, now = (
                result.provenance.get("metric_code", {}),
                by_these_metrics(registry, [spec])["metric_code"],
            )
            if then.get(spec.name) != now[spec.name]:
                raise Damaged(
                    f"its {name} is {says:.4f}, and {value:.4f} by the metric '{spec.name}' as it is now, whose code "
                    f"was changed without a new version; raise MetricSpec.version from {spec.version}"
                )
            raise Damaged(
                f"record.json was edited: its {name} is {says:.4f}, its detections score {value:.4f}"
            )


def _named(result: CellResult) -> str:
    """The model with its clusterer, as `--models` has it."""
    return with_clusterer(result.model, result.clusterer)


@dataclass(frozen=True)
class Wanted:
    """Which cells a report is of; by default all."""

    protocol: str | None = None
    models: Sequence[str] = ()
    """Each a model, with any clusterer, or MODEL+CLUSTERER. Empty: any; so is `data`."""
    data: Sequence[str] = ()
    current: bool = False
    """Only cells of what is installed now, as `is_current` says."""

    def admits(self, result: CellResult) -> bool:
        """Whether a cell is wanted, but for `current`."""
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
    recheck: bool,
    rescore: Callable[[CellResult], tuple[CellResult, list[str]]],
    hint: str = "objbench run",
) -> tuple[list[CellResult], dict[str, Cell]]:
    """Cells that are wanted and can be believed: by the metrics as they are now, and what they are.

    A line on stderr for each that cannot be believed, and for each name in `wanted` that no cell has. UsageError, which
    says what there is, when nothing is left. recheck: whether the figures of finished cells are held against their raw
    detections, which takes torch and time. rescore: gives a result by the metrics as they are now, and a line for each
    metric that fails. hint: the command that makes cells there.
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
                    with contextlib.suppress(OSError):  # a store of somebody else's
                        update_record(fresh)
                result = fresh
            elif result.status == "done" and recheck:
                check_figures(registry, result)
        except (Damaged, UsageError) as error:  # the latter of a data set whose content cannot be compared
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
