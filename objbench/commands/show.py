"""`objbench show`: the pictures of a finished cell."""

from __future__ import annotations

import click

from objbench.commands.shared import find_cell, out_option, plugin_option
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.argument("cell")
@out_option
@plugin_option
def show(cell: str, out: str, plugin_files: tuple[str, ...]) -> None:
    """Write the pictures of a finished cell, and say where.

    CELL is the beginning of its name, or its directory.
    """
    folder = find_cell(cell, out)
    registry = load_plugins(plugin_files)

    from objbench.cells.files import Damaged
    from objbench.report.pictures import draw
    from objbench.score.trained import load_trained

    try:
        built, _ = load_trained(registry, folder)
        pictures = draw(folder, registry, built)
    except Damaged as error:
        raise UsageError(f"cell {folder.name}: {error}; run it again") from None
    for picture in pictures:
        click.echo(picture)
