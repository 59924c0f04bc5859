"""One training step of SPACE at the paper's size, beside the same step with a canvas for every cell.

With one thread, seconds are that thread's CPU time, which other work on the machine disturbs little; with
more, wall time. Each figure is taken in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import torch
from torch import Tensor

from objbench.options import build
from objbench.provenance import peak_memory_mb
from objbench.scenes import SceneShape
from objbench_plugins.space.compose import Windows
from objbench_plugins.space.model import SHARPNESS, Objects, Space
from objbench_plugins.space.reference import compose_plain

SHAPE = SceneShape(1, 128, 128)


def _compose_dense(objects: Objects, _: Windows) -> tuple[Tensor, Tensor]:
    alpha = objects.alpha * objects.presence[:, :, None, None, None]
    sharpness = SHARPNESS * torch.sigmoid(-objects.depth)
    return compose_plain(objects.boxes, alpha * objects.colour, alpha, sharpness, *SHAPE[1:])


class DenseSpace(Space):
    """SPACE that makes a canvas for every cell."""

    compose = staticmethod(_compose_dense)


def rows(batch: int = 16, dense_batch: int = 4) -> list[dict[str, Any]]:
    """Seconds a step and peak memory; asked for: at most 6 s (two cores), 5 GB; published: 46-55 s, 16 GB."""
    threads = torch.get_num_threads()
    timing = f"{threads} thread(s), {'CPU' if threads == 1 else 'wall'} time"
    size = "128x128, 16x16 grid, K = 5, A = 256, nothing gated"
    found = []
    for name, dense, images, precision in (
        ("space: step", False, batch, "float32"),
        ("space: step, bfloat16 networks", False, batch, "bfloat16"),
        (f"space: step of {dense_batch}", False, dense_batch, "float32"),
        (f"space: step of {dense_batch}, a canvas a cell", True, dense_batch, "float32"),
    ):
        seconds, memory = _apart(dense, images, precision)
        note = f"batch {images}, peak {memory:.1f} GB, {size}, {timing}"
        found.append({"name": name, "value": seconds, "unit": "s", "note": note})
    found[-1]["note"] += f"; {found[-1]['value'] / found[-2]['value']:.1f} times ours"
    return [*found, *_painting()]


def _painting(batch: int = 2) -> list[dict[str, Any]]:
    """Composition alone, forward and backward."""
    torch.manual_seed(0)
    model = Space(build(Space.Config, "space"), SHAPE)
    images = torch.rand(batch, *SHAPE)
    with torch.no_grad():
        cells = model.infer_cells(images)
        keep = torch.arange(model.cells).expand(batch, -1)
        objects = model.infer_objects(images, cells, cells.presence.sigmoid(), keep, sample=True)
    found = []
    for name, make in (("space: composition", model.compose), ("space: composition, dense", _compose_dense)):
        leaves = [t.clone().requires_grad_() for t in objects]
        for _ in range(2):
            start = _clock()
            given = Objects(*leaves)
            windows = Windows(given.boxes, model.config.glimpse, *SHAPE[1:])
            torch.cat(make(given, windows), 1).sum().backward()
            seconds = _clock() - start
        found.append(
            {"name": name, "value": seconds, "unit": "s", "note": f"batch {batch}, forward and backward"}
        )
    found[1]["note"] += f"; {found[1]['value'] / found[0]['value']:.1f} times ours"
    return found


def _clock() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _apart(dense: bool, images: int, precision: str) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_step, (dense, images, precision, torch.get_num_threads()))


def _step(dense: bool, images: int, precision: str, threads: int) -> tuple[float, float]:
    """Seconds of the second of two steps, the optimisers' included, and peak memory in GB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = (DenseSpace if dense else Space)(build(Space.Config, "space", {"precision": precision}), SHAPE)
    optimizers = model.optimizers()
    batch = torch.rand(images, *SHAPE)
    for _ in range(2):
        start = _clock()
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.stack(list(model.training_step(batch, 0).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), model.config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        seconds = _clock() - start
    return seconds, peak_memory_mb(torch.device("cpu")) / 1e3


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<40} {row['value']:7.2f} s  {row['note']}")
