"""The one training loop, for every detector that trains by gradient steps."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objbench.cells.result import Event, Position
from objbench.cells.store import write_curve
from objbench.detector import Detector
from objbench.errors import Interrupted
from objbench.scenes import SceneSource, first_indices
from objbench.train import checkpoint
from objbench.train.batches import Ahead, batch_indices
from objbench.train.captured import CapturedSteps, CudaGraph
from objbench.train.machine import device_name, peak_memory_mb
from objbench.train.products import ONEDNN, choose, onednn
from objbench.train.steps import InitialGroup, Losses, Steps, check_finite

READ_S = 0.5
"""Seconds between two reports of progress. On a GPU losses are read only then: a read waits for all queued steps."""

FADES_S = 10.0
"""Seconds after which the weight of a step in the pace has fallen to about a third (1/e)."""

EAGER = "OBJBENCH_EAGER"
"""Environment variable: if it is set, no training step is captured. For debugging."""


class Watch:
    """Receives the progress of a training and can stop it. This base class does neither."""

    checkpoint_s = math.inf
    """Seconds between two checkpoints. One is always written at the end."""

    def report(self, event: Event) -> None:
        """Receives an event of progress."""

    def stopping(self) -> bool:
        """True if the training should stop after this step."""
        return False

    def deferred(self) -> contextlib.AbstractContextManager[None]:
        """In this block a request to stop raises no exception; the code inside calls `stopping`."""
        return contextlib.nullcontext()

    def due(self, at: Position, steps: int) -> bool:
        """True if the curve should get a point after step `at.step` of `steps`. It always gets one after the last step.

        `at.curve` holds the points so far.
        """
        return False

    def evaluate(self) -> dict[str, float]:
        """Metrics of the detector in its present state. Does not change it or any random generator."""
        return {}


def train(
    detector: Detector, source: SceneSource, seed: int, folder: Path, watch: Watch, fit_scenes: int
) -> Position:
    """Trains from the checkpoint in `folder`, or from the start, to `config.steps`, and writes a checkpoint there.

    A training that was stopped at any step and resumed ends with the same weights, bit for bit on a CPU: the batch
    of a step depends only on (seed, step), and the checkpoint holds the state of every random generator.
    fit_scenes: how many training images `at_milestone` receives.
    Raises Diverged with the step and the term. When `watch.stopping()`, writes a checkpoint and raises Interrupted.
    """
    config, device = detector.config, next(detector.parameters()).device
    optimizers = detector.optimizers()
    initial = InitialGroup.of(optimizers)
    at = checkpoint.restore(folder, detector, optimizers)  # also restores the learning rates
    size = source.size("train")

    def images_of(step: int) -> Tensor:
        return source.scenes("train", batch_indices(size, seed, step, config.batch_size)).images

    recent: list[Losses] = []  # of the steps since the last report
    read, pace, first = time.perf_counter(), Pace(), True
    saver = Saver(folder, at, detector, optimizers, watch.checkpoint_s)
    milestones = detector.milestones()
    detector.train()
    with execution_for(detector, optimizers, initial, images_of, at.step) as run:
        machine = f"{device_name(device)} with {torch.get_num_threads()} threads{run.take.how}"
        by_onednn = choose(machine, at.machine, detector.fast_products and device.type == "cpu")
        at.machine = machine + (ONEDNN if by_onednn else "")
        while at.step < config.steps:
            if at.step in milestones:
                began = time.perf_counter()
                with run.quiet:
                    many = source.scenes("train", first_indices(source, "train", fit_scenes)).images
                detector.at_milestone(many.to(device), at.step)
                pace.leave_out(time.perf_counter() - began)
                first = True
            began = time.perf_counter()
            images = run.images_of(at.step)
            with onednn(by_onednn):
                recent.append(run.take(images, at.step))
            if first:
                pace.leave_out(time.perf_counter() - began, steps=1)
                first = False
            at.step += 1
            at.images += len(images)

            stop, last = watch.stopping(), at.step == config.steps
            point = last or watch.due(at, config.steps)
            if not (stop or point or time.perf_counter() - read >= READ_S):
                continue
            check_finite(recent, at.step - 1)
            lap = time.perf_counter() - read  # the rest of the loop is not training
            at.seconds += lap
            terms = dict(zip(recent[-1][0], recent[-1][1].tolist(), strict=True))
            loss = sum(terms.values())
            now: Event = {
                "step": at.step,
                "steps": config.steps,
                "seconds": at.seconds,
                "loss": loss,
                "terms": terms,
            }
            watch.report(now | {"steps_per_second": pace.after(len(recent), lap)})
            recent.clear()
            if point:
                watched = {name: float(value) for name, value in detector.watch().items()}
                began = time.perf_counter()
                metrics = watch.evaluate()
                row = {"step": at.step, "seconds": at.seconds, "loss": loss, "terms": terms, "watch": watched}
                took = time.perf_counter() - began
                at.curve.append(row | {"metrics": metrics, "validation_seconds": took})
                write_curve(folder, at.curve)
                watch.report(now | {"watch": watched, "metrics": metrics})
            if stop or last or saver.due():
                saver.save()
            if stop:
                raise Interrupted
            read = time.perf_counter()
    return at


class Pace:
    """Steps per second, mostly of the last FADES_S seconds.

    Pauses do not count. The first step after a pause does not count either: it is often slower, because of one-time
    preparations.
    """

    def __init__(self) -> None:
        self._steps = self._seconds = 0.0
        self._left_out_steps, self._left_out_s, self._paused_s = 0, 0.0, 0.0

    def leave_out(self, seconds: float, steps: int = 0) -> None:
        """Excludes these seconds from the present lap: those of a pause, or, if `steps` > 0, of that many steps."""
        if steps:
            self._left_out_steps += steps
            self._left_out_s += seconds
        else:
            self._paused_s += seconds

    def after(self, steps: int, seconds: float) -> float:
        """The pace at the end of a lap of at least one step. seconds: the length of the lap, with its pauses."""
        seconds -= self._paused_s
        counted, counted_s = steps - self._left_out_steps, seconds - self._left_out_s
        if counted:
            fade = math.exp(-counted_s / FADES_S)
            self._steps, self._seconds = fade * self._steps + counted, fade * self._seconds + counted_s
        self._left_out_steps, self._left_out_s, self._paused_s = 0, 0.0, 0.0
        if self._steps:
            return self._steps / max(self._seconds, 1e-9)
        return steps / max(seconds, 1e-9)  # so far there were only first steps


class Saver:
    """Saves checkpoints at most every `every_s` seconds, and less often if saving would take over 2 % of the time."""

    def __init__(
        self,
        folder: Path,
        at: Position,
        detector: Detector,
        optimizers: Sequence[torch.optim.Optimizer],
        every_s: float,
    ) -> None:
        """at: the position to save; the training loop updates this object."""
        self.folder, self.at, self.detector, self.optimizers = folder, at, detector, optimizers
        self.every_s, self.took_s, self.saved = every_s, 0.0, time.perf_counter()

    def due(self) -> bool:
        """True if it is time to save."""
        return time.perf_counter() - self.saved >= max(self.every_s, 50 * self.took_s)

    def save(self) -> None:
        """Saves a checkpoint."""
        began = time.perf_counter()
        device = next(self.detector.parameters()).device
        self.at.peak_memory_mb = max(self.at.peak_memory_mb, peak_memory_mb(device))
        checkpoint.save(self.folder, self.at, self.detector, self.optimizers)
        self.saved = time.perf_counter()
        self.took_s = self.saved - began


class Execution(NamedTuple):
    """How a training runs on its device."""

    take: Steps | CapturedSteps
    images_of: Callable[[int], Tensor]
    """Returns the images of a step, on the CPU; must be called for the steps in order."""
    quiet: contextlib.AbstractContextManager[Any]
    """While this is held, no other thread uses the training scenes."""


@contextlib.contextmanager
def execution_for(
    detector: Detector,
    optimizers: Sequence[torch.optim.Optimizer],
    initial: Sequence[InitialGroup],
    images_of: Callable[[int], Tensor],
    first: int,
) -> Iterator[Execution]:
    """The execution for the detector's device. On a GPU, a thread makes batches in advance, and steps are captured.

    first: the first step. Steps are captured only if the detector is `capturable` and OBJBENCH_EAGER is not set.
    """
    device = next(detector.parameters()).device
    if device.type != "cuda":
        yield Execution(Steps(detector, optimizers, initial), images_of, contextlib.nullcontext())
        return
    with contextlib.ExitStack() as stack:
        ahead = Ahead(images_of, range(first, detector.config.steps), device)
        stack.callback(ahead.close)
        if not detector.capturable or os.environ.get(EAGER):
            yield Execution(Steps(detector, optimizers, initial), ahead, ahead.lock)
            return
        graph = CudaGraph(device)
        stack.enter_context(graph.stream())
        steps = CapturedSteps(detector, optimizers, initial, graph, ahead.lock)
        stack.callback(steps.close)
        yield Execution(steps, ahead, ahead.lock)
