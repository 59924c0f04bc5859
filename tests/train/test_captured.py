"""Training steps that can be captured, tried without a GPU: nothing in them waits, and replaying is training."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from capturing import PAPER, SMALL, Case, first_steps, hold, some, steps_of, what_waits
from objbench.cells.store import position
from objbench.detector import Detector, DetectorConfig
from objbench.scenes import SceneShape
from objbench.score.trained import build_training
from objbench.train.batches import AHEAD, Ahead
from objbench.train.captured import WARM_STEPS, CapturedSteps, CudaGraph
from objbench.train.loop import Execution
from objbench.train.steps import Steps, terms_of
from running import toy_cell, toys
from stopping import equal, train_here

CPU = torch.device("cpu")


@pytest.fixture
def on_fake_gpu() -> None:
    """Skips where tensors without values cannot say that they are on a GPU: torch 2.9 with CUDA asks the driver."""
    try:
        with FakeTensorMode(), torch.device("cuda"):
            torch.rand(2)[:1]
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


class Again:
    """A recorder without a GPU: replays by doing the very same work once more."""

    def __init__(self) -> None:
        self.records = 0
        self.work: Callable[[], None] = lambda: None

    def prepare(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """What a CPU's optimisers do may be done again as it is."""

    def record(self, work: Callable[[], None]) -> None:
        self.records += 1
        self.work = work

    def replay(self) -> None:
        self.work()


# Nothing waits


@pytest.mark.parametrize("case", some(SMALL))
def test_no_operation_of_a_step_waits_in_any_phase(case: Case) -> None:
    detector = case.detector()
    steps = steps_of(detector)
    found = set()
    for step in first_steps(detector):
        hold(detector, step)
        images = case.images(step)
        steps(images, step)  # what is made once and kept may wait
        # Not the step itself: on a CPU it looks at losses.
        found |= set(what_waits(lambda images=images, step=step: forward_and_back(detector, images, step)))
    assert not found
    assert detector.capturable
    assert len(first_steps(detector)) >= 3


def forward_and_back(detector: Detector, images: Tensor, step: int) -> None:
    _, losses = terms_of(detector.training_step(images, step))
    losses.sum().backward()
    torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize("case", some(SMALL + PAPER))
def test_no_operation_waits_on_a_gpu_as_far_as_shapes_and_devices_tell(case: Case) -> None:
    """On tensors without values that say they are on a GPU: the very operations that a GPU would be given."""
    detector = case.detector()
    with FakeTensorMode(), torch.device("cuda"):
        as_if_on_gpu(detector)
        images = torch.rand(case.options["batch_size"], case.channels, case.side, case.side)
        optimizers = detector.optimizers()
        CudaGraph.prepare(FakeGraph(), optimizers)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros(())
        found = set()
        for step in first_steps(detector):
            hold(detector, step)
            waits = what_waits(lambda step=step: terms_of(detector.training_step(images, step)))
            found |= set(waits)
            for parameter in detector.parameters():  # backward needs a real device
                parameter.grad = torch.zeros_like(parameter)
            found |= set(what_waits(lambda: torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)))
            for optimizer in optimizers:
                found |= set(what_waits(optimizer.step))
    assert images.is_cuda
    assert not found


def as_if_on_gpu(detector: Detector) -> None:
    """Puts tensors without values, but of the same layout, in the place of all parameters and buffers."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

    for module in detector.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(like(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = like(buffer)


class FakeGraph:
    device = torch.device("cuda")


class Sinner(Detector):
    """Waits in as many ways as one can."""

    capturable = True

    def __init__(self, how: str) -> None:
        super().__init__(DetectorConfig(), SceneShape(1, 4, 4))
        self.net, self.how = nn.Linear(16, 1), how

    def training_step(self, images: Tensor, step: int) -> Tensor:
        y = self.net(images.flatten(1))[:, 0]
        match self.how:
            case "item":
                return y.mean() * y.max().item()
            case "if":
                return y.mean() if y.mean() > 0 else -y.mean()
            case "mask":
                return y[y > y.mean()].sum()
            case "nonzero":
                return y.nonzero().float().mean() + y.mean()
            case "unique":
                return y.mean() * len(y.round().unique())
            case "new_tensor":
                return (y * y.new_tensor([0.1 * step])).mean()
            case "list":
                return y[[0, 1]].mean()
            case "scalar":
                return y.mean() * torch.tensor(2.0)
        return y.mean()


@pytest.mark.parametrize("how", ["item", "if", "mask", "nonzero", "unique", "new_tensor", "list", "scalar"])
def test_what_waits_is_found(how: str) -> None:
    images = torch.rand(3, 1, 4, 4)
    assert what_waits(lambda: forward_and_back(Sinner(how), images, 3))


def test_what_does_not_wait_is_not_blamed() -> None:
    assert not what_waits(lambda: forward_and_back(Sinner("none"), torch.rand(3, 1, 4, 4), 3))


@pytest.mark.usefixtures("on_fake_gpu")
def test_what_waits_is_found_on_what_says_it_is_a_gpu() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        images, detector = torch.rand(3, 1, 4, 4), Sinner("item")
        with pytest.raises(DataDependentOutputException):
            detector.training_step(images, 0)
        detector.how = "new_tensor"
        assert any("one device" in line for line in what_waits(lambda: detector.training_step(images, 0)))
        detector.how = "none"
        assert not what_waits(lambda: detector.training_step(images, 0))


# A schedule in tensors


@pytest.mark.parametrize("case", some(SMALL))
def test_a_schedule_in_tensors_gives_the_same_losses_and_gradients(case: Case) -> None:
    detector = case.detector()
    for step in first_steps(detector):
        images = case.images(step)
        hold(detector, step)
        in_tensors = losses_and_gradients(detector, images, step)
        detector.held = detector.schedule(step)  # type: ignore[assignment]
        close(in_tensors, losses_and_gradients(detector, images, step))
        detector.held = None  # SPACE then composes in another way
        close(in_tensors, losses_and_gradients(detector, images, step), 1e-5)


@pytest.mark.parametrize("case", some(SMALL))
def test_a_step_is_read_through_its_schedule_and_phase_alone(case: Case) -> None:
    """Two steps of one phase, given the same schedule, are the same: so the first may be replayed for the second."""
    detector = case.detector()
    steps = range(detector.config.steps)
    pairs = [
        (a, max(b for b in steps if detector.phase(b) == detector.phase(a))) for a in first_steps(detector)
    ]
    assert any(a < b for a, b in pairs)
    for first, last in pairs:
        detector.held = None
        hold(detector, last)
        close(*(losses_and_gradients(detector, case.images(0), step) for step in (first, last)), 0.0)


@pytest.mark.parametrize("case", some(SMALL))
def test_a_schedule_always_has_the_same_names_and_is_used(case: Case) -> None:
    detector = case.detector()
    names = list(detector.schedule(0))
    assert names
    assert all(list(detector.schedule(step)) == names for step in range(detector.config.steps))
    for name in names:
        detector.held = None
        hold(detector, 3)
        before = losses_and_gradients(detector, case.images(0), 3)
        detector.held = {**detector.held, name: detector.held[name] + 0.1}
        after = losses_and_gradients(detector, case.images(0), 3)
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), name


def losses_and_gradients(detector: Detector, images: Tensor, step: int) -> list[Tensor]:
    """With the same noise each time; batch statistics stay as they are."""
    kept = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    torch.manual_seed(5)
    detector.zero_grad(set_to_none=True)
    _, losses = terms_of(detector.training_step(images, step))
    losses.sum().backward()
    for name, buffer in detector.named_buffers():
        buffer.copy_(kept[name])
    gradients = [p.grad if p.grad is not None else torch.zeros(0) for p in detector.parameters()]
    return [losses.detach(), *gradients]


def close(one: list[Tensor], other: list[Tensor], part: float = 1e-6) -> None:
    """Within that part of each tensor's largest value."""
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        if a.numel():
            assert (a - b).abs().max() <= part * b.abs().max() + (1e-12 if part else 0)


# Replaying is training


def trained(
    case: Case, steps: Callable[[Detector], Any], count: int
) -> tuple[list[Tensor], list[Tensor], Any]:
    """Losses of `count` steps, the weights after them, and what took them."""
    detector = case.detector()
    take = steps(detector)
    losses = [take(case.images(step), step)[1] for step in range(count)]
    return losses, [t.clone() for t in detector.state_dict().values()], take


@pytest.mark.parametrize("case", some(SMALL))
def test_replayed_training_is_training(case: Case) -> None:
    recorder = Again()
    count = case.options["steps"]
    losses, weights, take = trained(case, lambda d: steps_of(d, CapturedSteps, recorder), count)
    same_losses, same_weights, _ = trained(case, lambda d: steps_of(d, InTensors), count)
    plain_losses, _, plain = trained(case, steps_of, count)
    assert recorder.records == sum(n > WARM_STEPS for n in lengths(take.detector)) >= 3, "once a phase"
    # Rounding grows tenfold a step, so the end can only be compared with training that rounds alike.
    for ours, theirs in zip([*losses, *weights], [*same_losses, *same_weights], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(losses[:2], plain_losses[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    rates = [group["lr"] for group in take.groups]
    assert all(isinstance(rate, Tensor) for rate in rates)
    assert [float(rate) for rate in rates] == pytest.approx([group["lr"] for group in plain.groups])
    take.close()
    assert take.detector.held is None
    assert take.detector.annealed(3) == take.detector.schedule(3)


class InTensors(Steps):
    """Eager steps that read their schedule and rates as captured ones do."""

    def __call__(self, images: Tensor, step: int) -> Any:
        hold(self.detector, step)
        return super().__call__(images, step)

    def _set_rates(self, step: int) -> None:
        super()._set_rates(step)
        for group in self.groups:
            group["lr"] = torch.as_tensor(group["lr"])


def lengths(detector: Detector) -> list[int]:
    """How many steps each phase lasts; one that comes back is another."""
    phases = (detector.phase(step) for step in range(detector.config.steps))
    return [len(list(group)) for _, group in itertools.groupby(phases)]


class Counter(Detector):
    """Its loss is the step: whoever reads `step` when replayed reads an old one."""

    capturable = True

    def __init__(self, steps: int = 20) -> None:
        super().__init__(DetectorConfig(steps=steps, lr=0.5), SceneShape(1, 2, 2))
        self.weight = nn.Parameter(torch.zeros(()))

    def schedule(self, step: int) -> dict[str, float]:
        return {"now": float(step), "three": 3.0}

    def phase(self, step: int) -> str:
        return "early" if step < 9 else "late"

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        late = {} if self.phase(step) == "early" else {"late": self.weight * 0 + 1}
        return {
            "now": self.weight * 0 + self.annealed(step)["now"],
            "image": images.mean() + self.weight * 0,
        } | late


def test_each_replay_gets_its_own_images_and_numbers() -> None:
    recorder = Again()
    take = steps_of(Counter(), CapturedSteps, recorder)
    kept = []
    for step in range(20):
        names, losses = take(torch.full((1, 1, 2, 2), step / 100), step)
        kept.append(losses)
        assert names == (["now", "image"] if step < 9 else ["now", "image", "late"])
    assert recorder.records == 2
    for step, losses in enumerate(kept):  # none was written over by a later replay
        assert losses[:2].tolist() == pytest.approx([step, step / 100])


def test_a_loss_that_is_read_from_the_step_is_caught_by_the_comparison() -> None:
    class Stale(Counter):
        def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
            return {"now": self.weight * 0 + step}

    take = steps_of(Stale(), CapturedSteps, Again())
    found = [float(take(torch.zeros(1, 1, 2, 2), step)[1]) for step in range(9)]
    assert found == [0, 1, 2, 3, 3, 3, 3, 3, 3]


def test_an_error_while_capturing_says_what_it_was_and_how_to_go_without() -> None:
    class Refuses(Again):
        def record(self, work: Callable[[], None]) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    take = steps_of(Counter(), CapturedSteps, Refuses())
    images = torch.zeros(1, 1, 2, 2)
    for step in range(WARM_STEPS):
        take(images, step)
    with pytest.raises(RuntimeError, match="not permitted") as raised:
        take(images, WARM_STEPS)
    assert "OBJBENCH_EAGER=1" in raised.value.__notes__[0]
    assert "Counter" in raised.value.__notes__[0]


def test_an_optimiser_that_cannot_be_captured_is_named() -> None:
    class Plain(Counter):
        def optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(self.parameters(), lr=0.1)]

    with pytest.raises(TypeError, match="SGD cannot be captured"):
        CudaGraph.prepare(FakeGraph(), Plain().optimizers())


def test_steps_after_captured_ones_have_optimisers_as_they_were_made() -> None:
    """A checkpoint of captured steps says `capturable`, which a CPU refuses."""
    detector = SMALL[2].detector()
    steps = steps_of(detector)
    for group in steps.groups:
        group["capturable"] = True
    with pytest.raises(AssertionError, match="capturable"):
        steps(SMALL[2].images(0), 0)
    again = type(steps)(detector, steps.optimizers, steps.initial)
    again(SMALL[2].images(0), 0)
    assert not any(group["capturable"] for group in again.groups)


# The whole loop, as it is on a GPU but for the recorder


@pytest.fixture
def captured_way(monkeypatch: pytest.MonkeyPatch) -> list[Again]:
    """Has `train` capture its steps and make batches ahead; the recorders it used."""
    recorders: list[Again] = []

    @contextlib.contextmanager
    def execution_for(
        detector: Detector, optimizers: Any, initial: Any, images_of: Any, first: int
    ) -> Iterator[Execution]:
        recorders.append(Again())
        ahead = Ahead(images_of, range(first, detector.config.steps), CPU)
        take = CapturedSteps(detector, optimizers, initial, recorders[-1], ahead.lock)
        try:
            yield Execution(take, ahead, ahead.lock)
        finally:
            take.close()
            ahead.close()

    monkeypatch.setattr("objbench.train.loop.execution_for", execution_for)
    return recorders


def test_captured_training_stopped_anywhere_and_resumed_is_the_same(
    tmp_path: Path, captured_way: list[Again], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = toy_cell("toy", "toy.steps=24", "toy.lr_end=0.1", "squares.size=20")
    whole = train_here(tmp_path / "whole", cell)
    assert [recorder.records for recorder in captured_way] == [1]
    for stop_after in (0, 4, 11):
        folder = tmp_path / f"after-{stop_after}"
        train_here(folder, cell, stop_after)
        torch.manual_seed(stop_after)
        assert equal(train_here(folder, cell), whole), f"stopped after {stop_after}"
    train_here(tmp_path / "mixed", cell, 11)
    monkeypatch.undo()
    train_here(tmp_path / "mixed", cell)
    train_here(tmp_path / "plain", cell)
    curves = [position(tmp_path / name).curve for name in ("plain", "whole", "mixed")]
    assert len(curves[0]) == 24
    for plain, *others in zip(*curves, strict=True):
        for row in others:  # to rounding: rates are in single precision when captured
            assert row["terms"] == pytest.approx(plain["terms"], rel=1e-5)


def test_a_data_set_that_breaks_ends_captured_training(
    tmp_path: Path, captured_way: list[Again], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = toy_cell("toy", "toy.steps=24")
    built = build_training(toys(), cell.training, "cpu")
    scenes = type(built.train_source).scenes

    def breaks(self: Any, split: Any, indices: Tensor) -> Any:
        if int(indices[0]) >= 5 * built.detector.config.batch_size:
            raise OSError("the disk is gone")
        return scenes(self, split, indices)

    monkeypatch.setattr(type(built.train_source), "scenes", breaks)
    with pytest.raises(OSError, match="the disk is gone"):
        train_here(tmp_path / "cell", cell, evaluate=False)
    assert not any(t.name == "objbench-batches" for t in threading.enumerate())


# Batches made ahead


def test_batches_come_in_order_and_only_so_many_are_made_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> Tensor:
        made.append(step)
        return torch.full((2,), float(step))

    ahead = Ahead(make, range(5, 40), CPU)
    try:
        for step in range(5, 15):
            assert ahead(step).tolist() == [step, step]
            assert len(made) <= step - 5 + AHEAD + 3
        until(ahead._made.full)
        with ahead.lock:
            before = len(made)
            ahead(15), ahead(16)
            assert len(made) == before, "nothing is made while the lock is held"
    finally:
        ahead.close()
    assert made == list(range(5, 5 + len(made)))
    assert not ahead._thread.is_alive()


def until(is_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_what_making_a_batch_raises_is_raised_where_the_batch_is_used() -> None:
    def make(step: int) -> Tensor:
        if step == 2:
            raise OSError("the disk is gone")
        return torch.zeros(1)

    ahead = Ahead(make, range(10), CPU)
    ahead(0), ahead(1)
    with pytest.raises(OSError, match="the disk is gone"):
        ahead(2)
    ahead.close()


def test_closing_ends_a_thread_that_waits_for_room() -> None:
    ahead = Ahead(lambda step: torch.zeros(1), range(1000), CPU)
    ahead(0)
    ahead.close()
    assert not any(t.name == "objbench-batches" for t in threading.enumerate())
