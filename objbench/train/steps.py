"""One step of training: losses, gradients, clipping, learning rates, optimisers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objbench.detector import Detector

Losses = tuple[list[str], Tensor]
"""The terms of one step's loss: their names, and their values [terms] float32."""


class Diverged(Exception):
    """A loss became NaN or infinite."""


class Start(NamedTuple):
    """How an optimiser's group of parameters was made, before a checkpoint went over it."""

    rate: float | Tensor
    capturable: bool | None
    """None where the optimiser has no such flag."""

    @staticmethod
    def of(group: Mapping[str, Any]) -> Start:
        """That of a new group."""
        return Start(group["lr"], group.get("capturable"))


class Steps:
    """Training steps, each worked out as it comes."""

    how = ""
    """What a record of the machine adds about the way steps were taken."""

    def __init__(
        self, detector: Detector, optimizers: Sequence[torch.optim.Optimizer], starts: Sequence[Start]
    ) -> None:
        """optimizers: as the checkpoint left them; starts: of each of their groups in order, before that."""
        self.detector, self.optimizers, self.starts = detector, optimizers, starts
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, start in zip(self.groups, starts, strict=True):
            if start.capturable is not None:  # the checkpoint may be of steps that were captured
                group["capturable"] = start.capturable

    def __call__(self, images: Tensor, step: int) -> Losses:
        """Takes one step on images [batch, channels, height, width] from the CPU; the terms of its loss."""
        return self.compute(images.to(next(self.detector.parameters()).device, non_blocking=True), step)

    def compute(self, images: Tensor, step: int) -> Losses:
        """The step on images that are on the device. On a GPU nothing waits for what it finds."""
        names, losses = terms_of(self.detector.training_step(images, step))
        found = names, losses.detach()
        if losses.device.type == "cpu":
            check_finite([found], step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        if self.detector.config.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self.detector.config.clip_norm)
        self.set_rates(step)
        for optimizer in self.optimizers:
            optimizer.step()
        return found

    def rates_fall(self) -> bool:
        """Whether learning rates are set by the harness; otherwise they are the detector's own affair."""
        return bool(self.detector.config.lr_end < 1)

    def set_rates(self, step: int) -> None:
        """Sets the learning rates of this step."""
        if self.rates_fall():
            share = rate_left(step / self.detector.config.steps, self.detector.config.lr_end)
            for group, start in zip(self.groups, self.starts, strict=True):
                group["lr"] = start.rate * share


def rate_left(done: float, end: float) -> float:
    """The share of the learning rate left at `done` (0..1) of training: 1 to the half, then down to `end`."""
    return 1 - (1 - end) * max(0.0, 2 * done - 1)


def terms_of(loss: Tensor | Mapping[str, Tensor]) -> Losses:
    """What a training step returned, as one tensor. ValueError when a term is not a scalar."""
    terms = loss if isinstance(loss, Mapping) else {"loss": loss}
    for name, term in terms.items():
        if term.numel() != 1:
            raise ValueError(f"loss term '{name}' has shape {list(term.shape)}; it must be a scalar")
    return list(terms), torch.stack([term.reshape(()).float() for term in terms.values()])


def check_finite(recent: list[Losses], last_step: int) -> None:
    """Raises Diverged, naming step and term, unless all losses of the steps up to `last_step` are finite."""
    if torch.cat([losses for _, losses in recent]).isfinite().all():
        return
    for step, (names, losses) in enumerate(recent, last_step + 1 - len(recent)):
        for name, value in zip(names, losses.tolist(), strict=True):
            if not math.isfinite(value):
                raise Diverged(f"the loss became {value} at step {step}: its term '{name}'")
