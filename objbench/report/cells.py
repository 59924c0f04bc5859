"""Which cells of a results folder can be believed, beyond the checksums that `objbench.store` looks at.

A checksum tells an accident from what was written, but whoever edits a file can write a new one. What cannot
be made to agree so easily: a cell's name is the hash of its identity, its record repeats that identity, its
raw detections score what the record says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objbench.matrix import Cell
from objbench.results import CellResult
from objbench.store import Damaged, check_files, read_json, read_record

if TYPE_CHECKING:
    from objbench.plugins import Registry
    from objbench.report.tables import Row

IDENTITY = ["model", "data", "protocol", "seed", "model_config", "data_config"]
"""What a record repeats of the identity."""


def identity_of(result: CellResult) -> dict[str, Any]:
    """What the cell is, by its `cell.json`.

    Damaged unless its folder is named by that, its record is of that, and every file that the record vouches
    for is as it was written.
    """
    folder = Path(result.path)
    body = read_json(folder / "cell.json")
    try:
        cell = Cell(**body)
        told = cell.result(result.status)
    except (TypeError, KeyError):  # fields that we do not know, or miss
        raise Damaged("cell.json was written by another version of objbench") from None
    if cell.key != folder.name:
        raise Damaged(f"cell.json is that of cell {cell.key}: a copy, or edited")
    for name in IDENTITY:
        says, is_ = getattr(result, name), getattr(told, name)
        if says != is_:
            raise Damaged(f"record.json was edited: its {name} is {says}, the cell's {is_}")
    check_files(folder, read_record(folder)[1])
    return cell.identity


def check_figures(registry: Registry, result: CellResult) -> None:
    """Damaged when the raw detections of a finished cell do not score what its record says.

    result: by the metrics as they are now. Imports torch, and scores.
    """
    from objbench.evaluation import load_detections, load_truth
    from objbench.scoring import score

    folder = Path(result.path)
    for name, value in score(registry, load_detections(folder), load_truth(folder)).items():
        says = result.metrics.get(name, math.nan)
        undefined = not math.isfinite(says) and not math.isfinite(value)  # records hold null for both
        if not (undefined or math.isclose(says, value, rel_tol=1e-6, abs_tol=1e-6)):
            raise Damaged(
                f"record.json was edited: its {name} is {says:.4f}, its detections score {value:.4f}"
            )


def seeds_that_lack(rows: Iterable[Row]) -> list[str]:
    """A line for each row that has no cell of a seed which its block has, or which lies before one."""
    ours = [row for row in rows if row.results]
    last: dict[Sequence[str], int] = {}
    for row in ours:
        last[row.block] = max(last.get(row.block, 0), *(result.seed for result in row.results))
    lines = []
    for row in ours:
        lacking = sorted(set(range(last[row.block] + 1)) - {result.seed for result in row.results})
        if lacking:
            name = " ".join([row.model, *row.options])
            seeds = f"seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}"
            lines.append(f"{name} on {row.data} ({row.protocol}): there is no cell of {seeds}")
    return lines
