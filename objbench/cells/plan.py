"""What of a matrix is done, why the rest is not, and how long it may take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from statistics import mean

from objbench.cells.difference import difference
from objbench.cells.files import Damaged
from objbench.cells.identity import Cell, read_cell
from objbench.cells.result import CellResult
from objbench.cells.store import Store

CLUSTERING_S = 30.0
"""What clustering the detections of a finished training may take, in seconds."""


@dataclass(frozen=True)
class Planned:
    """One cell of the matrix as it stands."""

    cell: Cell
    result: CellResult
    """What is known of it; its status is "new" when nothing is."""
    why: str = ""
    """Why it is not done; empty when it is."""
    seconds: float | None = None
    """What is left may take so long, by cells of the same model and protocol; None when there are none."""


def plan(store: Store, cells: list[Cell]) -> list[Planned]:
    """Looks at every cell, and changes nothing."""
    done = [result for result in store.results()[0] if result.status == "done" and not result.trained]
    return [_planned(store, cell, done) for cell in cells]


def _planned(store: Store, cell: Cell, done: list[CellResult]) -> Planned:
    new = cell.result("new", path=str(store.folder(cell.key)))
    if store.locked(cell.key):
        return Planned(cell, replace(new, status="running"), f"{store.holder(cell.key)} is at work on it")
    try:
        trained = store.verify_training(cell.training.key)
        result = store.verify(cell.key) or new
    except Damaged as error:
        return Planned(cell, new, f"damaged, to be set aside and run again: {error}", _estimate(new, done))
    if result.status == "done":
        return Planned(cell, result)
    if result.status == "new" and trained:
        return Planned(
            cell, new, f"new, its training is done: only {cell.clusterer['name']} is to run", CLUSTERING_S
        )
    if result.status == "new":
        return Planned(cell, new, "new" + _nearest(store, cell, done), _estimate(new, done))
    steps = result.model_config.get("steps")
    where = f" at step {result.train_steps} of {steps}" if result.train_steps else ""
    reason = f": {result.error}" if result.error else ""
    return Planned(cell, result, result.status + where + reason, _estimate(result, done))


def _nearest(store: Store, cell: Cell, done: list[CellResult]) -> str:
    """What sets a new cell apart from the cell that is done and most like it."""
    mine = cell.identity
    differences = []
    for other in done:
        if (other.model, other.data, other.protocol) == (
            mine["model"],
            mine["data"],
            mine["protocol"]["name"],
        ):
            with contextlib.suppress(Damaged):
                theirs = read_cell(store.folder(other.cell)).identity
                differences.append((difference(mine, theirs), other.cell))
    if not differences:
        return ""
    lines, key = min(differences, key=lambda d: len(d[0]))
    return f": {', '.join(lines)} (in {key}, which is done)"


def _estimate(result: CellResult, done: list[CellResult]) -> float | None:
    """Seconds for what is left, as the mean of what the same model took under the same protocol."""
    past = [r for r in done if (r.model, r.protocol) == (result.model, result.protocol)]
    past = [r for r in past if r.data == result.data] or past
    if not past:
        return None
    left = max(1, result.model_config.get("steps", 1) - result.train_steps)
    a_step = mean(r.seconds / max(1, r.train_steps) for r in past)
    return float(left * a_step + mean(r.provenance["wall_seconds"] - r.seconds for r in past))
