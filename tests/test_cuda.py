"""What needs a GPU: it computes what a CPU computes, and captured training is training.

Training is not compared over many steps: on a GPU sums have no fixed order, and rounding grows tenfold a step. Learning
rates are tiny where losses of many steps are compared; where weights are, the model is one whose sums have an order.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from capturing import SMALL, Case, first_steps, some, steps_of
from objbench.cells.identity import Cell
from objbench.cells.matrix import matrix
from objbench.cells.overrides import parse_overrides
from objbench.cells.protocols import protocol
from objbench.cells.store import position
from objbench.detector import Detector, DetectorConfig
from objbench.errors import Interrupted
from objbench.plugins import load_plugins
from objbench.scenes import SceneShape
from objbench.score.random_state import seed_everything
from objbench.score.trained import build_training
from objbench.train.batches import Ahead
from objbench.train.captured import WARM_STEPS, CapturedSteps, CudaGraph
from objbench.train.loop import EAGER, train
from objbench.train.steps import Steps, terms_of
from running import Until

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch finds none here")
GPU = torch.device("cuda")
LARGE = [
    Case("gmair", "paper", dict(batch_size=2), side=128, channels=3),
    Case("spair", "paper", dict(batch_size=2, where_frozen_steps=0), side=128, channels=3),
    Case("space", "paper", dict(batch_size=1, cell_size=16, components=3, steps=100), side=64, channels=3),
]
"""The networks of the paper, which the small cases do without."""


class NoiseOfTheCpu(TorchFunctionMode):
    """Noise is drawn on the CPU, whatever the device that it is for, and so is the order in which cells are chosen."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.randn_like, torch.rand_like):
            plain = torch.empty(
                args[0].shape, dtype=args[0].dtype
            )  # strides, which may differ, order the noise
            return func(plain, **kwargs).to(args[0].device)
        if func in (torch.randn, torch.rand):
            device = kwargs.pop("device", None)
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.exponential_:
            return args[0].copy_(torch.empty(args[0].shape, dtype=args[0].dtype).exponential_())
        if func is torch.Tensor.topk:  # each kept cell gets the noise of its place in the order
            return torch.return_types.topk(
                [t.to(args[0].device) for t in func(args[0].detach().cpu(), *args[1:], **kwargs)]
            )
        return func(*args, **kwargs)


@pytest.fixture
def single_precision() -> Iterator[None]:
    """Convolutions without TF32, which rounds to a thousandth."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def losses_and_gradients(
    case: Case, step: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[str], Tensor, list[Tensor]]:
    """Of a new detector's first step, on the CPU."""
    detector = case.detector().to(device, dtype)
    images = case.images(step).to(device, dtype)
    torch.manual_seed(7)
    with NoiseOfTheCpu():
        names, losses = terms_of(detector.training_step(images, step))
    losses.sum().backward()
    gradients = [torch.zeros(()) if p.grad is None else p.grad.cpu() for p in detector.parameters()]
    return names, losses.detach().cpu(), gradients


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("case", some(SMALL + LARGE))
def test_a_gpu_gives_the_losses_and_gradients_of_a_cpu(case: Case, single_precision: None) -> None:
    """In single precision; of GMAIR's paper networks in double. There the overlap loss is large and falls steeply where
    boxes end, so that in single precision the gradients of a CPU, too, are .7 % off those of double precision."""
    precision = torch.float64 if case is LARGE[0] else torch.float32
    for step in first_steps(case.detector()):
        ours, theirs = (losses_and_gradients(case, step, d, precision) for d in (GPU, torch.device("cpu")))
        agree(ours, theirs, step)


def test_double_precision_is_double_on_a_cpu() -> None:
    """So that what the test above does on a GPU is known to work."""
    _, losses, gradients = losses_and_gradients(SMALL[0], 0, torch.device("cpu"), torch.float64)
    assert {g.dtype for g in gradients if g.dim()} == {torch.float64}
    assert torch.isfinite(losses).all()


def agree(ours: Any, theirs: Any, step: int) -> None:
    """To 1e-3: terms of themselves or of the sum's thousandth, gradients of their length, likewise."""
    assert ours[0] == theirs[0]
    slack = 1e-3 * float(theirs[1].abs().sum())
    for name, a, b in zip(ours[0], ours[1].tolist(), theirs[1].tolist(), strict=True):
        assert abs(a - b) <= 1e-3 * max(abs(b), slack), f"step {step}, {name}: {a} on the GPU, {b} on the CPU"
    whole = float(torch.stack([g.norm() for g in theirs[2]]).norm())
    for i, (a, b) in enumerate(zip(ours[2], theirs[2], strict=True)):
        apart = float((a - b).norm())
        assert apart <= 1e-3 * max(float(b.norm()), 1e-3 * whole), (
            f"step {step}, parameter {i}: {apart} apart"
        )


@pytest.mark.parametrize("case", some(SMALL))
def test_the_comparison_can_fail(case: Case) -> None:
    """Tried with a CPU for the GPU: it agrees with itself, and not with other noise, nor with another gradient."""
    step, cpu = first_steps(case.detector())[-1], torch.device("cpu")
    names, losses, gradients = losses_and_gradients(case, step, cpu)
    agree((names, losses, gradients), losses_and_gradients(case, step, cpu), step)
    detector = case.detector()
    torch.manual_seed(8)
    other = terms_of(detector.training_step(case.images(step), step))[1].detach()
    with pytest.raises(AssertionError, match="on the GPU"):
        agree((names, other, gradients), (names, losses, gradients), step)
    largest = max(range(len(gradients)), key=lambda i: float(gradients[i].norm()))
    wrong = [g * 1.002 if i == largest else g for i, g in enumerate(gradients)]
    with pytest.raises(AssertionError, match=f"parameter {largest}:"):
        agree((names, losses, wrong), (names, losses, gradients), step)


# Captured training


def pinned(case: Case, step: int) -> Tensor:
    return case.images(step).pin_memory()


@contextlib.contextmanager
def captured(detector: Detector) -> Iterator[CapturedSteps]:
    graph = CudaGraph(GPU)
    with graph.stream():
        steps = steps_of(detector, CapturedSteps, graph)
        yield steps
        steps.close()


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("case", some(SMALL))
def test_captured_steps_have_the_losses_of_eager_ones(case: Case, single_precision: None) -> None:
    """In all phases, with the same noise: at a rate so small that the weights stay what they are."""
    slow = {"lr": 1e-9} | {
        name: 1e-9 for name in ("lr_what", "lr_background") if hasattr(case.detector().config, name)
    }
    case = Case(case.model, case.protocol, case.options | slow, case.side, case.channels)
    count = case.options["steps"]
    detector = case.detector().to(GPU)
    torch.manual_seed(3)
    with captured(detector) as take:
        ours = [take(pinned(case, step), step) for step in range(count)]
    after = torch.cuda.get_rng_state()
    detector = case.detector().to(GPU)
    eager = steps_of(detector)
    torch.manual_seed(3)
    for step, (names, losses) in enumerate(ours):
        their_names, theirs = eager(pinned(case, step), step)
        assert names == their_names
        torch.testing.assert_close(
            losses, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()), msg=f"step {step}"
        )
    assert torch.equal(after, torch.cuda.get_rng_state()), "as much noise was drawn"


class Line(Detector):
    """Fits a line, with noise, rates that fall and clipped gradients; its sums are the same each time."""

    capturable = True

    def __init__(self, steps: int = 40) -> None:
        super().__init__(DetectorConfig(steps=steps, lr=0.01, lr_end=0.1, clip_norm=1.0), SceneShape(1, 4, 4))
        self.net = nn.Linear(16, 1)

    def schedule(self, step: int) -> dict[str, float]:
        return {"weight": 1 / (1 + step)}

    def phase(self, step: int) -> bool:
        return step >= 20

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        x = images.flatten(1)
        apart = self.net(x + 0.1 * torch.randn_like(x))[:, 0] - x.sum(1)
        terms = {"fit": apart.square().mean()}
        if self.phase(step):
            terms["size"] = self.annealed(step)["weight"] * self.net.weight.square().sum()
        return terms

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.RMSprop([self.net.weight], lr=0.01, foreach=True),
            torch.optim.Adam([self.net.bias], lr=0.01, fused=True),
        ]


def lines(steps: type[Steps]) -> tuple[list[float], list[Tensor]]:
    seed_everything(0)
    detector = Line().to(GPU)
    with captured(detector) if steps is CapturedSteps else contextlib.nullcontext(steps_of(detector)) as take:
        losses = [take(torch.rand(8, 1, 4, 4).pin_memory(), step)[1].sum() for step in range(40)]
        return torch.stack(losses).tolist(), [p.detach().cpu() for p in detector.parameters()]


@pytest.mark.cuda
@on_gpu
def test_captured_training_ends_with_the_weights_of_eager_training() -> None:
    (losses, weights), (their_losses, their_weights) = lines(CapturedSteps), lines(Steps)
    assert losses == pytest.approx(their_losses, rel=1e-4)
    for ours, theirs in zip(weights, their_weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert losses[-1] < losses[0] / 2, "it has learnt"


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("case", some(SMALL))
def test_a_replayed_step_waits_for_nothing(case: Case) -> None:
    with captured(case.detector().to(GPU)) as take:
        images = [pinned(case, step) for step in range(WARM_STEPS + 2)]
        for step in range(WARM_STEPS + 1):
            take(images[step], step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            take(images[WARM_STEPS + 1], WARM_STEPS + 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@on_gpu
def test_what_waits_cannot_be_captured_and_the_error_says_what_to_do() -> None:
    # In a process of its own: what is captured in vain leaves CUDA's state unfit for more.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_cuda as t, torch\n"
        "class Reads(t.Line):\n"
        "    def training_step(self, images, step):\n"
        "        return {n: v * (1 + 0 * v.item()) for n, v in super().training_step(images, step).items()}\n"
        "with t.captured(Reads().to('cuda')) as take:\n"
        "    for step in range(9): take(torch.rand(8, 1, 4, 4).pin_memory(), step)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert "OBJBENCH_EAGER=1" in ended.stderr


@pytest.mark.cuda
@on_gpu
def test_batches_made_ahead_are_pinned() -> None:
    ahead = Ahead(lambda step: torch.full((3,), float(step)), range(5), GPU)
    try:
        batch = ahead(0)
        assert batch.is_pinned()
        assert batch.tolist() == [0, 0, 0]
    finally:
        ahead.close()


# The whole loop


def a_cell(model: str, *options: str) -> Cell:
    """The demo of a detector, so short that it takes seconds."""
    words = [f"{model}.{option}" for option in ("steps=60", "batch_size=4", "lr=1e-9", *options)]
    return matrix(load_plugins(), [model], ["multimnist"], [0], protocol("demo"), parse_overrides(words))[0]


def train_here(folder: Path, cell: Cell, device: str, stop_after: int = 10**9) -> dict[str, Any]:
    """Trains until done or for so many more steps; where the checkpoint then is."""
    folder.mkdir(exist_ok=True)
    built = build_training(load_plugins(), cell.training, device)
    with contextlib.suppress(Interrupted):
        train(
            built.detector,
            built.train_source,
            cell.identity["seed"],
            folder,
            Until(stop_after),
            fit_scenes=8,
        )
    at = position(folder)
    return vars(at) | {"noise": torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()}


CELLS = [
    ("gmair", "lr_what=1e-9", "gate_step=20", "mixture_start=0"),
    ("spair", "gate_step=20"),
    ("space", "lr_background=1e-9"),
]


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("model", CELLS, ids=lambda words: words[0])
def test_stopped_and_resumed_it_goes_on_as_if_not_stopped(model: tuple[str, ...], tmp_path: Path) -> None:
    same_when_resumed(model, tmp_path, "cuda", "captured")


def same_when_resumed(model: tuple[str, ...], tmp_path: Path, device: str, how: str) -> None:
    cell = a_cell(*model)
    whole = train_here(tmp_path / "whole", cell, device)
    assert whole["step"] == 60
    assert how in whole["machine"]
    parts = tmp_path / "parts"
    for stop_after in (1, 9, 24, 10**9):
        ended = train_here(parts, cell, device, stop_after)
        torch.manual_seed(stop_after)  # whatever state the next process begins with
    assert torch.equal(ended["noise"], whole["noise"])
    assert [row["step"] for row in ended["curve"]] == [row["step"] for row in whole["curve"]]
    for ours, theirs in zip(ended["curve"], whole["curve"], strict=True):
        assert ours["terms"] == pytest.approx(theirs["terms"], rel=1e-2, abs=1e-2 * abs(theirs["loss"]))


@pytest.mark.slow
def test_the_same_on_a_cpu(tmp_path: Path) -> None:
    """So that what the test above does is known to work."""
    same_when_resumed(CELLS[0], tmp_path, "cpu", "threads")


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("model", CELLS, ids=lambda words: words[0])
def test_captured_training_goes_on_uncaptured_and_on_a_cpu(
    model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, folder = a_cell(*model), tmp_path / "cell"
    assert train_here(folder, cell, "cuda", 10)["step"] == 11
    assert train_here(folder, cell, "cpu", 1)["step"] == 13
    assert "captured" in train_here(folder, cell, "cuda", 10)["machine"]
    monkeypatch.setenv(EAGER, "1")
    assert "captured" not in train_here(folder, cell, "cuda", 10)["machine"]
    assert position(folder).step == 35
