"""`objbench run`: trains and scores every cell of a matrix that is not done yet."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from objbench.commands.catalog import as_typed, json_option, plugin_option, warn_of_clashes
from objbench.errors import UsageError
from objbench.overrides import overrides_option, parse_overrides
from objbench.plugins import Registry, load_plugins
from objbench.protocols import PROTOCOLS, protocol

if TYPE_CHECKING:
    from objbench.plan import Planned
    from objbench.results import CellResult

out_option = click.option(
    "--out", default="runs", show_default=True, metavar="DIR", help="Where cells are kept."
)


def names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """`--models a,b --models c` as ["a", "b", "c"]."""
    found = [name.strip() for value in values for name in value.split(",") if name.strip()]
    if not found:
        raise click.BadParameter("names nothing")
    return found


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

    from objbench.evaluation import columns  # these are heavy
    from objbench.matrix import matrix
    from objbench.plan import plan
    from objbench.progress import Progress
    from objbench.runner import Runner, Settings
    from objbench.store import Store

    devices = find_devices(device)
    cells = matrix(registry, models, data, seeds, scale, overrides)
    store = Store(out)
    if plan_only:
        show_plan(plan(store, cells), workers, as_json)
        return
    store.prepare()
    planned = plan(store, cells)
    results = {p.cell.key: rescored(registry, p.result) for p in planned if not p.why}
    todo = [p.cell for p in planned if p.why]
    seconds = timeout or math.inf
    settings = Settings(devices, workers, threads_each(workers), seconds, checkpoint_every, plugin_files)
    with Progress(len(todo), columns(registry)) as progress:
        if not todo:
            progress.say(f"nothing to run: all {len(cells)} cells are done")
        runner = Runner(store, settings, progress)
        results |= runner.run(todo)
    in_order = [results.get(p.cell.key, p.result) for p in planned]
    if as_json:
        click.echo(json.dumps([r.as_json() for r in in_order], indent=2))
    else:
        for cell, result in zip(cells, in_order, strict=True):
            figures = "  ".join(
                f"{k} {result.metrics[k]:.3f}" for k in columns(registry) if k in result.metrics
            )
            click.echo(f"{result.status}: {cell.name}  {result.error or figures}  {result.path}")
    for cell, result in zip(cells, in_order, strict=True):
        if pictures := sorted(str(path) for path in Path(result.path).glob("*.png")):
            click.echo(f"pictures of {cell.name}: {' '.join(pictures)}", err=True)
    click.echo(f"table: {as_typed('report', '--out', out, plugins=plugin_files)}", err=True)
    if runner.asked:
        click.echo("interrupted; the same command goes on where this one stopped", err=True)
        sys.exit(130)
    sys.exit(any(r.status != "done" for r in in_order))


def find_devices(device: str) -> list[str]:
    """The devices to place cells on. UsageError when CUDA was asked for and there is none."""
    import torch

    count = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cuda" and not count:
        raise UsageError("--device cuda: torch finds no CUDA device on this machine; use --device cpu")
    return [f"cuda:{i}" for i in range(count)] or ["cpu"]


def threads_each(workers: int) -> int:
    """The machine's cores (or OMP_NUM_THREADS, when fewer) divided among the workers.

    More threads than cores would spin at each other's barriers, and a step take many times as long.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(allowed) if allowed.isdigit() else cores))


def rescored(registry: Registry, result: CellResult) -> CellResult:
    """A done cell's result by the metrics as they are now; the record is brought up to date."""
    from objbench.evaluation import rescore
    from objbench.store import update_record

    fresh = rescore(registry, result)
    if fresh is not result:
        update_record(fresh)
    return fresh


def show_plan(planned: list[Planned], workers: int, as_json: bool) -> None:
    """What would run, why, and for how long."""
    from objbench.progress import duration

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
