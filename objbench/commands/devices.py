"""Finds the devices and the number of threads that a run may use."""

from __future__ import annotations

import os
from collections.abc import Callable

from objbench.errors import UsageError


def find_devices(device: str, count: Callable[[], int] | None = None) -> list[str]:
    """The devices that cells can run on. UsageError when CUDA was requested and there is none.

    count: returns the number of CUDA devices; if None, torch is imported to count them.
    """
    found = 0 if device == "cpu" else (count or _count)()
    if device == "cuda" and not found:
        raise UsageError("--device cuda: torch finds no CUDA device on this machine; use --device cpu")
    return [f"cuda:{i}" for i in range(found)] or ["cpu"]


def _count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def threads_each(workers: int) -> int:
    """The machine's cores (or OMP_NUM_THREADS, if fewer) divided by the number of workers; at least 1.

    With more threads than cores, threads wait for each other, and a step takes many times as long.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(allowed) if allowed.isdigit() else cores))
