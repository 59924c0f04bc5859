"""`objbench run`: trains and scores every cell of a matrix that is not done yet."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from objbench.cells.overrides import parse_overrides
from objbench.cells.protocols import PROTOCOLS, protocol
from objbench.commands.devices import find_devices, threads_each
from objbench.commands.shared import (
    as_typed,
    json_option,
    names,
    out_option,
    overrides_option,
    plugin_option,
    warn_of_clashes,
)
from objbench.errors import told
from objbench.plugins import load_plugins

if TYPE_CHECKING:
    from objbench.cells.identity import Cell
    from objbench.cells.plan import Planned
    from objbench.cells.result import CellResult
    from objbench.run.progress import Progress


@click.command()
@click.option(
    "--models", multiple=True, required=True, callback=names, metavar="NAME[,NAME]", help="Detectors."
)
@click.option(
    "--data", multiple=True, required=True, callback=names, metavar="NAME[,NAME]", help="Data sets."
)
@click.option(
    "--seeds", default=1, type=click.IntRange(min=1), metavar="N", help="Run seeds 0 to N-1.  [default: 1]"
)
@click.option(
    "--protocol",
    "protocol_name",
    default="demo",
    show_default=True,
    metavar="|".join(PROTOCOLS),
    help="Scale.",
)
@out_option
@overrides_option
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--workers", default=1, type=click.IntRange(min=1), metavar="N", help="Cells at once.  [default: 1]"
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Kill a cell after S seconds."
)
@click.option(
    "--checkpoint-every",
    default=20.0,
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds.  [default: 20]",
)
@plugin_option
@click.option("--plan", "plan_only", is_flag=True, help="Say what would run, why, and how long; run nothing.")
@json_option
def run(
    models: list[str],
    data: list[str],
    seeds: int,
    protocol_name: str,
    out: str,
    options: tuple[str, ...],
    device: str,
    workers: int,
    timeout: float | None,
    checkpoint_every: float,
    plugin_files: tuple[str, ...],
    plan_only: bool,
    as_json: bool,
) -> None:
    """Train and score models on data sets.

    What is done already is not run again; what was interrupted goes on from its checkpoint. Exit code 0: all
    done, 1: some cell failed, 2: wrong usage, 74: stdout could not be written, 130: interrupted, 141: whoever
    read the output closed it.
    """
    overrides = parse_overrides(options)
    scale = protocol(protocol_name)
    registry = load_plugins(plugin_files)
    warn_of_clashes(registry)

    from objbench.cells.matrix import matrix
    from objbench.cells.plan import plan
    from objbench.cells.store import Store
    from objbench.run.local import Settings
    from objbench.run.progress import Progress
    from objbench.run.runner import Runner
    from objbench.score.metrics import rescored
    from objbench.score.scene_checks import check_data_of

    devices = find_devices(device)
    store = Store(out)
    cells = matrix(registry, models, data, seeds, scale, overrides, store)
    check_data_of(registry, cells)
    if plan_only:
        show_plan(plan(store, cells), workers, as_json)
        return
    store.prepare()
    planned = plan(store, cells)
    results = {p.cell.key: rescored(registry, p.result) for p in planned if not p.why}
    todo = [p.cell for p in planned if p.why]
    seconds = timeout or math.inf
    settings = Settings(devices, workers, threads_each(workers), seconds, checkpoint_every, plugin_files)
    with Progress(len(todo), registry.columns) as progress:
        if not todo:
            progress.say(f"nothing to run: all {len(cells)} cells are done")
        runner = Runner(store, settings, Drawing(progress, registry.columns))
        results |= runner.run(todo)
    in_order = [results.get(p.cell.key, p.result) for p in planned]
    show_results(cells, in_order, list(registry.columns), as_json)
    for cell in todo:
        if pictures := sorted(str(path) for path in store.folder(cell.key).glob("*.png")):
            click.echo(f"pictures of {cell.name}: {' '.join(pictures)}", err=True)
    click.echo(f"table: {as_typed('report', '--out', out, plugins=plugin_files)}", err=True)
    if runner.stop_requests:
        click.echo("interrupted; the same command goes on where this one stopped", err=True)
        sys.exit(130)
    sys.exit(any(r.status != "done" for r in in_order))


class Drawing:
    """Shows progress, and draws the pictures of each cell that is done."""

    def __init__(self, progress: Progress, headings: Mapping[str, str]) -> None:
        """headings: those of the main table's columns."""
        self.say, self.begin, self.update = progress.say, progress.begin, progress.update
        self._progress, self._headings = progress, headings

    def end(self, cell: Cell, result: CellResult) -> None:
        """A cell ended."""
        self._progress.end(cell, result)
        if result.status == "done":
            from objbench.report.pictures import draw  # matplotlib

            try:
                draw(Path(result.path), self._headings)
            except Exception as error:  # the cell is done whether or not it can be drawn
                self.say(f"{cell.name}: no pictures: {told(error)}")


def show_results(cells: list[Cell], results: list[CellResult], columns: list[str], as_json: bool) -> None:
    """How each cell ended, with its figures."""
    if as_json:
        click.echo(json.dumps([r.as_json() for r in results], indent=2))
        return
    for cell, result in zip(cells, results, strict=True):
        figures = "  ".join(f"{k} {result.metrics[k]:.3f}" for k in columns if k in result.metrics)
        click.echo(f"{result.status}: {cell.name}  {result.error or figures}  {result.path}")


def show_plan(planned: list[Planned], workers: int, as_json: bool) -> None:
    """What would run, why, and for how long."""
    from objbench.run.progress import duration

    if as_json:
        rows = [p.result.as_json() | {"why": p.why, "estimate": p.seconds} for p in planned]
        click.echo(json.dumps(rows, indent=2))
        return
    for p in planned:
        time = "" if not p.why else f"  [{'unknown' if p.seconds is None else duration(p.seconds)}]"
        click.echo(f"{p.cell.key}  {p.cell.name}: {p.why or 'done'}{time}")
    todo = [p for p in planned if p.why]
    known = [p.seconds for p in todo if p.seconds is not None]
    total = f"about {duration(sum(known) / min(workers, len(known)))}" if known else "unknown time"
    rest = f", and {len(todo) - len(known)} of unknown time" if known and len(known) < len(todo) else ""
    click.echo(f"{len(todo)} of {len(planned)} cells to run: {total if todo else 'nothing'}{rest}")
