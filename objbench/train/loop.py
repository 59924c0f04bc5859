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
"""Seconds between two reports of progress. On a GPU losses are read only then: reading waits for all that is queued."""

FADES_S = 10.0
"""Seconds after which a step counts for a third of its weight in the pace."""

EAGER = "OBJBENCH_EAGER"
"""Environment variable: when it is set, no training step is captured. For finding faults."""


class Watch:
    """Whoever watches a training: hears of its progress, and may stop it. This one does neither."""

    checkpoint_s = math.inf
    """Seconds between two checkpoints; there is one at the end in any case."""

    def report(self, event: Event) -> None:
        """Progress."""

    def stopping(self) -> bool:
        """Whether the training shall stop after this step."""
        return False

    def deferred(self) -> contextlib.AbstractContextManager[None]:
        """In this block a request to stop raises nothing: who is inside asks `stopping`."""
        return contextlib.nullcontext()

    def due(self, at: Position, steps: int) -> bool:
        """Whether the curve gets a point after step `at.step` of `steps`; after the last it always does.

        `at.curve` holds the points so far.
        """
        return False

    def evaluate(self) -> dict[str, float]:
        """The running figures of the detector as it is now; leaves it and all random generators as they are."""
        return {}


def train(
    detector: Detector, source: SceneSource, seed: int, folder: Path, watch: Watch, fit_scenes: int
) -> Position:
    """Trains from the checkpoint in `folder`, or from the start, to `config.steps`; ends with a checkpoint.

    Stopped at any step and resumed, it ends with the same weights, bit for bit on a CPU: the batch of a step
    depends on (seed, step) alone, and the checkpoint holds every random generator.
    fit_scenes: how many training images `at_milestone` is shown.
    Raises Diverged with the step and the term, and Interrupted after a checkpoint when `watch.stopping()`.
    """
    config, device = detector.config, next(detector.parameters()).device
    optimizers = detector.optimizers()
    initial = InitialGroup.of(optimizers)
    at = checkpoint.restore(folder, detector, optimizers)  # and with it rates that may have fallen
    size = source.size("train")

    def images_of(step: int) -> Tensor:
        return source.scenes("train", batch_indices(size, seed, step, config.batch_size)).images

    recent: list[Losses] = []  # of the steps since losses were last read
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
    """Steps a second, mostly those of the last FADES_S seconds.

    Pauses do not count; neither does the first step after one, which may prepare much that later steps find ready.
    """

    def __init__(self) -> None:
        self._steps = self._seconds = 0.0
        self._left_out_steps, self._left_out_s, self._paused_s = 0, 0.0, 0.0

    def leave_out(self, seconds: float, steps: int = 0) -> None:
        """Leaves these seconds of the lap that is under way out: those of a pause, or of so many steps."""
        if steps:
            self._left_out_steps += steps
            self._left_out_s += seconds
        else:
            self._paused_s += seconds

    def after(self, steps: int, seconds: float) -> float:
        """The pace at the end of a lap of at least one step, of which the pauses are a part."""
        seconds -= self._paused_s
        counted, counted_s = steps - self._left_out_steps, seconds - self._left_out_s
        if counted:
            fade = math.exp(-counted_s / FADES_S)
            self._steps, self._seconds = fade * self._steps + counted, fade * self._seconds + counted_s
        self._left_out_steps, self._left_out_s, self._paused_s = 0, 0.0, 0.0
        if self._steps:
            return self._steps / max(self._seconds, 1e-9)
        return steps / max(seconds, 1e-9)  # nothing is known but a first step


class Saver:
    """Saves checkpoints: not more often than asked, and so seldom that it takes a fiftieth of the time at most."""

    def __init__(
        self,
        folder: Path,
        at: Position,
        detector: Detector,
        optimizers: Sequence[torch.optim.Optimizer],
        every_s: float,
    ) -> None:
        """at: the position that is saved, as the training loop keeps it."""
        self.folder, self.at, self.detector, self.optimizers = folder, at, detector, optimizers
        self.every_s, self.took_s, self.saved = every_s, 0.0, time.perf_counter()

    def due(self) -> bool:
        """Whether it is time to save."""
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
    """How training runs on a device."""

    take: Steps | CapturedSteps
    images_of: Callable[[int], Tensor]
    """The images of a step, on the CPU; to be asked for in order."""
    quiet: contextlib.AbstractContextManager[Any]
    """While it is held, no other thread uses the training scenes."""


@contextlib.contextmanager
def execution_for(
    detector: Detector,
    optimizers: Sequence[torch.optim.Optimizer],
    initial: Sequence[InitialGroup],
    images_of: Callable[[int], Tensor],
    first: int,
) -> Iterator[Execution]:
    """For the detector's device: plain on a CPU; on a GPU batches are made ahead, and steps captured.

    first: the step to begin with. Steps are captured where the detector says that they can be, unless OBJBENCH_EAGER
    is set.
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
