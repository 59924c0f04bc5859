"""A finished cell's detector on other scenes, as a cell of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from objbench.cells.about import about
from objbench.cells.files import Damaged, checksums, verify_checksums
from objbench.cells.identity import EVALUATED, OWN, TEST_SEED, USES, Cell, Training, plain, read_cell
from objbench.cells.matrix import ask_source, check_fit, clusterer_now, code_now, digests
from objbench.cells.origin import check_weights, finished, origin_folder, origin_of
from objbench.cells.overrides import Overrides
from objbench.cells.protocols import protocol
from objbench.cells.store import read_record
from objbench.errors import UsageError, unknown
from objbench.guarded import Ask, ask_here, calling
from objbench.options import build
from objbench.plugins import Registry, load_target

FITTED = "fitted"
"""Part of an evaluation's clusterer: the sha256 of the state of the clusterer that was fitted for the finished cell."""
STATE_FILE = "clusterer.safetensors"


def evaluation(
    registry: Registry,
    folder: Path,
    data: str,
    scale: str,
    overrides: Overrides,
    seed: int,
    ask: Ask = ask_here,
) -> Cell:
    """The cell of a finished cell's weights on the test scenes of another data set, or of another protocol.

    folder: the finished cell's. data, scale: names of a data set and a protocol; empty: those of the finished cell.
    seed: of the test scenes. ask: how plugins are asked for what a cell depends on. The identity holds that of the
    finished training, the digest of its weights and, where a clusterer clusters, of its state.
    Raises UsageError when the cell cannot be evaluated there, and on options of anything but the data set.
    """
    then = finished(folder.parent)
    model, key = then.identity["model"], f"{folder.parent.name}/{folder.name}"
    data, test = data or then.identity["data"], protocol(scale or then.identity["protocol"]["name"])
    registry.model(model)
    registry.data_spec(data)
    for owner in overrides:
        if owner == model:
            raise UsageError(f"-o {owner}...: an evaluation trains nothing; only {data} has options here")
        if owner != data:
            raise unknown("data set", owner, [data])
    clusterer, clusterer_about = _clusterer_of(registry, folder, test.name)
    source = ask(f"'{data}'", ask_source, registry, data, test.name, overrides)
    ask(f"'{model}'", _ask_fit, registry, str(folder.parent), data, source["shape"], f"cell {key} on {data}")
    with calling(f"'{model}'", "its source code"):
        code = code_now(registry, model, data, then.identity.get(USES, ()))
    kept = ("model", "model_config", "seed", USES)
    identity = {name: then.identity[name] for name in kept if name in then.identity}
    identity |= source["identity"] | digests(code)
    identity["protocol"] = {k: v for k, v in dataclasses.asdict(test).items() if k != "summary"}
    identity |= {EVALUATED: origin_of(folder.parent) | {"identity": then.identity}, TEST_SEED: seed}
    own = {k: then.about.get("model", {}).get(k, {}) for k in ("settings", "given")}
    known = about(registry, model, data, test.name, own, source["own"])
    training = Training(plain(identity), then.model_config, source["config"], code, known, str(folder.parent))
    return Cell(training, clusterer, clusterer_about)


def fitted_folder(trainings: Path, cell: Cell) -> Path:
    """The folder of the finished cell with the very clusterer that an evaluation uses. UsageError when it is gone."""
    training = origin_folder(trainings, cell.training)
    for folder in sorted(training.iterdir()):
        if (folder / STATE_FILE).is_file() and (
            checksums(folder, [STATE_FILE])[STATE_FILE] == cell.clusterer[FITTED]
        ):
            return folder
    raise UsageError(
        f"the fitted '{cell.clusterer['name']}' of training {training.name}, which is needed, is gone"
    )


def _ask_fit(registry: Registry, folder: str, data: str, shape: list[int], what: str) -> None:
    """UsageError when the weights of the training in `folder` do not fit images of this shape."""
    from objbench.scenes import SceneShape

    then = finished(Path(folder))
    model = then.identity["model"]
    with calling(f"'{model}'", "its module"):
        detector = load_target(registry.model(model).target)
    config = build(detector.Config, model, then.model_config)
    with calling(f"'{model}'", "its constructor"):
        check_fit(detector, config, SceneShape(*shape), model, data)
        check_weights(Path(folder), detector, config, SceneShape(*shape), what)


def _clusterer_of(registry: Registry, folder: Path, scale: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`Cell.clusterer` and `Cell.about` in an evaluation of the finished cell in `folder`: what clusters there, as it
    was fitted."""
    key = f"{folder.parent.name}/{folder.name}"
    try:
        cell = read_cell(folder)
        result, files = read_record(folder)
        if result.status != "done":
            raise UsageError(f"cell {key} is not done but {result.status}; run it first")
        clusterer, clusterer_about = clusterer_now(registry, cell, scale)
        if clusterer["name"] == OWN:
            return clusterer, clusterer_about
        if STATE_FILE not in files or "object_shape" not in result.provenance:
            raise UsageError(f"cell {key} was kept without its fitted clusterer; run it again first")
        verify_checksums(folder, files)
        return clusterer | {FITTED: files[STATE_FILE]}, clusterer_about
    except Damaged as error:
        raise UsageError(f"cell {key}: {error}; run it again first") from None
