"""Which library multiplies float32 matrices in training steps on a CPU: MKL, torch's usual one, or oneDNN.

Both are in torch, and on some processors oneDNN is twice as fast. `torch.set_float32_matmul_precision("medium")` sends
products to it. That name allows bfloat16, which some processors have; so oneDNN is taken only where its products are
those of float32, and clearly faster. Both are found out when training starts, for detectors that ask for it
(`Detector.fast_products`). The choice changes rounding: it stands in the record of the machine, a training that is
resumed on the same machine keeps it, and detection, whose figures are compared, never uses it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator

import torch

from objbench.errors import UsageError

VARIABLE = "OBJBENCH_PRODUCTS"
"""Environment variable: `mkl` or `onednn` decides without a check, `auto` (or nothing) leaves it to the check."""
ONEDNN = ", products by oneDNN"
"""What the record of a machine adds where oneDNN is used; nothing for MKL."""
FASTER = 1.3
"""oneDNN is used where it is at least so many times as fast: less gains little, and would not be found every time."""
EXACT = 1e-4
"""The largest difference to float64, as a share of the largest value; bfloat16 differs by more than ten times that."""
SIDE = 384
"""Of the matrices multiplied in the check: about the largest in a step of a small detector."""
ROUNDS = 10


def choose(machine: str, before: str, wanted: bool) -> bool:
    """Whether a training's steps use oneDNN.

    machine: the record of this machine without `ONEDNN`; before: the record in the training's checkpoint, "" without
    one; wanted: whether the detector asks for it, and trains on a CPU. UsageError for an unknown value of `VARIABLE`.
    """
    asked = os.environ.get(VARIABLE, "") or "auto"
    if asked not in ("auto", "mkl", "onednn"):
        raise UsageError(f"{VARIABLE}={asked}: it can be auto, mkl or onednn")
    if not wanted or asked == "mkl" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if asked == "onednn":
        return True
    if before in (machine, machine + ONEDNN):
        return before == machine + ONEDNN
    return faster_and_exact()


@contextlib.contextmanager
def onednn(use: bool) -> Iterator[None]:
    """In this block, if `use`, products of float32 matrices on a CPU are oneDNN's."""
    before = torch.get_float32_matmul_precision()
    if use:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def faster_and_exact() -> bool:
    """Whether oneDNN's products are float32's on this processor, and at least `FASTER`; takes about 50 ms."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, SIDE, SIDE, generator=generator)
    exact = a.double() @ b.double()
    batch = torch.rand(8, SIDE // 4, SIDE // 4, generator=generator)
    with onednn(True):
        wrong = (a @ b - exact).abs().max() / exact.max()
        batches_exact = batch.double() @ batch.double()
        wrong_batch = (batch @ batch - batches_exact).abs().max() / batches_exact.max()
    if not max(wrong.item(), wrong_batch.item()) <= EXACT:
        return False
    fastest = {False: float("inf"), True: float("inf")}
    for _ in range(ROUNDS):  # in turn, and the fastest of each: other work on the machine slows both
        for use in fastest:
            with onednn(use):
                began = time.perf_counter()
                a @ b
                fastest[use] = min(fastest[use], time.perf_counter() - began)
    return fastest[False] >= FASTER * fastest[True]
