"""`objbench show`: draws the pictures of a finished cell."""

from __future__ import annotations

import click

from objbench.commands.shared import find_cell, out_option, plugin_option, warn_of_changed_code
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.argument("cell")
@out_option
@plugin_option
def show(cell: str, out: str, plugin_files: tuple[str, ...]) -> None:
    """Draw the pictures of a finished cell, and print their paths.

    CELL is the beginning of its key, or its directory. The pictures are drawn from the cell's files; neither the
    detector's plugin nor its weights are needed.
    """
    folder = find_cell(cell, out)
    registry = load_plugins(plugin_files)

    from objbench.cells.files import Damaged
    from objbench.cells.identity import read_cell
    from objbench.cells.store import read_record
    from objbench.report.pictures import draw

    try:
        result, _ = read_record(folder)
        if result.status != "done":
            raise UsageError(f"cell {result.cell} is not done but {result.status}; run it first")
        warn_of_changed_code(registry, read_cell(folder))
        pictures = draw(folder, registry.columns)
    except Damaged as error:
        raise UsageError(f"cell {folder.parent.name}/{folder.name}: {error}; run it again") from None
    for picture in pictures:
        click.echo(picture)
