"""A cell's parts made of its plugins: untrained, or with the weights of a finished cell."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from objbench.cells.files import check_files, read_json
from objbench.cells.identity import MIXTURE, Cell, MixtureConfig
from objbench.cells.store import read_record
from objbench.detector import Detector
from objbench.errors import UsageError
from objbench.options import build
from objbench.plugins import Registry, load_target
from objbench.scenes import SceneSource
from objbench.score.arrays import load_tensors
from objbench.score.mixture import Mixture
from objbench.score.random_state import seed_everything


class Built(NamedTuple):
    """A cell's parts, made of its plugins."""

    detector: Detector
    training: SceneSource
    """Scenes of the cell's own seed."""
    evaluation: SceneSource
    """Scenes of seed 0: cells that differ in seed alone are tested on the same scenes."""
    mixture: MixtureConfig | None
    """How to cluster for a detector that does not."""


def build_cell(registry: Registry, cell: Cell, device: torch.device | str) -> Built:
    """Makes the parts of a cell, the detector untrained. Seeds every global random generator."""
    identity = cell.identity
    source_class = load_target(registry.source(identity["data"]).target)
    data_config = build(source_class.Config, identity["data"], cell.data_config)
    training, evaluation = source_class(data_config, identity["seed"]), source_class(data_config, 0)
    detector_class = load_target(registry.model(identity["model"]).target)
    config = build(detector_class.Config, identity["model"], cell.model_config)
    mixture = build(MixtureConfig, MIXTURE, identity["mixture"]) if "mixture" in identity else None
    seed_everything(identity["seed"])
    return Built(detector_class(config, evaluation.shape).to(device), training, evaluation, mixture)


def load_trained(registry: Registry, folder: Path, device: str = "cpu") -> tuple[Built, Mixture | None]:
    """A finished cell, ready to detect: its parts, and what clusters its detections if the detector does not.

    UsageError when it is not done, or its weights do not fit the plugin as it is now; Damaged when a file is.
    """
    result, files = read_record(folder)
    if result.status != "done":
        raise UsageError(f"cell {folder.name} is not done but {result.status}; run it first")
    check_files(folder, files)
    built = build_cell(registry, Cell(**read_json(folder / "cell.json")), device)
    try:
        built.detector.load_state_dict(load_tensors(folder / "weights.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(
            f"cell {folder.name}: its weights do not fit the plugin of today ({reason})"
        ) from None
    built.detector.eval()
    if built.mixture is None:
        return built, None
    return built, Mixture(built.mixture, load_tensors(folder / "mixture.safetensors"))
