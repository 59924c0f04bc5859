"""Which cells of a results folder can be believed, beyond the checksums that `objbench.cells.store` looks at.

A checksum tells an accident from what was written, but whoever edits a file can write a new one. What cannot
be made to agree so easily: a cell's name is the hash of its identity, its record repeats that identity, its
raw detections score what the record says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from objbench.cells.files import Damaged, verify_checksums
from objbench.cells.identity import read_cell
from objbench.cells.result import CellResult
from objbench.cells.store import read_record, read_trained
from objbench.errors import UsageError
from objbench.plugins import Registry

if TYPE_CHECKING:
    from objbench.cells.store import Store


IDENTITY = ["model", "data", "protocol", "seed", "model_config", "data_config", "trained"]
"""What a record repeats of the identity."""


def identity_of(result: CellResult) -> dict[str, Any]:
    """What the cell is, by its `cell.json` and its training's `training.json`.

    Damaged unless its folders are named by that, its record is of that, and every file with a checksum is as it was
    written.
    """
    folder = Path(result.path)
    cell = read_cell(folder)
    by_cell = cell.result(result.status)
    for name in IDENTITY:
        says, is_ = getattr(result, name), getattr(by_cell, name)
        if says != is_:
            raise Damaged(f"record.json was edited: its {name} is {says}, the cell's {is_}")
    verify_checksums(folder, read_record(folder)[1])
    if result.status == "done":
        verify_checksums(folder.parent, read_trained(folder.parent).files)
    return cell.identity


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


def read_cells(
    store: Store,
    registry: Registry,
    protocol_name: str | None,
    recheck: bool,
    hint: str = "objbench run",
) -> tuple[list[CellResult], dict[str, dict[str, Any]]]:
    """Cells that can be believed, by the metrics as they are now, and their identities.

    A line on stderr for each of the others. UsageError when nothing is left. recheck: whether the figures of
    finished cells are held against their raw detections, which takes torch and time. hint: the
    command that makes cells there.
    """

    found, warnings = store.results()
    results, identities = [], {}
    for result in found:
        if protocol_name not in (None, result.protocol):
            continue
        try:
            identities[result.cell] = identity_of(result)
            if (
                result.status == "done"
                and result.provenance.get("metric_versions") != registry.metric_versions
            ):
                from objbench.score.metrics import rescore  # heavy, and seldom needed

                result = rescore(registry, result)
            elif result.status == "done" and recheck:
                check_figures(registry, result)
        except Damaged as error:
            warnings.append(f"cell {result.cell} is left out: {error}")
            continue
        results.append(result)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if not results:
        which = f" of protocol {protocol_name}" if protocol_name else ""
        raise UsageError(f"no cells{which} in {store.out}; run some with `{hint}`")
    return results, identities
