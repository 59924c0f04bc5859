"""What several commands share: options, and how a cell is named."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from objbench.cells.identity import Training
from objbench.cells.matrix import changes_of_code
from objbench.cells.store import Store
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


def as_typed(*words: str, plugins: tuple[str, ...] = ()) -> str:
    """An objbench command for a hint, quoted so that it can be pasted into a shell, with its plugin files."""
    return shlex.join(["objbench", *words, *(word for file in plugins for word in ("--plugin", file))])


def warn_of_clashes(registry: Registry) -> None:
    """A line on stderr for each metric that figures will be without, as several plugins claim its name."""
    for name, owners in registry.clashes("metric").items():
        click.echo(
            f"warning: metric '{name}' is left out: {len(owners)} plugins register it ({', '.join(owners)}); "
            "remove one, or choose with OBJBENCH_PLUGINS",
            err=True,
        )


def names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """`--models a,b --models c` as ["a", "b", "c"]; an option that is not given as []."""
    found = [name.strip() for value in values for name in value.split(",") if name.strip()]
    if values and not found:
        raise click.BadParameter("names nothing")
    return found


def find_cell(cell: str, out: str) -> Path:
    """The directory of the one cell whose key begins so, or that lies there. UsageError without one."""
    here = Path(cell)
    if (here / "cell.json").is_file():
        return here.resolve()
    if (here / "training.json").is_file():
        cell, out = f"{here.resolve().name}/", str(here.resolve().parent.parent)
    store = Store(out)
    keys = store.cell_keys()
    found = [key for key in keys if key.startswith(cell)]
    if len(found) == 1:
        return store.folder(found[0]).resolve()
    if found:
        raise UsageError(f"'{cell}' begins {len(found)} cells: {', '.join(found)}; write more of it")
    raise UsageError(f"no cell in {out} begins with '{cell}' (cells: {', '.join(keys) or 'none'})")


def warn_of_changed_code(registry: Registry, training: Training) -> None:
    """A line on stderr if a training's code is not what it was when it ran, with the files that changed."""
    if changed := changes_of_code(registry, training):
        click.echo(
            f"warning: training {training.key} was run with other code than there is now: "
            f"{', '.join(changed)} changed since",
            err=True,
        )
