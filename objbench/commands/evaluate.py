"""`objbench evaluate`: finished cells on other scenes than they were trained on."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from objbench.cells.overrides import parse_overrides
from objbench.cells.protocols import PROTOCOLS, protocol
from objbench.commands.devices import find_devices, threads_each
from objbench.commands.shared import (
    as_typed,
    find_cell,
    json_option,
    out_option,
    overrides_option,
    plan_timeout_option,
    plugin_option,
    seed_option,
    warn_of_changed_code,
    warn_of_clashes,
)
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.argument("names", metavar="CELL...", nargs=-1, required=True)
@click.option("--data", default="", metavar="NAME", help="The data set.  [default: that of the cell]")
@click.option(
    "--protocol",
    "protocol_name",
    default="",
    metavar="|".join(PROTOCOLS),
    help="The scale of the test.  [default: that of the cell]",
)
@overrides_option
@seed_option
@out_option
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@plan_timeout_option
@plugin_option
@json_option
def evaluate(
    names: tuple[str, ...],
    data: str,
    protocol_name: str,
    options: tuple[str, ...],
    seed: int,
    out: str,
    device: str,
    plan_timeout: float,
    plugin_files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Test the detectors of finished cells on other data, or under another protocol; nothing is trained.

    CELL is the beginning of a cell's key, or its directory. The result is a cell of its own beside it: a row of
    `report` that says what the detector was trained on. Options (-o) are those of the data set, which is made as
    `run` would make it for this protocol; --seed chooses other test scenes. Exit codes are those of `run`.
    """
    overrides = parse_overrides(options)
    if protocol_name:
        protocol(protocol_name)
    folders = list(dict.fromkeys(find_cell(name, out) for name in names))
    here = Path(out).resolve() / "cells"
    stores = {out if folder.parent.parent == here else str(folder.parent.parent.parent) for folder in folders}
    if len(stores) > 1:
        raise UsageError(f"the cells are in {len(stores)} directories; evaluate those of one at a time")

    from objbench.cells.identity import read_cell
    from objbench.cells.plan import plan
    from objbench.cells.store import Store
    from objbench.commands.run import Drawing, rescored, show_results
    from objbench.run.backend import Settings
    from objbench.run.local import Local
    from objbench.run.planning import Planner
    from objbench.run.progress import Progress
    from objbench.run.runner import Runner

    (directory,) = stores
    store = Store(Path(directory).absolute())
    with Planner(plugin_files, plan_timeout) as planner:
        planner.start()  # it imports torch while we load plugins
        registry = load_plugins(plugin_files)
        warn_of_clashes(registry)
        if data:  # at once, not when torch is there
            registry.data_spec(data)
        devices = find_devices(device, planner.count_devices)
        cells = planner.evaluations(folders, data, protocol_name, seed, overrides)
        for folder in folders:
            warn_of_changed_code(registry, read_cell(folder))
        store.prepare()
        planned = plan(store, cells)
        results = {p.cell.key: rescored(planner, p.result) for p in planned if not p.why}
    todo = [p.cell for p in planned if p.why]
    settings = Settings(devices, 1, threads_each(1), math.inf, math.inf, plugin_files)
    with Progress(todo, registry.columns, store=store.out) as progress:
        if not todo:
            which = "the evaluation is" if len(cells) == 1 else f"all {len(cells)} evaluations are"
            progress.say(f"nothing to do: {which} done")
        runner = Runner(store, Local(settings), Drawing(progress, registry.columns))
        results |= runner.run(todo)
    in_order = [results.get(p.cell.key, p.result) for p in planned]
    show_results(in_order, list(registry.columns), as_json, {})
    click.echo(f"table: {as_typed('report', '--out', directory, plugins=plugin_files)}", err=True)
    if runner.stop_requests:
        sys.exit(130)
    sys.exit(any(r.status != "done" for r in in_order))
