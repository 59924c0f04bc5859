"""One step of training: losses, gradients, clipping, learning rates, optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from objbench.detector import Detector

Losses = tuple[list[str], Tensor]
"""The terms of the loss of one step: their names and their values [terms] float32."""


class Diverged(Exception):
    """A loss became NaN or infinite."""


class InitialGroup(NamedTuple):
    """The initial settings of an optimiser's parameter group, before a checkpoint was loaded."""

    rate: float | Tensor
    capturable: bool | None
    """None where the optimiser has no such flag."""

    @staticmethod
    def of(optimizers: Sequence[torch.optim.Optimizer]) -> list[InitialGroup]:
        """The initial settings of all groups of new optimisers, in order."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        return [InitialGroup(group["lr"], group.get("capturable")) for group in groups]


def take_step(
    detector: Detector,
    optimizers: Sequence[torch.optim.Optimizer],
    images: Tensor,
    step: int,
    set_rates: Callable[[int], None] = lambda step: None,
) -> Losses:
    """Takes one training step on images [batch, channels, height, width], which are on the detector's device.

    set_rates: called with the step number before the optimisers' steps. Returns the terms of the loss before the
    step. On a CPU, raises Diverged when a term is not finite; on a GPU this check would have to wait for the values.
    """
    names, losses = terms_of(detector.training_step(images, step))
    terms = names, losses.detach()
    if losses.device.type == "cpu":
        check_finite([terms], step)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    if detector.config.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(detector.parameters(), detector.config.clip_norm)
    set_rates(step)
    for optimizer in optimizers:
        optimizer.step()
    return terms


class Steps:
    """Takes training steps one by one, without capturing."""

    how = ""
    """Added to the name of the machine in records: how steps were computed."""

    def __init__(
        self, detector: Detector, optimizers: Sequence[torch.optim.Optimizer], initial: Sequence[InitialGroup]
    ) -> None:
        """optimizers: after the checkpoint was loaded. initial: the initial settings of their groups, in order."""
        self.detector, self.optimizers, self.initial = detector, optimizers, initial
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, made in zip(self.groups, initial, strict=True):
            if made.capturable is not None:  # the checkpoint may be from captured steps
                group["capturable"] = made.capturable

    def __call__(self, images: Tensor, step: int) -> Losses:
        """Takes one step on images [batch, channels, height, width] on the CPU; returns the terms of its loss."""
        images = images.to(next(self.detector.parameters()).device, non_blocking=True)
        return take_step(self.detector, self.optimizers, images, step, self._set_rates)

    def _set_rates(self, step: int) -> None:
        if rates_fall(self.detector):
            share = rate_left(step / self.detector.config.steps, self.detector.config.lr_end)
            for group, made in zip(self.groups, self.initial, strict=True):
                group["lr"] = made.rate * share


def rates_fall(detector: Detector) -> bool:
    """True if the harness changes the learning rates during training; otherwise the detector controls them."""
    return bool(detector.config.lr_end < 1)


def rate_left(done: float, end: float) -> float:
    """The factor on the learning rate at `done` (0..1) of training: 1 in the first half, then linearly to `end`."""
    return 1 - (1 - end) * max(0.0, 2 * done - 1)


def terms_of(loss: Tensor | Mapping[str, Tensor]) -> Losses:
    """The return value of a training step as names and one tensor. ValueError when a term is not a scalar."""
    terms = loss if isinstance(loss, Mapping) else {"loss": loss}
    for name, term in terms.items():
        if term.numel() != 1:
            raise ValueError(f"loss term '{name}' has shape {list(term.shape)}; it must be a scalar")
    return list(terms), torch.stack([term.reshape(()).float() for term in terms.values()])


def check_finite(recent: list[Losses], last_step: int) -> None:
    """Raises Diverged with the step and the term, unless all losses of the steps up to `last_step` are finite."""
    if torch.cat([losses for _, losses in recent]).isfinite().all():
        return
    for step, (names, losses) in enumerate(recent, last_step + 1 - len(recent)):
        for name, value in zip(names, losses.tolist(), strict=True):
            if not math.isfinite(value):
                raise Diverged(f"the loss became {value} at step {step}: its term '{name}'")
