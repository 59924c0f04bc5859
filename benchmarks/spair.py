"""What a training step of SPAIR costs at 128x128 with 11x11 cells, beside one that goes from cell to cell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from objbench.provenance import peak_memory_mb
from objbench.scenes import SceneShape
from objbench_plugins.spair.config import SpairConfig
from objbench_plugins.spair.model import Spair
from objbench_plugins.spair.reference import PlainSpair

BATCH = 16
CONFIG = SpairConfig(what_dim=50, anchor=48, batch_size=BATCH)
"""A = 50 and anchor 48 as published; nothing is gated."""


def rows() -> list[dict[str, Any]]:
    """Seconds a step (forward, backward, Adam), the best of three after one to warm up; and their ratio.

    The plain version also paints each object on a canvas of its own, and its count prior loops over cells.
    Memory is the highest of the process so far, torch itself included, so that the fast version goes first.
    """
    threads = f"{torch.get_num_threads()} thread(s)"
    images = torch.rand(BATCH, 1, 128, 128)
    fast = _seconds(_step(Spair, images))
    memory = peak_memory_mb(torch.device("cpu"))
    plain = _seconds(_step(PlainSpair, images))
    size = f"128x128, batch {BATCH}, 11x11 cells, A=50, {threads}"
    note = f"{size}, peak {memory:.0f} MB; asked for: under 0.5 s, 1 GB"
    return [
        {"name": "spair: step", "value": fast, "unit": "s", "note": note},
        {
            "name": "spair: step, plain",
            "value": plain,
            "unit": "s",
            "note": f"{plain / fast:.1f} times the other",
        },
    ]


def _step(detector: type[Spair], images: torch.Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    model = detector(CONFIG, SceneShape(1, 128, 128))
    (optimizer,) = model.optimizers()

    def step() -> None:
        loss = torch.stack(list(model.training_step(images, CONFIG.wheels_steps).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _seconds(work: Callable[[], object], runs: int = 3) -> float:
    """Processor time where one thread works, which others on the machine disturb least; else wall time."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = []
    for _ in range(runs + 1):
        start = clock()
        work()
        taken.append(clock() - start)
    return min(taken[1:])


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<24} {row['value']:8.3f} s  {row['note']}")
