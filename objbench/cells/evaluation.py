"""A finished cell's detector on other scenes, as a cell of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from objbench.cells.files import Damaged, checksums, verify_checksums
from objbench.cells.identity import EVALUATED, OWN, Cell, Training, identity_of, plain, read_cell
from objbench.cells.matrix import blaming, check_fit, code_now, digests
from objbench.cells.origin import check_weights, finished, origin_folder, origin_of
from objbench.cells.overrides import Overrides, build_source_config
from objbench.cells.protocols import protocol
from objbench.cells.store import read_record
from objbench.errors import UsageError, unknown
from objbench.options import as_json, build
from objbench.plugins import Registry, load_target

FITTED = "fitted"
"""Part of an evaluation's clusterer: the sha256 of the mixture that was fitted for the finished cell."""
MIXTURE_FILE = "clusterer.safetensors"


def evaluation(
    registry: Registry, folder: Path, data: str, scale: str, overrides: Overrides, seed: int
) -> Cell:
    """The cell of a finished cell's weights on the test scenes of another data set, or of another protocol.

    folder: the finished cell's. data, scale: names of a data set and a protocol; empty: those of the finished cell.
    seed: of the test scenes. The identity holds that of the finished training, the digest of its weights and, where
    a mixture clusters, of that mixture.
    Raises UsageError when the cell cannot be evaluated there, and on options of anything but the data set.
    """
    then = finished(folder.parent)
    clusterer = _clusterer_of(folder)
    model, key = then.identity["model"], f"{folder.parent.name}/{folder.name}"
    data, test = data or then.identity["data"], protocol(scale or then.identity["protocol"]["name"])
    for owner in overrides:
        if owner == model:
            raise UsageError(f"-o {owner}...: an evaluation trains nothing; only {data} has options here")
        if owner != data:
            raise unknown("data set", owner, [data])
    with blaming(data):
        source_config = build_source_config(registry, data, test.name, overrides)
        source = load_target(registry.source(data).target)(source_config, seed)
        of_data = {
            "data": data,
            "data_config": identity_of(source_config),
            "fingerprint": source.fingerprint(),
            "protocol": {k: v for k, v in dataclasses.asdict(test).items() if k != "summary"},
        }
    with blaming(model):
        detector = load_target(registry.model(model).target)
        config = build(detector.Config, model, then.model_config)
        check_fit(detector, config, source.shape, model, data)
        check_weights(folder.parent, detector, config, source.shape, f"cell {key} on {data}")
        code = code_now(registry, model, data)
    of_model = {name: then.identity[name] for name in ("model", "model_config", "seed")}
    origin = {EVALUATED: origin_of(folder.parent) | {"identity": then.identity}, "test_seed": seed}
    identity = plain(of_data | of_model | digests(code) | origin)
    training = Training(identity, then.model_config, as_json(source_config), code, str(folder.parent))
    return Cell(training, clusterer)


def evaluated_cell(trainings: Path, cell: Cell) -> Path:
    """The folder of the finished cell that an evaluation is of. UsageError when its weights are not there."""
    training = origin_folder(trainings, cell.training)
    return training / Cell(cell.training, _but_fitted(cell.clusterer)).clusterer_key


def mixture_folder(trainings: Path, cell: Cell) -> Path:
    """The folder with the very mixture that an evaluation clusters by. UsageError when it is not there."""
    folder = evaluated_cell(trainings, cell)
    file = folder / MIXTURE_FILE
    if not file.is_file() or checksums(folder, [MIXTURE_FILE])[MIXTURE_FILE] != cell.clusterer[FITTED]:
        raise UsageError(f"the mixture of cell {folder.parent.name}/{folder.name}, which is needed, is gone")
    return folder


def _clusterer_of(folder: Path) -> dict[str, Any]:
    """What clusters in an evaluation of the finished cell in `folder`: what clusters there, as it was fitted."""
    key = f"{folder.parent.name}/{folder.name}"
    try:
        clusterer = read_cell(folder).clusterer
        result, files = read_record(folder)
        if result.status != "done":
            raise UsageError(f"cell {key} is not done but {result.status}; run it first")
        if clusterer["name"] == OWN:
            return clusterer
        if MIXTURE_FILE not in files:
            raise UsageError(f"cell {key} was kept without its mixture; run it again first")
        verify_checksums(folder, files)
        return clusterer | {FITTED: files[MIXTURE_FILE]}
    except Damaged as error:
        raise UsageError(f"cell {key}: {error}; run it again first") from None


def _but_fitted(clusterer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in clusterer.items() if name != FITTED}
