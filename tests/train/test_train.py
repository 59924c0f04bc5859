"""What a training step and the loop around it promise, apart from stopping and resuming (`test_resume.py`)."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from objbench.cells.protocols import protocol
from objbench.cells.result import Event, Position
from objbench.cells.store import position, read_curve
from objbench.detector import Detections, Detector, DetectorConfig
from objbench.scenes import Scenes, SceneShape
from objbench.score.trained import build_training
from objbench.train import loop, outcome
from objbench.train.checkpoint import remove, restore, save
from objbench.train.loop import Saver, Watch, train
from objbench.train.steps import Diverged, InitialGroup, Steps, check_finite, rate_left, terms_of
from running import toy_cell, toys


@dataclass(frozen=True)
class LineConfig(DetectorConfig):
    """A line's options."""


class Line(Detector):
    """loss = slope . (1, 2): its gradient is known, and a step of SGD moves it by rate x gradient."""

    Config = LineConfig

    def __init__(self, **options: float) -> None:
        super().__init__(LineConfig(**{"steps": 100, "lr": 0.5, **options}), SceneShape(1, 4, 4))
        self.slope = nn.Parameter(torch.zeros(2))

    def training_step(self, images: Tensor, step: int) -> Tensor:
        return (self.slope * torch.tensor([3.0, 4.0])).sum()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        first, second = self.slope, nn.Parameter(torch.zeros(1))
        groups = [{"params": [first]}, {"params": [second], "lr": 0.1}]
        return [torch.optim.SGD(groups, lr=self.config.lr)]

    def detect(self, images: Tensor) -> Detections:
        raise NotImplementedError


IMAGES = torch.zeros(2, 1, 4, 4)


def steps_of(line: Line) -> Steps:
    optimizers = line.optimizers()
    return Steps(line, optimizers, InitialGroup.of(optimizers))


# Steps


def test_the_learning_rate_stays_to_the_half_and_falls_evenly_to_its_end() -> None:
    assert [rate_left(done, 0.2) for done in (0, 0.3, 0.5)] == [1, 1, 1]
    assert [rate_left(done, 0.2) for done in (0.75, 0.875, 1)] == pytest.approx([0.6, 0.4, 0.2])


@pytest.mark.parametrize(("lr_end", "share"), [(1.0, 1.0), (0.2, 0.6)])
def test_a_step_moves_every_group_by_its_own_rate_as_far_as_it_has_fallen(
    lr_end: float, share: float
) -> None:
    line = Line(lr_end=lr_end)
    steps = steps_of(line)
    steps(IMAGES, 75)
    torch.testing.assert_close(line.slope.detach(), -0.5 * share * torch.tensor([3.0, 4.0]))
    assert [group["lr"] for group in steps.groups] == pytest.approx([0.5 * share, 0.1 * share])
    steps(IMAGES, 0)  # the rate is that of the step, whatever steps were before
    assert [group["lr"] for group in steps.groups] == pytest.approx([0.5, 0.1])


def test_rates_that_do_not_fall_are_the_detectors_own_affair() -> None:
    steps = steps_of(Line(lr_end=1.0))
    steps.groups[0]["lr"] = 0.3
    steps(IMAGES, 75)
    assert [group["lr"] for group in steps.groups] == [0.3, 0.1]


def test_gradients_are_those_of_the_step_alone_and_clipped_if_asked() -> None:
    for clip_norm, expected in ((0.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (50.0, [3.0, 4.0])):
        line = Line(clip_norm=clip_norm)
        steps = steps_of(line)
        for _ in range(2):
            steps(IMAGES, 0)
            torch.testing.assert_close(line.slope.grad, torch.tensor(expected))


def test_terms_are_named_scalars_of_any_shape_with_one_value() -> None:
    names, values = terms_of({"a": torch.tensor(1.0), "b": torch.tensor([[2.0]]).double()})
    assert (names, values.tolist(), values.dtype) == (["a", "b"], [1, 2], torch.float32)
    assert terms_of(torch.tensor(3.0))[0] == ["loss"]
    with pytest.raises(ValueError, match=r"loss term 'b' has shape \[2\]; it must be a scalar"):
        terms_of({"a": torch.tensor(1.0), "b": torch.zeros(2)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_by_step_and_term(bad: float) -> None:
    fine = (["a", "b"], torch.tensor([1.0, 2.0]))
    check_finite([fine] * 4, 9)
    with pytest.raises(Diverged, match=f"the loss became {bad} at step 7: its term 'b'"):
        check_finite([fine, (["a", "b"], torch.tensor([1.0, bad])), fine, fine], 9)


# The loop


class Recording(Watch):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        self.events.append(event)

    def due(self, at: Position, steps: int) -> bool:
        return at.step % max(1, steps // 20) == 0

    def evaluate(self) -> dict[str, float]:
        return {"ap": 0.5}


def train_toy(folder: Path, *options: str) -> tuple[Position, Recording]:
    cell, watch = toy_cell("toy", *options), Recording()
    built = build_training(toys(), cell.training, "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    return train(built.detector, built.train_source, 0, folder, watch, fit_scenes=8), watch


def test_the_curve_has_twenty_points_of_which_the_last_is_the_end(tmp_path: Path) -> None:
    at, _ = train_toy(tmp_path, "toy.steps=45")
    assert [row["step"] for row in at.curve] == [*range(2, 45, 2), 45]
    assert (at.step, at.images) == (45, 45 * 8)
    for row in at.curve:
        assert row["loss"] == pytest.approx(sum(row["terms"].values()))
        assert row["metrics"] == {"ap": 0.5}
        assert row["watch"].keys() == {"scale"}
    assert at.curve[-1]["seconds"] == at.seconds > at.curve[0]["seconds"]
    assert read_curve(tmp_path) == at.curve
    assert position(tmp_path).curve == at.curve


def test_on_a_cpu_scenes_are_read_where_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = toy_cell("toy", "toy.steps=3")
    built = build_training(toys(), cell.training, "cpu")
    read_on, scenes = set(), built.train_source.scenes

    def remember(*given: Any) -> Scenes:
        read_on.add(threading.current_thread())
        return scenes(*given)

    monkeypatch.setattr(built.train_source, "scenes", remember)
    train(built.detector, built.train_source, 0, tmp_path, Watch(), fit_scenes=8)
    assert read_on == {threading.current_thread()}


def test_a_loss_that_is_read_late_is_named_by_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where losses are read only now and then."""

    class Unread(Steps):
        def __call__(self, images: Tensor, step: int) -> tuple[list[str], Tensor]:
            return ["prior"], torch.tensor([float("nan") if step == 7 else 1.0])

    monkeypatch.setattr(loop, "Steps", Unread)
    monkeypatch.setattr(loop, "READ_S", 1000.0)
    with pytest.raises(Diverged, match="the loss became nan at step 7: its term 'prior'"):
        train_toy(tmp_path, "toy.steps=200")  # points every ten steps


def test_checkpoints_are_not_saved_more_often_than_asked_or_than_they_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    def saving(*_: object) -> None:
        now[0] += 2

    monkeypatch.setattr(loop.checkpoint, "save", saving)
    saver = Saver(tmp_path, Position(), Line(), [], every_s=10)
    due = []
    for now[0] in (109.0, 110.0):
        due.append(saver.due())
    saver.save()  # takes two seconds, until 112: the next is worth it after a hundred
    for now[0] in (211.0, 212.0):
        due.append(saver.due())
    assert due == [False, True, False, True]


def test_only_the_newest_checkpoint_is_kept_and_a_training_that_ended_keeps_none(tmp_path: Path) -> None:
    line = Line()
    for step in (3, 5):
        save(tmp_path, Position(step=step), line, line.optimizers())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-5.safetensors", "checkpoint.json"]
    remove(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove(tmp_path)


def test_what_optimisers_keep_comes_back_as_what_it_was(tmp_path: Path) -> None:
    line = Line()
    saved, new = (torch.optim.Adam(line.parameters(), betas=(0.5, 0.6)) for _ in range(2))
    kept = {"list": [1, [2.5, None]], "tuple": (True, ("a", 1)), "dict": {"x": [], "y": ()}}
    saved.param_groups[0]["kept"] = kept
    save(tmp_path, Position(step=4), line, [saved])
    assert restore(tmp_path, line, [new]).step == 4
    assert new.param_groups[0]["kept"] == kept
    assert new.param_groups[0]["betas"] == (0.5, 0.6)


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path: Path) -> None:
    line = Line()
    (optimizer,) = line.optimizers()
    optimizer.param_groups[0]["odd"] = {1, 2}
    with pytest.raises(TypeError, match=r"the state.*odd is set, which a checkpoint cannot hold"):
        save(tmp_path, Position(), line, [optimizer])


# The whole training


def test_what_pictures_need_is_kept_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build_training(toys(), toy_cell("toy").training, "cpu")
    kept = outcome.pictures(built.detector, built.test_source)
    images = built.test_source.scenes("test", torch.arange(100)).images
    assert kept["images"].dtype == kept["reconstructions"].dtype == torch.uint8
    assert torch.equal(kept["images"], (images * 255).round().byte())
    assert len(kept["reconstructions"]) == 8
    assert built.detector.training, "it is left as it was"
    beyond = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5]).view(1, 1, 1, 5)
    monkeypatch.setattr(type(built.detector), "reconstruct", lambda *_: beyond)
    assert outcome.pictures(built.detector, built.test_source)["reconstructions"].flatten().tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]
    monkeypatch.setattr(type(built.detector), "reconstruct", lambda *_: None)
    assert outcome.pictures(built.detector, built.test_source).keys() == {"images"}
    monkeypatch.setattr(type(built.detector), "reconstruct", lambda *_: 1 / 0)
    assert outcome.pictures(built.detector, built.test_source).keys() == {"images"}


def test_a_detector_that_is_fitted_says_how_long_that_took_and_on_how_many_images(tmp_path: Path) -> None:
    built = build_training(toys(), toy_cell("toy-fit").training, "cpu")
    few, watch = replace(protocol("demo"), test_scenes=4, fit_scenes=8), Recording()
    began = time.perf_counter()
    at = outcome.run_training(built, 0, few, tmp_path, watch).position
    assert 0 < at.seconds < time.perf_counter() - began
    assert at.images == 8
    assert watch.events == [{"phase": "fitting"}, {"phase": "detecting"}]


def test_a_state_that_cannot_be_saved_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, watch = build_training(toys(), toy_cell("toy").training, "cpu"), Recording()
    monkeypatch.setattr(built.detector, "state_dict", lambda: {"odd": {1, 2}})
    with pytest.raises(TypeError, match="its state 'odd' is set; weights can only be tensors"):
        outcome.run_training(built, 0, protocol("demo"), tmp_path, watch)
    assert watch.events == []


def test_a_training_that_changed_machines_says_so(tmp_path: Path) -> None:
    cell = toy_cell("toy", "toy.steps=6")
    built = build_training(toys(), cell.training, "cpu")
    few = replace(protocol("demo"), test_scenes=4, fit_scenes=8)
    optimizers = built.detector.optimizers()
    save(tmp_path, Position(step=2, machine="an abacus"), built.detector, optimizers)
    done = outcome.run_training(built, 0, few, tmp_path, Watch())
    assert done.warnings == [f"trained on an abacus to step 2, then on {done.position.machine}"]
    other = tmp_path / "other"
    other.mkdir()
    built = build_training(toys(), cell.training, "cpu")
    assert outcome.run_training(built, 0, few, other, Watch()).warnings == []
