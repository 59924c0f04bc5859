"""Training steps on a GPU: captured once a phase and replayed, on batches that are made meanwhile.

A step of many small kernels costs a GPU less than it costs a processor to ask for them one by one. So the whole
step, forward, backward, clipping and optimisers, is captured into a CUDA graph, which is launched as one. What
changes from step to step lies in tensors that are written before each launch: the batch, the values of the
detector's `schedule`, learning rates. `Detector.phase` says when it takes another graph.
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
"""Steps of each phase that are taken uncaptured. They are part of the training, and they have cuDNN and cuBLAS choose
their ways and optimisers make their state, none of which a capture may do."""

QUEUED = 16
"""Steps that wait for the GPU: enough that it never waits, and few enough that their batches stay few."""


class Recorder(Protocol):
    """Captures and replays. `CudaGraph` does; tests have one that runs on a CPU."""

    def prepare(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Has the optimisers do nothing in a step that a capture does not allow."""

    def record(self, work: Callable[[], None]) -> None:
        """Captures `work` in the place of what was captured before."""

    def replay(self) -> None:
        """Does what was captured last once more."""


class CudaGraph:
    """Captures work on a stream of its own, which training as a whole must run on: `with graph.stream():`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._queued: deque[torch.cuda.Event] = deque()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Makes the stream the current one, after what is queued now and before what will be queued then."""
        before = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            yield
        before.wait_stream(self._stream)

    def prepare(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Sets `capturable`, and moves what counts the steps to the GPU; TypeError if an optimiser has no such flag."""
        for optimizer in optimizers:
            # It would warn about the steps that come before a capture.
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
        """Captures `work`, which is not done by that. No other thread may allocate pinned memory meanwhile."""
        self._stream.synchronize()  # the graph that goes now may still be running
        self._graph = None
        graph = torch.cuda.CUDAGraph()
        # Other threads are not this one's business: only what this thread asks for can spoil the capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        self._graph = graph

    def replay(self) -> None:
        """Launches the graph, and waits for the one of QUEUED steps ago at most."""
        assert self._graph is not None
        self._graph.replay()
        # Blocking, so that whoever waits leaves the processor to whoever makes batches.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(self._stream)
        self._queued.append(done)
        if len(self._queued) > QUEUED:
            self._queued.popleft().synchronize()


class CapturedSteps:
    """As `Steps`, but each phase is captured after its first `WARM_STEPS` and then replayed."""

    how = ", steps captured"

    def __init__(
        self,
        detector: Detector,
        optimizers: Sequence[torch.optim.Optimizer],
        initial: Sequence[InitialGroup],
        recorder: Recorder,
        quiet: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        """As `Steps`. quiet: held while capturing; other threads leave the GPU alone meanwhile.

        Until `close`, the detector reads its schedule from tensors.
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
        self._phase: Hashable = object()  # that of no step
        self._taken = 0  # steps of this phase

    def close(self) -> None:
        """Gives the detector back its plain schedule."""
        self.detector.held = None

    def __call__(self, images: Tensor, step: int) -> Losses:
        """As `Steps`; images: on the CPU, pinned if they are not to be waited for."""
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
        return names, losses.clone()  # the next replay writes there

    def _take(self, images: Tensor, step: int) -> Losses:
        return take_step(self.detector, self.optimizers, images, step, self._copy_rates)

    def _copy_rates(self, step: int) -> None:
        """Within what is captured: takes the rates from where `_write` has put them."""
        if rates_fall(self.detector):
            for group, rate in zip(self.groups, self._rates, strict=True):
                group["lr"].copy_(rate)

    def _write(self, images: Tensor, step: int) -> None:
        """Queues the copies of what differs from step to step."""
        scheduled = list(self.detector.schedule(step).values())
        share = rate_left(step / self.detector.config.steps, self.detector.config.lr_end)
        values = [*scheduled, *(float(made.rate) * share for made in self.initial)]
        pinned = self._values.is_cuda  # kept by the allocator until the copy is done, so new ones each time
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
            optimizer.zero_grad(set_to_none=True)  # gradients are to lie in the graph's own memory
        self._losses = None  # of the graph that goes, whose memory can then be used again
        try:
            with self._quiet:
                self._recorder.record(work)
        except Exception as error:
            phase = f"{type(self.detector).__name__}'s training step, phase {self._phase}"
            error.add_note(f"while capturing {phase}; OBJBENCH_EAGER=1 trains without")
            raise
