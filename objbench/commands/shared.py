"""Options and functions that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import click

from objbench.cells.about import KINDS, is_registered, package_words
from objbench.cells.identity import OWN, Cell, cell_name
from objbench.cells.matrix import changes_of_code, clusterer_changed
from objbench.cells.result import CellResult
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
    "--out", default="runs", show_default=True, metavar="DIR", help="The directory of the cells."
)

PLAN_TIMEOUT = 60.0
"""The default of `--plan-timeout`, in seconds."""
plan_timeout_option = click.option(
    "--plan-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=PLAN_TIMEOUT,
    metavar="S",
    help="Stop waiting for a plugin that does not answer within S seconds while cells are planned or metrics are "
    "computed. [default: 60]",
)

overrides_option = click.option(
    "-o", "--option", "options", multiple=True, metavar="NAME.KEY=VALUE", help="Set an option (repeatable)."
)


def as_typed(*words: str, plugins: tuple[str, ...] = ()) -> str:
    """An objbench command with its plugin files for a hint, quoted so that it can be pasted into a shell."""
    return shlex.join(["objbench", *words, *(word for file in plugins for word in ("--plugin", file))])


def warn_of_clashes(registry: Registry) -> None:
    """Prints a line on stderr for each metric that is left out because several plugins register its name."""
    for name, owners in registry.clashes("metric").items():
        click.echo(
            f"warning: metric '{name}' is left out: {len(owners)} plugins register it ({', '.join(owners)}); "
            "remove one, or choose with OBJBENCH_PLUGINS",
            err=True,
        )


def names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Parses `--models a,b --models c` as ["a", "b", "c"]; an option that is not used is []."""
    found = [name.strip() for value in values for name in value.split(",") if name.strip()]
    if values and not found:
        raise click.BadParameter("contains no name")
    return found


def named(result: CellResult) -> str:
    """How messages call a cell."""
    name = cell_name(result.model, result.clusterer, result.data, result.seed)
    return f"{name}, weights of {result.trained}" if result.trained else name


def find_cells(cells: tuple[str, ...], store: Store) -> list[str]:
    """The keys of the given cells, each named by the beginning of its key; all keys when `cells` is empty.

    UsageError when a beginning fits no cell or several.
    """
    keys = store.cell_keys()
    found = []
    for cell in cells:
        mine = [key for key in keys if key.startswith(cell)] if cell else []
        if len(mine) > 1 and cell not in keys:
            raise UsageError(
                f"'{cell}' is the beginning of {len(mine)} cells: {', '.join(mine)}; use more characters"
            )
        if not mine:
            raise UsageError(
                f"no cell in {store.out} begins with '{cell}' (cells: {', '.join(keys) or 'none'})"
            )
        found.append(cell if cell in keys else mine[0])
    return list(dict.fromkeys(found)) if cells else keys


def find_cell(cell: str, out: str) -> Path:
    """The directory of one cell, named by its directory or the beginning of its key. UsageError for none or several."""
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
        raise UsageError(
            f"'{cell}' is the beginning of {len(found)} cells: {', '.join(found)}; use more characters"
        )
    raise UsageError(f"no cell in {out} begins with '{cell}' (cells: {', '.join(keys) or 'none'})")


PARTS = {**KINDS, "clusterer": "clusterer"}
"""The parts of a cell that plugins register -> what `Registry.owners` calls their kind."""


def require_plugins(registry: Registry, cell: Cell, parts: Iterable[str] = PARTS) -> None:
    """UsageError, which names the cell and who had registered it, when a plugin of it is gone or claimed twice.

    parts: some of PARTS.
    """
    find = {"model": registry.model, "data": registry.data_spec, "clusterer": registry.clusterer}
    for part in parts:
        name = name_of(cell, part)
        if not name:
            continue
        if registry.is_gone(PARTS[part], name):
            raise UsageError(f"cell {cell.key}: {gone(registry, cell, part)}")
        try:
            find[part](name)
        except UsageError as error:
            raise UsageError(f"cell {cell.key}: {error}") from None


def name_of(cell: Cell, part: str) -> str:
    """The name of one of PARTS; "" of the clusterer where the detector clusters."""
    name: str = cell.clusterer["name"] if part == "clusterer" else cell.training.identity[part]
    return "" if part == "clusterer" and name == OWN else name


def gone(registry: Registry, cell: Cell, part: str) -> str:
    """That no plugin registers the model, the data or the clusterer of a cell, who had, and what to do."""
    about = cell.about if part == "clusterer" else cell.training.about.get(part, {})
    plugin = about.get("plugin", {})
    if source := package_words(plugin):
        todo = "name it with --plugin" if "file" in plugin else "install it again"
        came = f"{source} had registered it; {todo}"
    else:
        came = (
            "the package that had registered it is not recorded; install it, or name its file with --plugin"
        )
    broken = sum(bool(plugin.error) for plugin in registry.plugins)
    hint = f" ({broken} did not load; `objbench plugins` shows why)" if broken else ""
    return f"no plugin registers the {PARTS[part]} '{name_of(cell, part)}' any more; {came}{hint}"


def warn_of_changed_code(registry: Registry, cell: Cell) -> None:
    """A line on stderr if a training's code is not what it was when it ran, with the files that changed; one if that of
    its clusterer is not; and one for each plugin of the cell that is gone."""
    training = cell.training
    named = {part: name for part in PARTS if (name := name_of(cell, part))}
    missing = [part for part, name in named.items() if registry.is_gone(PARTS[part], name)]
    for part in missing:
        click.echo(f"warning: cell {cell.key}: {gone(registry, cell, part)}", err=True)
    if (
        "clusterer" in named
        and is_registered(registry, "clusterer", named["clusterer"])
        and clusterer_changed(registry, cell)
    ):
        click.echo(
            f"warning: cell {cell.key} was clustered with other code of '{named['clusterer']}' than there is now",
            err=True,
        )
    if all(is_registered(registry, kind, training.identity[kind]) for kind in KINDS) and (
        changed := changes_of_code(registry, training)
    ):
        click.echo(
            f"warning: training {training.key} was run with other code than the installed code: "
            f"{', '.join(changed)} changed since",
            err=True,
        )
