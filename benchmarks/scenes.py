"""How many MultiMNIST scenes a second are generated, beside a plain loop over digits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from objbench_plugins.multimnist.digits import embedded_digits
from objbench_plugins.multimnist.reference import plain_scene
from objbench_plugins.multimnist.source import MultiMnist, MultiMnistConfig


def rows() -> list[dict[str, Any]]:
    """Scenes a second at the paper's size (asked for: 10,000 on two cores), and the time of a batch."""
    threads = f"{torch.get_num_threads()} thread(s)"
    paper = MultiMnist(MultiMnistConfig(source="embedded"), seed=0)
    demo = MultiMnist(MultiMnistConfig(**MultiMnist.settings("demo")), seed=0)
    found = []
    for size in (16, 64, 512):
        rate = size / _seconds(lambda size=size: paper.scenes("train", torch.arange(size)))
        note = f"128x128, 1..10 digits, batches of {size}, {threads}; asked for: over 10,000"
        found.append({"name": f"scenes: batch {size}", "value": rate, "unit": "scenes/s", "note": note})
    batch = 1e3 * _seconds(lambda: demo.scenes("train", torch.arange(32)))
    note = f"one batch of 32 at 64x64, 1..5 digits, 11 px apart, {threads}; asked for: under 2"
    found.append({"name": "scenes: demo batch", "value": batch, "unit": "ms", "note": note})
    return [
        *found,
        {"name": "scenes: plain loop", "value": _plain_rate(), "unit": "scenes/s", "note": "128x128"},
    ]


def _plain_rate(scenes: int = 100) -> float:
    digits = embedded_digits()
    shape = MultiMnist(MultiMnistConfig(source="embedded"), seed=0).shape
    start = time.perf_counter()
    for index in range(scenes):
        plain_scene(
            digits, shape, count=(1, 10), min_distance=0, tight=True, seed=0, split="train", index=index
        )
    return scenes / (time.perf_counter() - start)


def _seconds(work: Callable[[], object], runs: int = 20) -> float:
    """The median of `runs`, after two to warm up."""
    taken = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<20} {row['value']:>10,.2f} {row['unit']:<9} {row['note']}")
