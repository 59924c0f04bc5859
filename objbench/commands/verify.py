"""`objbench verify`: trains a cell again from its record, and compares its figures."""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from objbench.cells.difference import figures_that_differ, surroundings_that_differ
from objbench.cells.matrix import as_it_is_now
from objbench.commands.devices import find_devices
from objbench.commands.shared import find_cell, plugin_option, require_plugins, warn_of_changed_code
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--cell", required=True, metavar="ID", help="The cell: its key or the beginning of it.")
@click.option("--to", default=None, metavar="DIR", help="Keep the new cell in DIR; by default it is removed.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@plugin_option
def verify(directory: str, cell: str, to: str | None, device: str, plugin_files: tuple[str, ...]) -> None:
    """Train a cell of DIR again from its record, and compare the figures.

    Exit code 0: all figures are the same; 1: some differ. Then the recorded differences between the runs are printed.
    """
    folder = find_cell(cell, directory)
    registry = load_plugins(plugin_files)

    from objbench.cells.difference import difference
    from objbench.cells.files import Damaged
    from objbench.cells.identity import read_cell
    from objbench.cells.origin import origin_folder
    from objbench.cells.store import Store, read_record
    from objbench.run.backend import Settings
    from objbench.run.local import Local
    from objbench.run.progress import Progress
    from objbench.run.runner import Runner
    from objbench.score.metrics import rescore
    from objbench.score.scene_checks import check_data_of

    try:
        old = read_cell(folder)
        recorded, _ = read_record(folder)
        recorded = rescore(registry, recorded)  # so that a changed metric is no difference
    except Damaged as error:
        raise UsageError(f"cell {folder.parent.name}/{folder.name}: {error}; it cannot be verified") from None
    if recorded.status != "done":
        raise UsageError(f"cell {recorded.cell} is {recorded.status}, not done; it cannot be verified")
    require_plugins(registry, old)
    new = as_it_is_now(registry, old)
    if old.training.weights_from:  # the new cell lies elsewhere, and begins with the same weights
        origin = origin_folder(folder.parent.parent, old.training)
        new = replace(new, training=replace(new.training, weights_from=str(origin)))
    check_data_of(registry, [new])
    warn_of_changed_code(registry, old)  # before the long training
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(to or scratch)
        if to and Path(to).resolve() == Path(directory).resolve():
            raise UsageError(f"--to {to} is the directory of the cell itself; choose another directory")
        store.prepare()
        threads = recorded.provenance.get("threads", 1)  # another number changes the order of sums
        settings = Settings(find_devices(device), 1, threads, math.inf, 20.0, plugin_files)
        with Progress([new], registry.columns) as progress:
            runner = Runner(store, Local(settings), progress)
            result = runner.run([new])[new.key]
        if runner.stop_requests:
            sys.exit(130)
    if result.status != "done":
        raise UsageError(f"the new training is not done but {result.status}: {result.error or 'see its log'}")
    unequal = figures_that_differ(recorded, result)
    for line in unequal:
        click.echo(line)
    if not unequal:
        click.echo(f"same: all {len(recorded.metrics)} figures of {old.key} are equal")
        return
    changes = difference(new.identity, old.identity) + surroundings_that_differ(recorded, result)
    for line in changes or ["no recorded version, option or machine differs"]:
        click.echo(f"since then: {line}")
    sys.exit(1)
