"""What of a matrix is done, why the rest is not, and how long it may take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from statistics import mean

from objbench.cells.difference import difference
from objbench.cells.files import Damaged
from objbench.cells.identity import OWN, Cell, read_cell
from objbench.cells.pace import known_pace
from objbench.cells.result import CellResult
from objbench.cells.store import Store

CLUSTERING_S = 30.0
"""Seconds that a clusterer may take on the objects of a finished training, where no cell tells more."""


@dataclass(frozen=True)
class Planned:
    """One cell of the matrix as it stands."""

    cell: Cell
    result: CellResult
    """What is known of it; its status is "new" when nothing is."""
    why: str = ""
    """Why it is not done; empty when it is."""
    seconds: float | None = None
    """What is left may take so long, by cells of the same model and protocol; where there are none, by the pace that
    `objbench check` measured; None when there is neither."""
    trains: bool = False
    """Whether its training is to run, too."""
    by_check: bool = False
    """Whether it is by that pace: on the 64x64 images of `check`, with the model's settings for `demo`."""


def plan(store: Store, cells: list[Cell], force: bool = False) -> list[Planned]:
    """Looks at every cell, and changes nothing. force: whether all are to be run anew."""
    done = [result for result in store.results()[0] if result.status == "done" and not result.trained]
    planned = [_with_pace(_planned(store, cell, done)) for cell in cells]
    return _shared([_forced(store, p, done) for p in planned] if force else planned, done)


def _shared(planned: list[Planned], done: list[CellResult]) -> list[Planned]:
    """The same; of cells whose one training is to run, the first alone counts its time, and the others say so."""
    first: dict[str, Planned] = {}
    explained = []
    for p in planned:
        if p.trains and first.setdefault(p.cell.training.key, p) is not p:
            why = f"{p.why}; its training runs once, for {first[p.cell.training.key].cell.name}"
            p = replace(p, why=why, seconds=_clustering_s(p.cell, done), by_check=False)
        explained.append(p)
    return explained


def _clustering_s(cell: Cell, done: list[CellResult]) -> float:
    """Seconds that a cell may take once its training is done: what its clusterer took under the same protocol."""
    name = cell.clusterer["name"]
    past = [
        r for r in done if (r.clusterer, r.protocol) == (name, cell.training.identity["protocol"]["name"])
    ]
    return mean(r.clusterer_seconds for r in past) if past and name != OWN else CLUSTERING_S


def _forced(store: Store, planned: Planned, done: list[CellResult]) -> Planned:
    if not store.folder(planned.cell.training.key).exists():
        return planned
    why = f"{planned.why or 'done'}; to be set aside and run anew"
    new = planned.cell.result("new", path=planned.result.path)
    return replace(planned, why=why, seconds=_estimate(new, done), trains=True)


def _with_pace(planned: Planned) -> Planned:
    """With an estimate by the pace that `objbench check` measured, where no cell tells more.

    Only under `demo`: that is what is measured there.
    """
    identity, config = planned.cell.training.identity, planned.cell.training.model_config
    if (
        not planned.why
        or planned.seconds is not None
        or identity["protocol"]["name"] != "demo"
        or "steps" not in config
    ):
        return planned
    pace = known_pace(identity["model"], identity["model_code"])
    if pace is None:
        return planned
    left = max(1, config["steps"] - planned.result.train_steps)
    return replace(planned, seconds=left * config["batch_size"] * pace, by_check=True)


def _planned(store: Store, cell: Cell, done: list[CellResult]) -> Planned:
    new = cell.result("new", path=str(store.folder(cell.key)))
    if store.locked(cell.key):
        return Planned(cell, replace(new, status="running"), f"{store.holder(cell.key)} is running it")
    trained = None
    try:
        trained = store.verify_training(cell.training.key)
        result = store.verify(cell.key) or new
    except Damaged as error:
        why = f"damaged, to be set aside and run again: {error}"
        if trained:
            return Planned(cell, new, why, _clustering_s(cell, done))
        return Planned(cell, new, why, _estimate(new, done), trains=True)
    if result.status == "done":
        return Planned(cell, result)
    if trained:
        reason = f": {result.error}" if result.error else ""
        name = cell.clusterer["name"]
        only = "it is only to be scored" if name == OWN else f"only {name} is to run"
        why = f"{result.status}{reason}, its training is done: {only}"
        return Planned(cell, result, why, _clustering_s(cell, done))
    if result.status == "new":
        return Planned(cell, new, "new" + _nearest(store, cell, done), _estimate(new, done), trains=True)
    steps = result.model_config.get("steps")
    where = f" at step {result.train_steps} of {steps}" if result.train_steps else ""
    reason = f": {result.error}" if result.error else ""
    return Planned(cell, result, result.status + where + reason, _estimate(result, done), trains=True)


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
