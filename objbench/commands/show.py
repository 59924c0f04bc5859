"""`objbench show`: the pictures of a finished cell."""

from __future__ import annotations

from pathlib import Path

import click

from objbench.commands.catalog import plugin_option
from objbench.commands.run import out_option
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

    from objbench.cell import draw, load_trained
    from objbench.store import Damaged

    try:
        built, _ = load_trained(registry, folder)
        pictures = draw(folder, registry, built)
    except Damaged as error:
        raise UsageError(f"cell {folder.name}: {error}; run it again") from None
    for picture in pictures:
        click.echo(picture)


def find_cell(cell: str, out: str) -> Path:
    """The directory of the one cell whose name begins so, or that lies there. UsageError without one."""
    if (Path(cell) / "cell.json").is_file():
        return Path(cell)
    cells = sorted(p for p in (Path(out) / "cells").glob("*") if "." not in p.name)
    found = [p for p in cells if p.name.startswith(cell)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"'{cell}' begins {len(found)} cells: {', '.join(p.name for p in found)}; write more of it"
        )
    raise UsageError(
        f"no cell in {out} begins with '{cell}' (cells: {', '.join(p.name for p in cells) or 'none'})"
    )
