"""`objbench verify`: trains a cell again from its record, and says whether its figures come out the same."""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from objbench.commands.catalog import plugin_option
from objbench.commands.run import find_devices
from objbench.commands.show import find_cell
from objbench.errors import UsageError
from objbench.plugins import Registry, load_plugins, load_target

if TYPE_CHECKING:
    from objbench.matrix import Cell
    from objbench.results import CellResult


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--cell", required=True, metavar="ID", help="The cell: the beginning of its name.")
@click.option("--to", default=None, metavar="DIR", help="Keep the new cell below DIR; else it is removed.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@plugin_option
def verify(directory: str, cell: str, to: str | None, device: str, plugin_files: tuple[str, ...]) -> None:
    """Train a cell of DIR again from its record, and compare.

    Exit code 0: every figure is the same, 1: some differ; then what differs between then and now is said.
    """
    folder = find_cell(cell, directory)
    registry = load_plugins(plugin_files)

    from objbench.evaluation import columns, rescore  # these are heavy
    from objbench.matrix import Cell, difference
    from objbench.progress import Progress
    from objbench.runner import Runner, Settings
    from objbench.store import Damaged, Store, read_json, read_record

    try:
        old = Cell(**read_json(folder / "cell.json"))
        recorded, _ = read_record(folder)
        recorded = rescore(registry, recorded)  # a metric's new definition is no difference of the training
    except Damaged as error:
        raise UsageError(f"cell {folder.name}: {error}; there is nothing to verify") from None
    if recorded.status != "done":
        raise UsageError(f"cell {folder.name} is {recorded.status}, not done; there is nothing to verify")
    new = as_it_is_now(registry, old)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(to or scratch)
        if to and Path(to).resolve() == Path(directory).resolve():
            raise UsageError(f"--to {to} is where the cell already lies; give another directory")
        store.prepare()
        threads = recorded.provenance.get("threads", 1)  # with others, sums come out in another order
        settings = Settings(find_devices(device), 1, threads, math.inf, 20.0, plugin_files)
        with Progress(1, columns(registry)) as progress:
            runner = Runner(store, settings, progress)
            result = runner.run([new])[new.key]
        if runner.asked:
            sys.exit(130)
    if result.status != "done":
        raise UsageError(f"the new training ended {result.status}: {result.error or 'see its log'}")
    unequal = figures_that_differ(recorded, result)
    for line in unequal:
        click.echo(line)
    if not unequal:
        click.echo(f"same: all {len(recorded.metrics)} figures of {folder.name} came out again")
        return
    changes = difference(new.identity, old.identity) + surroundings_that_differ(recorded, result)
    for line in changes or ["nothing that is recorded differs between then and now"]:
        click.echo(f"since then: {line}")
    sys.exit(1)


def as_it_is_now(registry: Registry, old: Cell) -> Cell:
    """The same cell by the plugins and the data as they are now; its key differs if they have changed."""
    from objbench.matrix import source_hash
    from objbench.options import build

    identity = dict(old.identity)
    model, data = registry.model(identity["model"]), registry.source(identity["data"])
    source_class = load_target(data.target)
    config = build(source_class.Config, data.name, old.data_config)
    fingerprint: dict[str, Any] = source_class(config, 0).fingerprint()
    identity |= {
        "model_source": source_hash(model.target),
        "data_source": source_hash(data.target),
        "fingerprint": fingerprint,
    }
    return dataclasses.replace(old, identity=identity)


def figures_that_differ(then: CellResult, now: CellResult) -> list[str]:
    """A line for each metric that did not come out again, to the last bit."""
    lines = []
    for name, value in then.metrics.items():
        again = now.metrics.get(name, math.nan)
        if value != again and not (math.isnan(value) and math.isnan(again)):
            lines.append(f"{name}: {value:.6f} then, {again:.6f} now ({again - value:+.2g})")
    return lines


def surroundings_that_differ(then: CellResult, now: CellResult) -> list[str]:
    """A line for each version, device or commit that is another one now."""
    lines = []
    for name in ("objbench", "python", "platform", "git", "device", "threads"):
        if then.provenance.get(name) != now.provenance.get(name):
            lines.append(f"{name} was {then.provenance.get(name)}, is {now.provenance.get(name)}")
    before, after = (r.provenance.get("packages", {}) for r in (then, now))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            lines.append(f"{name} was {before.get(name)}, is {after.get(name)}")
    return lines
