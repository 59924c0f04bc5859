"""Makes the parts of a training from its plugins; the detector is untrained or has the weights of a training."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from objbench.cells.files import verify_checksums
from objbench.cells.identity import Training, read_training
from objbench.cells.store import read_trained
from objbench.detector import Detector
from objbench.errors import UsageError
from objbench.options import build
from objbench.plugins import Registry, load_target
from objbench.scenes import SceneShape, SceneSource
from objbench.score.arrays import load_tensors
from objbench.score.random_state import seed_everything


class Built(NamedTuple):
    """The parts of a training."""

    detector: Detector
    train_source: SceneSource
    """Scenes of the training's own seed."""
    test_source: SceneSource
    """Scenes of seed 0, or of an evaluation's `test_seed`: trainings that differ only in the seed are tested on the
    same scenes."""


def build_training(registry: Registry, training: Training, device: torch.device | str) -> Built:
    """Makes the parts of a training, with an untrained detector. Seeds every global random generator."""
    identity = training.identity
    source_class = load_target(registry.data_spec(identity["data"]).target)
    data_config = build(source_class.Config, identity["data"], training.data_config)
    train_source = source_class(data_config, identity["seed"])
    test_source = source_class(data_config, identity.get("test_seed", 0))
    return Built(build_detector(registry, training, test_source.shape, device), train_source, test_source)


def build_detector(
    registry: Registry, training: Training, shape: SceneShape, device: torch.device | str
) -> Detector:
    """The detector of a training, untrained. Seeds every global random generator."""
    identity = training.identity
    detector_class = load_target(registry.model(identity["model"]).target)
    config = build(detector_class.Config, identity["model"], training.model_config)
    seed_everything(identity["seed"])
    detector: Detector = detector_class(config, shape).to(device)
    return detector


def load_detector(registry: Registry, folder: Path, device: torch.device | str = "cpu") -> Detector:
    """The detector of the finished training in `folder`, in eval mode. Needs neither the data nor its plugin.

    UsageError when its weights are missing or do not fit the present plugin; Damaged when a file is damaged.
    """
    trained = read_trained(folder)
    verify_checksums(folder, trained.files)
    detector = build_detector(registry, read_training(folder), SceneShape(*trained.shape), device)
    load_weights(folder, detector)
    return detector.eval()


def load_weights(folder: Path, detector: Detector) -> None:
    """Loads the weights of the finished training in `folder` into a detector. Raises the errors of `load_detector`."""
    if not (folder / "weights.safetensors").exists():
        raise UsageError(f"training {folder.name} was kept without its weights; train it again first")
    try:
        detector.load_state_dict(load_tensors(folder / "weights.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(
            f"training {folder.name}: its weights do not fit the plugin as it is now ({reason})"
        ) from None
