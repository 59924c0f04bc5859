"""What several commands share: options, and how a cell is named."""

from __future__ import annotations

from pathlib import Path

import click

from objbench.errors import UsageError
from objbench.plugins import Registry

plugin_option = click.option(
    "--plugin", "plugin_files", multiple=True, metavar="FILE", help="Also load this plugin file (repeatable)."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")

split_option = click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True
)

seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, metavar="S"
)

protocol_option = click.option(
    "--protocol",
    "protocol_name",
    default="demo",
    show_default=True,
    metavar="P",
    help="demo, small or paper.",
)

out_option = click.option(
    "--out", default="runs", show_default=True, metavar="DIR", help="Where cells are kept."
)

overrides_option = click.option(
    "-o", "--option", "options", multiple=True, metavar="NAME.KEY=VALUE", help="Set an option (repeatable)."
)


def warn_of_clashes(registry: Registry) -> None:
    """A line on stderr for each metric that figures will be without, as several plugins claim its name."""
    for name, owners in registry.clashes("metric").items():
        click.echo(
            f"warning: metric '{name}' is left out: {len(owners)} plugins register it ({', '.join(owners)}); "
            "remove one, or choose with OBJBENCH_PLUGINS",
            err=True,
        )


def names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """`--models a,b --models c` as ["a", "b", "c"]."""
    found = [name.strip() for value in values for name in value.split(",") if name.strip()]
    if not found:
        raise click.BadParameter("names nothing")
    return found


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
