"""One training step of SPACE at the paper's size, beside the same step with a canvas for every cell.

With one thread, seconds are that thread's CPU time, which other work on the machine disturbs little; with
more, wall time. Each figure is taken in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from typing import Any

import torch
from torch import Tensor

from objbench.options import build
from objbench.scenes import SceneShape
from objbench_plugins.space.model import Objects, Space
from objbench_plugins.space.reference import compose_plain

SHAPE = SceneShape(1, 128, 128)


class DenseSpace(Space):
    """SPACE that makes a canvas for every cell."""

    def compose(self, objects: Objects, windows: object) -> tuple[Tensor, Tensor]:
        alpha = objects.alpha * objects.presence[:, :, None, None, None]
        sharpness = 100 * torch.sigmoid(-objects.depth)
        return compose_plain(objects.boxes, alpha * objects.colour, alpha, sharpness, *SHAPE[1:])


def rows(batch: int = 16, dense_batch: int = 4) -> list[dict[str, Any]]:
    """Seconds a step and peak memory; asked for: at most 6 s (two cores), 5 GB; published: 46-55 s, 16 GB."""
    timing = f"{torch.get_num_threads()} thread(s), {'CPU' if torch.get_num_threads() == 1 else 'wall'} time"
    size = "128x128, 16x16 grid, K = 5, A = 256, nothing gated"
    found = []
    for name, dense, images in (
        ("space: step", False, batch),
        ("space: step", False, dense_batch),
        ("space: step, a canvas a cell", True, dense_batch),
    ):
        seconds, memory = _apart(dense, images)
        note = f"batch {images}, {size}; {timing}"
        found.append({"name": name, "seconds": seconds, "memory_gb": memory, "note": note})
    ratio = found[2]["seconds"] / found[1]["seconds"]
    found[2]["note"] += (
        f"; {ratio:.1f} times ours, {found[2]['memory_gb'] / found[1]['memory_gb']:.1f} times the memory"
    )
    return found


def _apart(dense: bool, images: int) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_step, (dense, images, torch.get_num_threads()))


def _step(dense: bool, images: int, threads: int) -> tuple[float, float]:
    """Seconds of the second of two steps, the optimisers' included, and peak memory in GB."""
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    torch.manual_seed(0)
    model = (DenseSpace if dense else Space)(build(Space.Config, "space"), SHAPE)
    optimizers = model.optimizers()
    batch = torch.rand(images, *SHAPE)
    for _ in range(2):
        start = clock()
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.stack(list(model.training_step(batch, 0).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), model.config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        seconds = clock() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<30} {row['seconds']:7.2f} s {row['memory_gb']:6.2f} GB  {row['note']}")
