"""Gives finished cells the keys of today's code: `python results/rekey.py OLD NEW [-o NAME.KEY=VALUE ...]`.

For a change of code that changes no figure: a key holds the code that runs, so such a change retires every cell,
although training again would give the same weights. This is only right after that was tried: commit messages that
re-key name the trainings that were run by both versions, and what was compared. Settings, data and figures stay as they
are; a cell whose settings are not the plugin's any more, or whose data is another one today, is refused.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from objbench.cells.identity import EVALUATED, Cell, identity_of, plain, read_cell, write_cell
from objbench.cells.matrix import as_it_is_now
from objbench.cells.overrides import parse_overrides
from objbench.cells.store import Store, read_record, read_trained, write_record, write_trained
from objbench.errors import UsageError
from objbench.options import as_json, build
from objbench.plugins import Registry, load_plugins, load_target


def main() -> None:
    """Re-keys all finished cells of a store into another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "-o", dest="options", action="append", default=[], help="where files of data sets lie"
    )
    parsed = parser.parse_args()
    registry, store = load_plugins(), Store(parsed.new)
    places = parse_overrides(parsed.options)
    store.prepare()
    for key in Store(parsed.old).cell_keys():
        folder = Store(parsed.old).folder(key)
        if read_record(folder)[0].status == "done":
            now = today(registry, read_cell(folder), places)
            move(folder, store.folder(now.key), now)
            print(f"{key} -> {now.key}  {now.name}")


def today(registry: Registry, cell: Cell, places: dict[str, dict[str, str]]) -> Cell:
    """The same cell with today's code, and with the options that are new at their defaults."""
    then = cell.training
    if EVALUATED in then.identity:
        raise UsageError(f"{cell.name}: an evaluation names its training by key; evaluate again")
    model, data = then.identity["model"], then.identity["data"]
    config = build(load_target(registry.model(model).target).Config, model, then.model_config)
    source = build(
        load_target(registry.data_spec(data).target).Config, data, then.data_config, places.get(data, {})
    )
    kept = {"model_config": as_json(config), "data_config": as_json(source)}
    identity = plain({"model_config": identity_of(config), "data_config": identity_of(source)})
    for name, options in identity.items():
        if changed := {key for key, value in then.identity[name].items() if options.get(key) != value}:
            raise UsageError(f"{cell.name}: {', '.join(sorted(changed))} cannot be set as they were")
    now = as_it_is_now(
        registry, replace(cell, training=replace(then, identity=then.identity | identity, **kept))
    )
    if now.training.identity["fingerprint"] != then.identity["fingerprint"]:
        raise UsageError(f"{cell.name}: the content of {data} is another one today")
    return now


def move(old: Path, new: Path, cell: Cell) -> None:
    """Copies a cell, and its training unless that is there already, under the new key."""
    if not (new.parent / "trained.json").exists():
        files = [path for path in old.parent.iterdir() if path.is_file()]
        new.parent.mkdir(parents=True)
        for path in files:
            shutil.copyfile(path, new.parent / path.name)
        trained = read_trained(old.parent)
        write_trained(new.parent, replace(trained, training=new.parent.name), trained.files)
    shutil.copytree(old, new)
    write_cell(new, cell)
    result, checked = read_record(old)
    options = {name: cell.training.identity[name] for name in ("model_config", "data_config")}
    write_record(new, replace(result, cell=cell.key, **options), checked)


if __name__ == "__main__":
    main()
