"""Seeds, saves and restores the global random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from objbench.detector import Detector


def rng_states() -> dict[str, Any]:
    """The state of every global random generator that a plugin may draw from."""
    _, keys, place, has_gauss, gauss = np.random.get_state()
    version, words, spare = random.getstate()
    keys_tensor = torch.from_numpy(np.asarray(keys).astype(np.int64))
    states = {
        "torch": torch.get_rng_state(),
        "numpy": [keys_tensor, int(place), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(words), spare],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Restores the states that `rng_states` returned."""
    torch.set_rng_state(states["torch"])
    keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    version, words, spare = states["python"]
    random.setstate((version, tuple(words.tolist()), spare))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def undisturbed(detector: Detector) -> Iterator[None]:
    """In this block the detector is in eval mode, without gradients. Then its mode and all generators are restored."""
    was_training, states = detector.training, rng_states()
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        detector.train(was_training)
        set_rng_states(states)


def seed_everything(seed: int) -> None:
    """Seeds every global random generator that a plugin may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
