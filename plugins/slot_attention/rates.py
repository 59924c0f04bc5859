"""Adam with the learning rates of the authors' code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class WarmedAdam(torch.optim.Adam):
    """Adam whose rate in step t, from 0, is lr * min(t / warmup, 1) * 0.5 ** (t / half_life).

    The step is part of the optimiser's state, so a training that is resumed goes on at its rate. One thing differs from
    the authors' code: t counts from 1, so that the first step is not without effect.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, warmup: int, half_life: int) -> None:
        super().__init__(parameters, lr=lr, fused=True)
        for group in self.param_groups:
            group |= {"highest": lr, "warmup": warmup, "half_life": half_life, "taken": 0}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Sets the rate, then steps as Adam does."""
        for group in self.param_groups:
            group["taken"] += 1
            group["lr"] = group["highest"] * rate_at(group["taken"], group["warmup"], group["half_life"])
        return super().step(closure)


def rate_at(step: int, warmup: int, half_life: int) -> float:
    """The learning rate in this step, as a share of the highest."""
    return float(min(1.0, step / max(warmup, 1)) * 0.5 ** (step / half_life))
