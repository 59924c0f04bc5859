"""Trainings in this process that are stopped and continued."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import torch

from objbench.cells.identity import Cell
from objbench.cells.result import Position
from objbench.errors import Interrupted
from objbench.score.detect import detect
from objbench.score.random_state import undisturbed
from objbench.score.trained import build_training
from objbench.train.loop import train
from running import Until, toys


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def train_here(
    folder: Path, cell: Cell, stop_after: int = 10**9, evaluate: bool = True
) -> dict[str, torch.Tensor]:
    """Trains in this process until done, or for `stop_after` more steps; the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    built = build_training(toys(), cell.training, "cpu")

    class Disturbing(Until):
        def due(self, at: Position, steps: int) -> bool:
            return True

        def evaluate(self) -> dict[str, float]:
            with undisturbed(built.detector):
                detect(built.detector, built.test_source, "validation", 8)
                torch.rand(3), np.random.rand(), random.random()
                return {}

    watch = Disturbing(stop_after) if evaluate else Until(stop_after)
    with contextlib.suppress(Interrupted):
        train(built.detector, built.train_source, cell.identity["seed"], folder, watch, fit_scenes=8)
    return {name: tensor.clone() for name, tensor in built.detector.state_dict().items()}
