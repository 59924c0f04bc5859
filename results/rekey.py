"""Re-keys results that objbench 0.1.0 kept in its first layout: `python results/rekey.py OLD NEW`.

What runs has not changed since then, but for where code lies and what keys are made of: `objbench.cells.code` says
which code is in a key now. So a cell of OLD becomes a training and a cell of NEW, with the same figures, detections
and provenance, under the keys that the same settings have today. A cell whose settings or data are not known any
more is refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from objbench.cells.about import about, own_of_detector, own_of_source
from objbench.cells.code import digest
from objbench.cells.files import write_file
from objbench.cells.identity import OWN, Cell, Training, identity_of, plain, write_cell
from objbench.cells.matrix import code_now
from objbench.cells.result import CellResult, Position, Trained
from objbench.cells.store import Store, write_record, write_trained
from objbench.errors import UsageError
from objbench.options import build
from objbench.plugins import Registry, load_plugins, load_target
from objbench.scenes import first_indices
from objbench.score.arrays import load_tensors, save_tensors

SHOWN = 24
"""Test scenes that are kept of each data set, for pictures."""
RENAMED = {
    "first_batch": "warmup_images",
    "wheels_steps": "where_frozen_steps",
    "passed": "carry",
    "cell": "cell_size",
}
"""Options that have another name today."""


def main() -> None:
    """Re-keys all cells of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--digits", help="where the digits lie, if the cells are of a folder's")
    parsed = parser.parse_args()
    given = {"multimnist": {"digits": parsed.digits}} if parsed.digits else {}
    registry, store = load_plugins(), Store(parsed.new)
    store.prepare()
    with_scenes: set[str] = set()
    for folder in sorted((parsed.old / "cells").iterdir()):
        if (folder / "record.json").is_file():
            data = rekey(registry, folder, store, with_scenes, given)
            with_scenes.add(data)


def rekey(
    registry: Registry, folder: Path, store: Store, with_scenes: set[str], given: dict[str, dict[str, str]]
) -> str:
    """Re-keys one cell; the name of its data set."""
    old, record = (json.loads((folder / name).read_bytes()) for name in ("cell.json", "record.json"))
    then = old["identity"]
    model, data = then["model"], then["data"]
    spec, source_class = registry.model(model), load_target(registry.data_spec(data).target)
    config = build(load_target(spec.target).Config, model, renamed(old["model_config"]))
    data_config = build(source_class.Config, data, old["data_config"], given.get(data, {}))
    source = source_class(data_config, 0)
    if plain(source.fingerprint()) != then["fingerprint"]:
        raise UsageError(f"{folder.name}: the content of {data} is another one today")
    code = code_now(registry, model, data)
    identity = plain(
        {
            "data": data,
            "data_config": identity_of(data_config),
            "fingerprint": then["fingerprint"],
            "protocol": then["protocol"],
            "model": model,
            "model_config": identity_of(config),
            "seed": then["seed"],
        }
    ) | {name: digest(files) for name, files in code.items()}
    protocol = then["protocol"]["name"]
    own_model = own_of_detector(registry, model, protocol, data, config)
    own_data = own_of_source(registry, data, protocol, data_config)
    known = about(registry, model, data, protocol, own_model, own_data)
    # What is no part of the identity is where files lay.
    training = Training(identity, identity["model_config"], identity["data_config"], code, known)
    if not spec.clusters:
        raise UsageError(f"{folder.name}: its mixture is not the clusterer 'gmm' of today; run it again")
    cell = Cell(training, {"name": OWN})
    of_cell = store.folder(cell.key)
    of_cell.mkdir(parents=True)
    write_cell(of_cell, cell)
    keep_training(folder, of_cell.parent, cell, record, source if data not in with_scenes else None)
    known = {name: record[name] for name in ("metrics", "seconds", "train_steps", "images_per_second")}
    known |= {"peak_memory_mb": record["peak_memory_mb"], "provenance": record["provenance"]}
    result: CellResult = cell.result("done", **known)
    write_record(of_cell, result)
    return str(data)


def keep_training(folder: Path, to: Path, cell: Cell, record: dict[str, Any], source: Any) -> None:
    """Writes what was kept of the cell's training. source: where to take scenes for pictures from, if at all."""
    tensors = load_tensors(folder / "detections.safetensors")
    save_tensors(to / "detections.safetensors", tensors)
    shutil.copyfile(folder / "truth.safetensors", to / "truth.safetensors")
    files = ["detections.safetensors", "truth.safetensors"]
    if (folder / "curve.jsonl").exists():
        write_file(to / "curve.jsonl", (folder / "curve.jsonl").read_bytes())
        files.append("curve.jsonl")
    cls = load_target(load_plugins().data_spec(cell.training.identity["data"]).target)
    made = source or cls(build(cls.Config, "", cell.training.data_config), 0)
    if source is not None:
        images = source.scenes("test", first_indices(source, "test", SHOWN)).images
        save_tensors(to / "shown.safetensors", {"images": (images * 255).round().to(torch.uint8)})
        files.append("shown.safetensors")
    position = Position(
        step=record["train_steps"],
        images=round(record["images_per_second"] * record["seconds"]),
        seconds=record["seconds"],
        peak_memory_mb=record["peak_memory_mb"],
        machine=f"{record['provenance']['device']} with {record['provenance']['threads']} threads",
    )
    known = {
        k: v
        for k, v in record["provenance"].items()
        if k not in ("metric_versions", "oracle", "warnings", "wall_seconds")
    }
    oracle, warnings = record["provenance"]["oracle"], record["provenance"]["warnings"]
    trained = Trained(to.name, position, tuple(made.classes), tuple(made.shape), oracle, warnings, known)
    write_trained(to, trained, files)


def renamed(config: dict[str, Any]) -> dict[str, Any]:
    """Options under the names that they have today."""
    return {RENAMED.get(name, name): value for name, value in config.items()}


if __name__ == "__main__":
    main()
