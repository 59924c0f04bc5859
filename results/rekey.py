"""Gives finished cells the keys of today's code: `python results/rekey.py OLD NEW [-o NAME.KEY=VALUE ...]`.

For a change of code that changes no figure: a key holds the code that runs, so such a change retires every cell,
although training again would give the same weights. This is only right after that was tried: commit messages that
re-key name the trainings that were run by both versions, and what was compared. Settings, data and figures stay as they
are; a cell whose settings are not the plugin's any more, or whose data is another one today, is refused.

With `--detect-anew KEY,...`, these options of the detector, which must be of detection alone, get today's values:
NEW then has the weights as a checkpoint at the last step, and `objbench run` does what comes after training. The
curve keeps the validation figures that were measured in training, with the options of then.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from objbench.cells.identity import EVALUATED, Cell, identity_of, plain, read_cell, write_cell
from objbench.cells.matrix import as_it_is_now
from objbench.cells.overrides import parse_overrides
from objbench.cells.store import Store, read_record, read_trained, write_record, write_trained
from objbench.errors import UsageError
from objbench.options import as_json, build
from objbench.plugins import Registry, load_plugins, load_target
from objbench.score.trained import build_training, load_weights
from objbench.train import checkpoint


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
    parser.add_argument("--detect-anew", default="", metavar="KEY,...", help="options of detection alone")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells whose name contains this")
    parsed = parser.parse_args()
    anew = [key for key in parsed.detect_anew.split(",") if key]
    registry, store = load_plugins(), Store(parsed.new)
    places = parse_overrides(parsed.options)
    store.prepare()
    for key in Store(parsed.old).cell_keys():
        folder = Store(parsed.old).folder(key)
        cell = read_cell(folder)
        if read_record(folder)[0].status == "done" and parsed.only in cell.name:
            now = today(registry, cell, places, anew)
            if anew:
                last_step(registry, folder.parent, store.folder(now.key), now)
            else:
                move(folder, store.folder(now.key), now)
            print(f"{key} -> {now.key}  {now.name}")


def today(registry: Registry, cell: Cell, places: dict[str, dict[str, str]], anew: Sequence[str]) -> Cell:
    """The same cell with today's code, with the options that are new at their defaults, and `anew` as set today."""
    then = cell.training
    if EVALUATED in then.identity:
        raise UsageError(f"{cell.name}: an evaluation names its training by key; evaluate again")
    model, data = then.identity["model"], then.identity["data"]
    detector = load_target(registry.model(model).target)
    settings = detector.settings(then.identity["protocol"]["name"], data)
    chosen = {key: settings[key] for key in anew if key in settings}
    config = build(detector.Config, model, then.model_config | chosen)
    source = build(
        load_target(registry.data_spec(data).target).Config, data, then.data_config, places.get(data, {})
    )
    kept = {"model_config": as_json(config), "data_config": as_json(source)}
    identity = plain({"model_config": identity_of(config), "data_config": identity_of(source)})
    for name, options in identity.items():
        changed = {key for key, value in then.identity[name].items() if options.get(key) != value}
        if changed := changed - set(anew):
            raise UsageError(f"{cell.name}: {', '.join(sorted(changed))} cannot be set as they were")
    now = as_it_is_now(
        registry, replace(cell, training=replace(then, identity=then.identity | identity, **kept))
    )
    # What differs from the protocol's settings of today stands in the row's label.
    usual = plain(identity_of(build(detector.Config, model, settings)))
    known = {**now.training.about, "model": {**now.training.about["model"], "settings": usual}}
    now = replace(now, training=replace(now.training, about=known))
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


def last_step(registry: Registry, old: Path, new: Path, cell: Cell) -> None:
    """Leaves the weights of the training in `old` as a checkpoint of `cell`'s training, after its last step."""
    if (new.parent / "checkpoint.json").exists() or (new.parent / "trained.json").exists():
        return
    detector = build_training(registry, cell.training, "cpu").detector
    load_weights(old, detector)
    curve = [json.loads(line) for line in (old / "curve.jsonl").read_text().splitlines()]
    new.mkdir(parents=True, exist_ok=True)
    write_cell(new, cell)
    shutil.copyfile(old / "curve.jsonl", new.parent / "curve.jsonl")
    at = replace(read_trained(old).position, curve=curve)
    checkpoint.save(new.parent, at, detector, detector.optimizers())


if __name__ == "__main__":
    main()
