"""Training steps on a GPU: each phase is captured once and then replayed.

A step consists of many small kernels, and launching them one by one takes the CPU longer than the GPU needs to
run them. So the whole step (forward, backward, clipping, optimisers) is captured as a CUDA graph, which is launched
as one unit. Values that change from step to step (the batch, the detector's `schedule`, learning rates) are in
tensors that are written before each launch. A new graph is captured when `Detector.phase` changes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from objbench.detector import Detector
from objbench.train.steps import InitialGroup, Losses, rate_left, rates_fall, take_step

WARM_STEPS = 3
"""Steps at the start of each phase that are not captured. They are normal training steps. In them cuDNN and cuBLAS
choose their algorithms and optimisers create their state, which is not allowed during a capture."""

QUEUED = 16
"""Steps that may wait for the GPU: enough to keep it busy, few enough to limit the memory of their batches."""


class Recorder(Protocol):
    """Captures and replays. `CudaGraph` does; tests have one that runs on a CPU."""

    def prepare(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Sets up the optimisers so that their steps can be captured."""

    def record(self, work: Callable[[], None]) -> None:
        """Captures `work`; it replaces the previous capture."""

    def replay(self) -> None:
        """Runs the last captured work again."""


class CudaGraph:
    """Captures work on its own stream. The whole training must run on this stream: `with graph.stream():`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._queued: deque[torch.cuda.Event] = deque()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Makes this the current stream. It waits for earlier work; later work on the old stream waits for it."""
        before = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            yield
        before.wait_stream(self._stream)

    def prepare(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Sets `capturable` and moves the step counters to the GPU; TypeError if an optimiser has no such flag."""
        for optimizer in optimizers:
            # Otherwise it warns about the steps before a capture.
            optimizer._warned_capturable_if_run_uncaptured = True
            for group in optimizer.param_groups:
                if "capturable" not in group:
                    raise TypeError(
                        f"{type(optimizer).__name__} cannot be captured; "
                        "set the detector's capturable to False, or use Adam or RMSprop"
                    )
                group["capturable"] = True
            for state in optimizer.state.values():
                if isinstance(count := state.get("step"), Tensor):
                    state["step"] = count.to(self.device)

    def record(self, work: Callable[[], None]) -> None:
        """Captures `work` without running it. No other thread may allocate pinned memory during the capture."""
        self._stream.synchronize()  # the old graph may still be running
        self._graph = None
        graph = torch.cuda.CUDAGraph()
        # Calls by other threads do not invalidate the capture, only calls by this thread.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        self._graph = graph

    def replay(self) -> None:
        """Launches the graph. Waits until at most QUEUED launches are unfinished."""
        assert self._graph is not None
        self._graph.replay()
        # With a blocking event, waiting does not use the CPU, which the thread that makes batches needs.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(self._stream)
        self._queued.append(done)
        if len(self._queued) > QUEUED:
            self._queued.popleft().synchronize()


class CapturedSteps:
    """Like `Steps`, but each phase is captured after its first `WARM_STEPS` steps and then replayed."""

    how = ", steps captured"

    def __init__(
        self,
        detector: Detector,
        optimizers: Sequence[torch.optim.Optimizer],
        initial: Sequence[InitialGroup],
        recorder: Recorder,
        quiet: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        """The parameters of `Steps`, and quiet: held during a capture, so that other threads do not use the GPU.

        The detector reads its schedule from tensors until `close`.
        """
        self.detector, self.optimizers, self.initial = detector, optimizers, initial
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        recorder.prepare(optimizers)
        self._recorder, self._quiet = recorder, quiet or contextlib.nullcontext()
        device = next(detector.parameters()).device
        names = list(detector.schedule(0))
        self._values = torch.zeros(len(names) + len(self.groups), dtype=torch.float64, device=device)
        detector.held = dict(zip(names, self._values[: len(names)].unbind(), strict=True))
        self._rates = self._values[len(names) :].unbind()
        if rates_fall(detector):
            for group in self.groups:  # single precision is what optimisers read
                group["lr"] = torch.zeros((), device=device)
        self._images: Tensor | None = None
        self._losses: Losses | None = None
        self._phase: Hashable = object()  # equal to no step's phase
        self._taken = 0  # steps of this phase so far

    def close(self) -> None:
        """The detector reads plain numbers from its schedule again."""
        self.detector.held = None

    def __call__(self, images: Tensor, step: int) -> Losses:
        """Like `Steps`. images: on the CPU; in pinned memory, so that the copy does not block."""
        self._write(images, step)
        assert self._images is not None
        phase = self.detector.phase(step)
        if phase != self._phase:
            self._phase, self._taken = phase, 0
        self._taken += 1
        if self._taken <= WARM_STEPS:
            return self._take(self._images, step)
        if self._taken == WARM_STEPS + 1:
            self._capture(step)
        self._recorder.replay()
        assert self._losses is not None
        names, losses = self._losses
        return names, losses.clone()  # the next replay overwrites them

    def _take(self, images: Tensor, step: int) -> Losses:
        return take_step(self.detector, self.optimizers, images, step, self._copy_rates)

    def _copy_rates(self, step: int) -> None:
        """Part of the captured step: copies the rates that `_write` has written to the optimisers."""
        if rates_fall(self.detector):
            for group, rate in zip(self.groups, self._rates, strict=True):
                group["lr"].copy_(rate)

    def _write(self, images: Tensor, step: int) -> None:
        """Queues the copies of all values that change from step to step."""
        scheduled = list(self.detector.schedule(step).values())
        share = rate_left(step / self.detector.config.steps, self.detector.config.lr_end)
        values = [*scheduled, *(float(made.rate) * share for made in self.initial)]
        pinned = self._values.is_cuda  # a new tensor each time: the allocator keeps it until the copy is done
        self._values.copy_(torch.tensor(values, dtype=torch.float64, pin_memory=pinned), non_blocking=True)
        if self._images is None:
            self._images = torch.empty(images.shape, dtype=images.dtype, device=self._values.device)
        self._images.copy_(images, non_blocking=True)

    def _capture(self, step: int) -> None:
        images = self._images
        assert images is not None

        def work() -> None:
            self._losses = self._take(images, step)

        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)  # new gradients must be in the graph's own memory
        self._losses = None  # frees memory of the old graph
        try:
            with self._quiet:
                self._recorder.record(work)
        except Exception as error:
            phase = f"{type(self.detector).__name__}'s training step, phase {self._phase}"
            error.add_note(f"while capturing {phase}; OBJBENCH_EAGER=1 trains without")
            raise
