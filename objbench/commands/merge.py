"""`objbench merge`: makes one store of several."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from objbench.cells.merge import carry_out, plan_merge
from objbench.cells.store import Store
from objbench.commands.shared import as_typed
from objbench.errors import UsageError


@click.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option(
    "--to", "target", required=True, metavar="DIR", help="The store that gets all cells; made if need be."
)
def merge(directories: tuple[str, ...], target: str) -> None:
    """Copy the cells of several stores, of several machines or people, into one.

    What is there already stays. Two different results for one cell are refused, and so is a store in which a cell
    is running: then nothing is written. Of a cell that is finished in one store alone, that one is taken. Exit code 0:
    all is there, 1: damaged cells were left out.
    """
    stores = [Store(directory) for directory in dict.fromkeys(directories)]
    for store in stores:
        if not store.cell_keys():
            raise UsageError(f"no cells in {store.out}; give directories that `objbench run --out` wrote")
    into = Store(Path(target))
    if into.out.exists() and not into.out.is_dir():
        raise UsageError(f"--to {target} is a file; give a directory")
    planned = plan_merge(stores, into)
    carry_out(planned, into)
    for line in planned.left_out:
        click.echo(f"warning: {line}", err=True)
    new, old = len(planned.cells), len(planned.kept)
    click.echo(f"{target}: {new} cell{'s' * (new != 1)} copied, {old} there already")
    click.echo(f"table: {as_typed('report', '--out', target)}", err=True)
    sys.exit(bool(planned.left_out))
