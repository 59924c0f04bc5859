"""The one training loop, for every detector that trains by gradient steps."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from objbench import checkpoint
from objbench.checkpoint import Position
from objbench.detector import Detector
from objbench.provenance import device_name, peak_memory_mb
from objbench.scenes import SceneSource, Split
from objbench.store import write_file

EVALUATIONS = 20
"""Points of the curve, evenly spaced in steps."""
LOOK_S = 0.5
"""How often progress is told. On a GPU losses are read only then: reading waits for all that is queued."""

EAGER = "OBJBENCH_EAGER"
"""Environment variable: when it is set, no training step is captured. For finding faults."""

Losses = tuple[list[str], Tensor]
"""The terms of one step's loss: their names, and their values [terms] float32."""


class Diverged(Exception):
    """A loss became NaN or infinite."""


class Interrupted(BaseException):
    """The cell was asked to stop. Not an Exception: no plugin shall catch it."""


def train(
    detector: Detector,
    source: SceneSource,
    seed: int,
    folder: Path,
    *,
    evaluate: Callable[[], dict[str, float]],
    tell: Callable[[dict[str, Any]], None],
    stopping: Callable[[], bool],
    checkpoint_s: float,
    fit_scenes: int,
) -> Position:
    """Trains from the cell's checkpoint, or from the start, to `config.steps`; ends with a checkpoint.

    Stopped at any step and resumed, it ends with the same weights, bit for bit on a CPU: the batch of a step
    depends on (seed, step) alone, and the checkpoint holds every random generator.
    Raises Diverged with the step and the term, and Interrupted after a checkpoint when `stopping()`.
    """
    config, device = detector.config, next(detector.parameters()).device
    optimizers = detector.optimizers()
    starts = [Start.of(group) for optimizer in optimizers for group in optimizer.param_groups]
    at = checkpoint.restore(folder, detector, optimizers)  # and with it rates that may have fallen
    size = source.size("train")

    def images_of(step: int) -> Tensor:
        return source.scenes("train", batch_indices(size, seed, step, config.batch_size)).images

    point_every = max(1, config.steps // EVALUATIONS)
    recent: list[Losses] = []  # of the steps since we last looked
    looked = saved = time.perf_counter()
    saving_s = 0.0
    milestones = detector.milestones()
    detector.train()
    with way_of(detector, optimizers, starts, images_of, at.step) as way:
        at.machine = f"{device_name(device)} with {torch.get_num_threads()} threads{way.take.how}"
        while at.step < config.steps:
            if at.step in milestones:
                with way.quiet:
                    many = source.scenes("train", first_indices(source, "train", fit_scenes)).images
                detector.at_milestone(many.to(device), at.step)
            images = way.images_of(at.step)
            recent.append(way.take(images, at.step))
            at.step += 1
            at.images += len(images)

            stop, last = stopping(), at.step == config.steps
            point = last or at.step % point_every == 0
            if not (stop or point or time.perf_counter() - looked >= LOOK_S):
                continue
            check_finite(recent, at.step - 1)
            lap = time.perf_counter() - looked  # the rest of the loop is not training
            at.seconds += lap
            values = dict(zip(recent[-1][0], recent[-1][1].tolist(), strict=True))
            loss, pace = sum(values.values()), len(recent) / lap
            tell({"step": at.step, "steps": config.steps, "steps_per_second": pace, "loss": loss})
            recent.clear()
            if point:
                row = {"step": at.step, "seconds": at.seconds, "loss": loss, "terms": values}
                watched = {name: float(value) for name, value in detector.watch().items()}
                at.curve.append(row | {"watch": watched, "metrics": evaluate()})
                write_curve(folder, at.curve)
                tell({"metrics": at.curve[-1]["metrics"]})
            if stop or last or time.perf_counter() - saved >= max(checkpoint_s, 50 * saving_s):
                began = time.perf_counter()
                at.peak_memory_mb = max(at.peak_memory_mb, peak_memory_mb(device))
                checkpoint.save(folder, at, detector, optimizers)
                saved = time.perf_counter()
                saving_s = saved - began
            if stop:
                raise Interrupted
            looked = time.perf_counter()
    return at


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


class Way(NamedTuple):
    """How training is done on a device."""

    take: Steps
    images_of: Callable[[int], Tensor]
    """The images of a step, on the CPU; to be asked for in order."""
    quiet: contextlib.AbstractContextManager[Any]
    """While it is held, no other thread uses the training scenes."""


@contextlib.contextmanager
def way_of(
    detector: Detector,
    optimizers: Sequence[torch.optim.Optimizer],
    starts: Sequence[Start],
    images_of: Callable[[int], Tensor],
    first: int,
) -> Iterator[Way]:
    """The way for the detector's device: plain on a CPU; on a GPU batches are made ahead, and steps captured.

    first: the step to begin with. Steps are captured where the detector says that they can be, unless OBJBENCH_EAGER
    is set.
    """
    device = next(detector.parameters()).device
    if device.type != "cuda":
        yield Way(Steps(detector, optimizers, starts), images_of, contextlib.nullcontext())
        return
    from objbench.captured import Ahead, CapturedSteps, CudaGraph  # it builds on what is in here

    with contextlib.ExitStack() as stack:
        ahead = Ahead(images_of, range(first, detector.config.steps), device)
        stack.callback(ahead.close)
        if not detector.capturable or os.environ.get(EAGER):
            yield Way(Steps(detector, optimizers, starts), ahead, ahead.lock)
            return
        graph = CudaGraph(device)
        stack.enter_context(graph.stream())
        steps = CapturedSteps(detector, optimizers, starts, graph, ahead.lock)
        stack.callback(steps.close)
        yield Way(steps, ahead, ahead.lock)


def seed_everything(seed: int) -> None:
    """Seeds every global random generator that a plugin may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rate_left(done: float, end: float) -> float:
    """The share of the learning rate left at `done` (0..1) of training: 1 to the half, then down to `end`."""
    return 1 - (1 - end) * max(0.0, 2 * done - 1)


def batch_indices(size: int | None, seed: int, step: int, batch: int) -> Tensor:
    """The scenes of one step, [batch] int64: a pure function of its arguments.

    A split without end is read in order; one of `size` scenes in a new order every epoch.
    """
    places = torch.arange(step * batch, (step + 1) * batch)
    if size is None:
        return places
    epochs = range(step * batch // size, ((step + 1) * batch - 1) // size + 1)
    return torch.cat([_order(size, seed, e)[places[places // size == e] % size] for e in epochs])


def first_indices(source: SceneSource, split: Split, count: int) -> Tensor:
    """The first `count` scenes of a split, or all when it has fewer."""
    size = source.size(split)
    return torch.arange(count if size is None else min(count, size))


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size))


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


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The cell's running figures, a row an evaluation; none for a detector that takes no steps."""
    path = folder / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_curve(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes them all, as the whole file."""
    write_file(folder / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
