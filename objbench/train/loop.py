"""The one training loop, for every detector that trains by gradient steps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objbench.cells.result import Position
from objbench.cells.store import write_curve
from objbench.detector import Detector
from objbench.errors import Interrupted
from objbench.scenes import SceneSource, first_indices
from objbench.train import checkpoint
from objbench.train.batches import batch_indices
from objbench.train.machine import device_name, peak_memory_mb
from objbench.train.steps import Losses, Start, Steps, check_finite

EVALUATIONS = 20
"""Points of the curve, evenly spaced in steps."""

LOOK_S = 0.5
"""How often progress is told. On a GPU losses are read only then: reading waits for all that is queued."""

EAGER = "OBJBENCH_EAGER"
"""Environment variable: when it is set, no training step is captured. For finding faults."""


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
    from objbench.train.batches import Ahead
    from objbench.train.captured import CapturedSteps, CudaGraph  # it builds on what is in here

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
