"""`objbench rescore`: recomputes the metrics of finished cells."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from objbench.cells.difference import figures_that_differ
from objbench.commands.shared import find_cells, named, plan_timeout_option, plugin_option, warn_of_clashes
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.argument("directory", metavar="DIR")
@click.argument("cells", nargs=-1, metavar="[CELL]...")
@plan_timeout_option
@plugin_option
def rescore(
    directory: str, cells: tuple[str, ...], plan_timeout: float, plugin_files: tuple[str, ...]
) -> None:
    """Recompute the metrics of the finished cells in DIR from their raw detections.

    CELL is the beginning of a cell's key; the default is all cells. A metric that fails is left out of the figures,
    and is computed again next time. Exit code 0: all metrics of all cells were computed; 1: some failed.
    """
    from objbench.cells.files import Damaged
    from objbench.cells.store import Store, read_trained, update_record
    from objbench.run.planning import Planner

    store = Store(Path(directory).absolute())
    registry = load_plugins(plugin_files)
    warn_of_clashes(registry)
    keys = find_cells(cells, store)
    if not keys:
        raise UsageError(f"no cells in {directory}")
    store.prepare()
    failed = done = 0
    with Planner(plugin_files, plan_timeout) as planner:
        for key in keys:
            try:
                store.verify_training(key.partition("/")[0])
                result = store.verify(key)
                if result is None or result.status != "done":
                    click.echo(f"skipped: {key} is {result.status if result else 'new'}, not done", err=True)
                    continue
                read_trained(store.folder(key).parent)
                fresh, complaints = planner.rescore(result, anew=True)
            except (Damaged, UsageError) as error:
                failed += 1
                click.echo(f"failed: {key}: {error}", err=True)
                continue
            update_record(fresh)
            done += 1
            failed += bool(complaints)
            for complaint in complaints:
                click.echo(f"{key}: {complaint}", err=True)
            gone = sorted(result.metrics.keys() - fresh.metrics.keys())
            new = sorted(fresh.metrics.keys() - result.metrics.keys())
            kept = {name: value for name, value in result.metrics.items() if name in fresh.metrics}
            lines = figures_that_differ(replace(result, metrics=kept), fresh)
            lines += [f"{name}: no longer has a value" for name in gone]
            lines += [f"{name}: {fresh.metrics[name]:.6f}, new" for name in new]
            click.echo(f"{key}  {named(fresh)}: {'; '.join(lines) or 'no figure changed'}")
    if not done and not failed:
        raise UsageError(f"no finished cell among the {len(keys)} of {directory}")
    sys.exit(bool(failed))
