"""`objbench run`: trains and scores every cell of a matrix that is not done yet."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from objbench.cells.matrix import entries
from objbench.cells.overrides import parse_overrides
from objbench.cells.protocols import PROTOCOLS, protocol
from objbench.cells.sweeps import told_apart
from objbench.commands.engines import check_engine, open_engine
from objbench.commands.matrix_file import from_matrix_file, save
from objbench.commands.shared import (
    as_typed,
    json_option,
    named,
    names,
    out_option,
    overrides_option,
    plan_timeout_option,
    plugin_option,
    warn_of_clashes,
)
from objbench.errors import error_line
from objbench.plugins import load_plugins

MOST_SEEDS = 10_000
"""More is taken for a slip."""

if TYPE_CHECKING:
    from objbench.cells.identity import Cell
    from objbench.cells.plan import Planned
    from objbench.cells.result import CellResult
    from objbench.run.planning import Planner
    from objbench.run.progress import Progress


def seeds_of(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    """`3` as seeds 0 to 2; `3-5,7` and `4-4` as these, in the order given, each once."""
    spans = [re.fullmatch(r"\s*(\d{1,10})(?:\s*-\s*(\d{1,10}))?\s*", part) for part in value.split(",")]
    pairs = [(int(span[1]), int(span[2] or span[1])) for span in spans if span]
    if len(pairs) < len(spans):
        raise click.BadParameter(f"'{value}' is neither a number of seeds nor a list of seeds such as 3-5,7")
    if "," not in value and "-" not in value:
        if not pairs[0][0]:
            raise click.BadParameter("0 is not in the range x>=1")
        pairs = [(0, pairs[0][0] - 1)]
    if any(last < first for first, last in pairs):
        raise click.BadParameter(f"'{value}': a span of seeds goes up, as 3-5")
    if max(last for _, last in pairs) >= 2**31:
        raise click.BadParameter("a seed must be below 2147483648")
    if sum(last - first + 1 for first, last in pairs) > MOST_SEEDS:
        raise click.BadParameter(f"'{value}' is more than {MOST_SEEDS} seeds")
    return list(dict.fromkeys(seed for first, last in pairs for seed in range(first, last + 1)))


@click.command()
@click.option(
    "--models",
    multiple=True,
    required=True,
    callback=names,
    metavar="NAME[+CLUSTERER][,...]",
    help="Detectors, each with a clusterer of the objects that it finds; a detector alone keeps its own clusters, or "
    "gets +gmm.",
)
@click.option(
    "--data", multiple=True, required=True, callback=names, metavar="NAME[,NAME]", help="Data sets."
)
@click.option(
    "--seeds",
    default="1",
    callback=seeds_of,
    metavar="N|LIST",
    help="N: seeds 0 to N-1; a list such as 3-5,7 or 4-4: these.  [default: 1]",
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
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Cells at once.  [default: 1; with --on, as many as there is room for]",
)
@click.option(
    "--on",
    default="",
    metavar="ENGINE[=ADDRESS]",
    help="Run cells on the machines of a cluster: ray, or ray=HOST:PORT. See docs/machines.md.",
)
@click.option(
    "--gpus-per-cell",
    type=click.FloatRange(min=0),
    metavar="X",
    help="With --on: GPUs of each cell; .5 for two cells on one.  [default: 1, or 0 where there are none]",
)
@click.option(
    "--cpus-per-cell",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --on: cores, and threads, of each cell.  [default: 1]",
)
@click.option(
    "--memory-per-cell",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="With --on: memory that a machine must have left for each cell.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Kill a cell after S seconds."
)
@plan_timeout_option
@click.option(
    "--checkpoint-every",
    default=20.0,
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds.  [default: 20]",
)
@click.option(
    "--points",
    type=click.IntRange(min=1),
    metavar="N",
    help="Points of each training's curve, evenly spaced.  [default: at most 20, for a tenth of the time]",
)
@click.option(
    "--log",
    type=click.Choice(["csv", "tensorboard"]),
    help="Write losses, what the detector watches, and metrics beside each training while it runs.",
)
@plugin_option
@click.option(
    "--force",
    is_flag=True,
    help="Train these cells anew, also those that are done. What is there is set aside, not removed.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what would run, why, and how long; run nothing.")
@json_option
@from_matrix_file
def run(
    models: list[str],
    data: list[str],
    seeds: list[int],
    protocol_name: str,
    out: str,
    options: tuple[str, ...],
    device: str,
    workers: int | None,
    on: str,
    gpus_per_cell: float | None,
    cpus_per_cell: int | None,
    memory_per_cell: float | None,
    timeout: float | None,
    plan_timeout: float,
    checkpoint_every: float,
    points: int | None,
    log: str | None,
    plugin_files: tuple[str, ...],
    force: bool,
    plan_only: bool,
    as_json: bool,
) -> None:
    """Train and score models on data sets.

    FILE.toml holds options of this command under their names (benchmarks/ has examples); options on the command line
    take precedence. An option of a plugin with several values, such as -o gmair.recon=4,8,16, makes a row of each.

    What is done already is not run again; what was interrupted goes on from its checkpoint. Exit code 0: all
    done, 1: some cell failed, or its plugins could not say what it is, 2: wrong usage, 74: stdout could not be
    written, 130: interrupted, 141: whoever read the output closed it.
    """
    overrides = parse_overrides(options)
    scale = protocol(protocol_name)
    folder = Path(out).absolute()  # before any plugin is loaded: it may go elsewhere

    from objbench.cells.plan import plan
    from objbench.cells.store import Store
    from objbench.run.backend import Needs, Settings
    from objbench.run.log import check_log
    from objbench.run.planning import Planner
    from objbench.run.progress import Progress
    from objbench.run.runner import Runner

    if log:
        check_log(log)
    seconds = timeout or math.inf
    settings = Settings([], workers or 0, 1, seconds, checkpoint_every, plugin_files, points, log or "")
    needs = Needs(cpus_per_cell, gpus_per_cell, memory_per_cell)
    check_engine(on, needs)
    store = Store(folder)
    with Planner(plugin_files, min(plan_timeout, seconds)) as planner:
        planner.start()  # it imports torch while we load plugins
        registry = load_plugins(plugin_files)
        warn_of_clashes(registry)
        entries(registry, models)  # at once, not when torch is there
        for name in data:
            registry.data_spec(name)
        backend = open_engine(on, settings, device, needs, planner.count_devices)
        click.get_current_context().call_on_close(backend.close)
        cells, failures = planner.matrix(models, data, seeds, scale.name, overrides, str(folder))
        save(options)
        for failure in failures:
            click.echo(f"{named(failure)}: failed: {failure.error}", err=True)
        if plan_only:
            slots = backend.slots()
            backend.close()
            show_plan(plan(store, cells, force), failures, slots, as_json)
            sys.exit(bool(failures))
        if cells:
            store.prepare()
            store.tidy({cell.training.key for cell in cells})
        planned = plan(store, cells, force)
        results = {p.cell.key: rescored(planner, p.result) for p in planned if not p.why}
    todo = [p.cell for p in planned if p.why]
    if todo:
        backend.prepare(registry, todo)
    expected = {p.cell.key: p.seconds for p in planned}
    slots = backend.slots()
    with Progress(
        todo, registry.columns, apart=told_apart(cells), seconds=expected, workers=slots, store=folder
    ) as progress:
        if cells and not todo:
            progress.say(f"nothing to run: all {len(cells)} cells are done")
        runner = Runner(store, backend, Drawing(progress, registry.columns), force)
        results |= runner.run(todo)
    backend.close()
    in_order = [results.get(p.cell.key, p.result) for p in planned] + failures
    show_results(in_order, list(registry.columns), as_json, told_apart(cells))
    for cell in todo:
        if pictures := sorted(str(path) for path in store.folder(cell.key).glob("*.png")):
            click.echo(f"pictures of {cell.name}: {' '.join(pictures)}", err=True)
    if cells:
        click.echo(f"table: {as_typed('report', '--out', out, plugins=plugin_files)}", err=True)
    if runner.stop_requests:
        again = "without --force it" if force else "the same command"
        click.echo(f"interrupted; {again} goes on where this one stopped", err=True)
        sys.exit(130)
    sys.exit(any(r.status != "done" for r in in_order))


def rescored(planner: Planner, result: CellResult) -> CellResult:
    """A done cell's result by the metrics as they are now; the record is brought up to date."""
    from objbench.cells.store import update_record

    fresh, complaints = planner.rescore(result)
    for complaint in complaints:
        click.echo(f"objbench: {named(result)}: {complaint}", err=True)
    if (fresh.metrics, fresh.provenance) != (result.metrics, result.provenance):
        update_record(fresh)
    return fresh


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
                self.say(f"{cell.name}: no pictures: {error_line(error)}")


def show_results(
    results: list[CellResult], columns: list[str], as_json: bool, apart: Mapping[str, str]
) -> None:
    """How each cell ended, with its figures and its warnings. apart: what tells cells of one name apart, by key."""
    if as_json:
        click.echo(json.dumps([r.as_json() for r in results], indent=2))
        return
    for result in results:
        figures = "  ".join(f"{k} {result.metrics[k]:.3f}" for k in columns if k in result.metrics)
        line = f"{result.status}: {named(result)}{apart.get(result.cell, '')}  {result.error or figures}  {result.path}"
        click.echo(line.rstrip())
        for warning in result.provenance.get("warnings", []):
            click.echo(f"    warning: {warning}", err=True)


def show_plan(planned: list[Planned], failures: list[CellResult], workers: int, as_json: bool) -> None:
    """What would run, why, and for how long; and what cannot."""
    from objbench.run.board import duration

    if as_json:
        rows = [p.result.as_json() | {"why": p.why, "estimate": p.seconds} for p in planned]
        rows += [failure.as_json() | {"why": failure.error, "estimate": None} for failure in failures]
        click.echo(json.dumps(rows, indent=2))
        return
    apart = told_apart(p.cell for p in planned)
    for p in planned:
        time = "" if not p.why else f"  [{'unknown' if p.seconds is None else duration(p.seconds)}]"
        time = f"{time[:-1]} of training, at the pace that objbench check measured]" if p.by_check else time
        click.echo(f"{p.cell.key}  {p.cell.name}{apart.get(p.cell.key, '')}: {p.why or 'done'}{time}")
    for failure in failures:
        click.echo(f"cannot run  {named(failure)}: {failure.error}")
    todo = [p for p in planned if p.why]
    known = [p.seconds for p in todo if p.seconds is not None]
    total = f"about {duration(sum(known) / min(workers, len(known)))}" if known else "unknown time"
    rest = f", and {len(todo) - len(known)} of unknown time" if known and len(known) < len(todo) else ""
    every = len(planned) + len(failures)
    click.echo(f"{len(todo)} of {every} cells to run: {total if todo else 'nothing'}{rest}")
