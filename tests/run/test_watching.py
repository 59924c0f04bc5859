"""What is seen of a training while it runs, and kept: pace, points of the curve, logs."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from objbench.cells.result import Event, Position
from objbench.cells.store import Store, read_curve, read_trained
from objbench.run.log import CSV, TENSORBOARD, CsvLog, TensorBoardLog, open_log
from objbench.run.points import FIRST_S, SHARE, Points
from objbench.run.progress import describe
from objbench.score.arrays import load_tensors
from objbench.score.detect import detect
from objbench.score.samples import POINTS, Sampler, read_samples
from objbench.score.trained import build_training
from objbench.train import loop
from objbench.train.loop import Pace, Watch, train
from running import objbench, run, toy_cell, toys

# Pace


class Clock:
    """A time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Hearing(Watch):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        self.events.append(event)


@pytest.mark.parametrize("resumed_at", [0, 30])
def test_neither_a_pause_nor_a_slow_first_step_changes_the_pace(
    resumed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 0.1 s, the first of a process 20 s, a milestone before step 7 or 37 500 s."""
    cell = toy_cell("toy", "toy.steps=60")
    built = build_training(toys(), cell.training, "cpu")
    detector, clock = built.detector, Clock()
    monkeypatch.setattr(loop, "time", clock)
    first = [True]
    take = detector.training_step

    def slow_step(images: Tensor, step: int) -> Any:
        clock.now += 20.0 if first else 0.1
        first.clear()
        return take(images, step)

    def slow_milestone(images: Tensor, step: int) -> None:
        clock.now += 500
        first.append(True)  # a phase of other kernels begins

    monkeypatch.setattr(detector, "training_step", slow_step)
    monkeypatch.setattr(detector, "at_milestone", slow_milestone)
    monkeypatch.setattr(detector, "milestones", lambda: (resumed_at + 7,))
    monkeypatch.setattr(loop.checkpoint, "restore", lambda *_: Position(step=resumed_at))
    watch = Hearing()
    train(detector, built.train_source, 0, tmp_path, watch, fit_scenes=8)
    paces = {
        event["step"]: event["steps_per_second"] for event in watch.events if "steps_per_second" in event
    }
    assert min(paces) == resumed_at + 1, "the first step is reported, and nothing but it is known then"
    later = {step: pace for step, pace in paces.items() if step > resumed_at + 1}
    assert len(later) >= 4
    assert any(step == resumed_at + 8 for step in later), "the lap that holds the pause is reported"
    assert later == {step: pytest.approx(10) for step in later}
    left = describe({"phase": "", **watch.events[-2], "steps": 60, "step": resumed_at + 10}, [])
    assert f"10.0 steps/s, {(50 - resumed_at) / 10:.0f} s left" in left


def test_a_pace_follows_what_changes_but_not_every_lap() -> None:
    pace = Pace()
    for _ in range(20):
        assert pace.after(5, 0.5) == pytest.approx(10)
    assert pace.after(1, 0.5) > 9, "one slow lap is not the pace"
    for _ in range(100):
        last = pace.after(1, 0.5)
    assert last == pytest.approx(2, rel=0.05)


# Points of the curve


def points(number: int | None, steps: int, step_s: float, point_s: float) -> list[Position]:
    """Where the points of a training lie whose steps and points take so long."""
    at, chosen, found = Position(), Points(number), []
    while at.step < steps:
        at.step += 1
        at.seconds += step_s
        if at.step == steps or chosen.due(at, steps):
            at.curve.append({"step": at.step, "seconds": at.seconds, "validation_seconds": point_s})
            found.append(Position(step=at.step, seconds=at.seconds))
    return found


def test_a_cheap_curve_has_twenty_points() -> None:
    assert [at.step for at in points(None, 60, 1.0, 0.0)] == list(range(3, 61, 3))


@pytest.mark.parametrize(("number", "steps"), [(7, 60), (20, 60), (1, 60), (100, 60), (13, 400)])
def test_a_number_that_was_asked_for_is_kept_whatever_it_costs(number: int, steps: int) -> None:
    found = points(number, steps, 0.01, 100.0)
    assert len(found) == min(number, steps)
    assert found[-1].step == steps
    gaps = [b.step - a.step for a, b in itertools.pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_points_take_a_tenth_of_the_time_and_are_spread_over_all_of_it() -> None:
    """The training that was seen: 54 s, of which twenty points of 1.6 s each took 32 s more."""
    found = points(None, 400, 54 / 400, 1.6)
    assert 1.6 * (len(found) - 2) <= SHARE * 54, "one is begun within the bound, and one is always at the end"
    assert len(found) >= 4
    assert found[1].seconds < 0.5 * 54 < found[-2].seconds + 0.5 * 54


def test_a_long_training_shows_something_after_a_minute_and_then_ever_less_often() -> None:
    found = [at.seconds for at in points(None, 40_000, 1.0, 5.0)]
    assert found[0] == FIRST_S
    assert found[:5] == [60, 120, 240, 480, 960]
    assert len(found) <= 20 + 6


def test_points_go_on_where_a_training_that_was_stopped_had_them() -> None:
    at = Position(step=30, seconds=30.0, curve=[{"step": 29, "seconds": 29.0, "validation_seconds": 9.0}])
    assert not Points().due(at, 60), "they took more than a tenth"
    at = Position(step=30, seconds=30.0, curve=[{"step": 29, "seconds": 29.0}])  # of an earlier version
    assert Points().due(at, 60)


@pytest.mark.slow
def test_how_many_points_there_are_changes_no_weight_and_no_key(tmp_path: Path) -> None:
    words = ["-o", "toy.steps=30"]
    assert run(tmp_path / "few", "toy", *words, "--points", "2").code == 0
    assert run(tmp_path / "many", "toy", *words, "--points", "30").code == 0
    key = toy_cell("toy", "toy.steps=30").training.key
    few, many = (Store(tmp_path / name).folder(key) for name in ("few", "many"))
    assert [row["step"] for row in read_curve(few)] == [15, 30]
    assert [row["step"] for row in read_curve(many)] == list(range(1, 31))
    row = read_curve(few)[-1]
    assert row.keys() == {"step", "seconds", "loss", "terms", "watch", "metrics", "validation_seconds"}
    assert row["terms"].keys() == {"reconstruction", "prior"}
    assert row["loss"] == pytest.approx(sum(row["terms"].values()))
    assert "ap50" in row["metrics"]
    assert "scale" in row["watch"]
    assert row["validation_seconds"] > 0
    for folder, steps in ((few, [15, 30]), (many, list(range(1, 31)))):
        kept = read_samples(folder)
        assert kept
        assert [point.step for point in kept.points] == steps
        assert kept.images.shape == (4, 1, 16, 16)
        assert "samples.safetensors" in read_trained(folder).files
    one, other = (load_tensors(folder / "weights.safetensors") for folder in (few, many))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert objbench("run", "--models", "toy", "--data", "x", "--points", "0").code == 2


def test_samples_go_on_after_a_crash_and_stay_few(tmp_path: Path) -> None:
    cell = toy_cell("toy")
    built = build_training(toys(), cell.training, "cpu")
    found, truth = detect(built.detector, built.test_source, "validation", 6)
    state = torch.get_rng_state()
    sampler = Sampler(tmp_path, 0)
    for step in range(1, 4):
        sampler.add(step, built.detector, built.test_source, found, truth)
    assert torch.equal(torch.get_rng_state(), state)
    sampler = Sampler(tmp_path, 2)  # the process was killed after step 3; its checkpoint is that of step 2
    for step in range(5, 100):
        sampler.add(step, built.detector, built.test_source, found, truth)
    kept = read_samples(tmp_path)
    assert kept
    steps = [point.step for point in kept.points]
    assert len(steps) <= POINTS
    assert (steps[0], steps[-1]) == (1, 99)
    assert 3 not in steps
    last = kept.points[-1].found
    assert torch.equal(last.boxes, found.boxes[found.image < 4])
    (tmp_path / "samples.safetensors").write_bytes(b"half")
    assert Sampler(tmp_path, 2)._points == []


# Logs


EVENT: Event = {
    "step": 5,
    "steps": 9,
    "loss": 2.0,
    "seconds": 0.5,
    "steps_per_second": 1.0,
    "terms": {"a, b": 1.5},
}
POINT: Event = {"step": 9, "loss": 1.0, "watch": {"used": 3.0}, "metrics": {"ap50": 0.25}}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / CSV).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_log_in_csv_holds_all_that_is_reported_of_steps(tmp_path: Path) -> None:
    log = CsvLog(tmp_path, 0)
    for event in (EVENT, {"phase": "scoring"}, POINT):
        log.add(event)
    assert [(row["step"], row["name"], float(row["value"])) for row in rows(tmp_path)] == [
        ("5", "loss", 2.0),
        ("5", "seconds", 0.5),
        ("5", "terms/a, b", 1.5),
        ("9", "loss", 1.0),
        ("9", "watch/used", 3.0),
        ("9", "metrics/ap50", 0.25),
    ]  # at once: nothing was closed
    log.close()


def test_a_point_does_not_repeat_what_was_reported_of_its_step(tmp_path: Path) -> None:
    log = CsvLog(tmp_path, 0)
    log.add({k: v for k, v in POINT.items() if k not in ("watch", "metrics")})
    log.add(POINT)
    log.close()
    assert [row["name"] for row in rows(tmp_path)] == ["loss", "watch/used", "metrics/ap50"]


def test_steps_that_are_taken_again_are_not_twice_in_a_log(tmp_path: Path) -> None:
    log = CsvLog(tmp_path, 0)
    log.add(EVENT)
    log.add(POINT)
    log.close()
    with (tmp_path / CSV).open("a") as file:
        file.write("10,lo")  # killed as it was written
    log = CsvLog(tmp_path, 5)
    log.add(POINT)
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == ["5", "5", "5", "9", "9", "9"]


@pytest.mark.slow
def test_a_run_writes_a_log_beside_the_training_and_no_cell_is_seen_in_it(tmp_path: Path) -> None:
    ran = run(tmp_path, "toy", "--log", "csv", "--points", "4", "-o", "toy.steps=20")
    assert ran.code == 0, ran.err
    cell = toy_cell("toy", "toy.steps=20")
    folder = Store(tmp_path).folder(cell.training.key)
    logged = rows(folder)
    assert {row["step"] for row in logged if row["name"] == "metrics/ap50"} == {"5", "10", "15", "20"}
    assert {"loss", "terms/reconstruction", "terms/prior", "watch/scale", "seconds"} < {
        r["name"] for r in logged
    }
    assert float(logged[-1]["value"]) == pytest.approx(list(read_curve(folder)[-1]["metrics"].values())[-1])
    (folder / TENSORBOARD).mkdir()
    assert Store(tmp_path).cell_keys() == [cell.key]
    assert "left out" not in objbench("report", "--no-intervals", "--out", str(tmp_path)).err
    again = run(tmp_path, "toy", "--log", "tensorboard" if importlib.util.find_spec("tensorboard") else "csv",
                "-o", "toy.steps=20")  # fmt: skip
    assert "nothing to run" in again.err, "how a training is logged is in no key"


@pytest.mark.slow
def test_tensorboard_reads_what_is_written_for_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra objbench[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (0, 5):
        log = open_log("tensorboard", tmp_path, step)
        assert isinstance(log, TensorBoardLog)
        for event in (EVENT, {"phase": "scoring"}, POINT)[: 3 if step == 0 else 0] or (POINT,):
            log.add(event)
        log.close()
        time.sleep(1.1)  # the files are named by the second
    read = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert {"loss", "terms/a, b", "watch/used", "metrics/ap50"} <= {
        tag.replace("_", " ").replace("a  b", "a, b") for tag in read.Tags()["scalars"]
    }
    assert [event.step for event in read.Scalars("loss")] == [5, 9], "step 9 was taken twice"


def test_without_tensorboard_a_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *r: None if n == "tensorboard" else find(n, *r)
    )
    ran = run(tmp_path / "out", "toy", "--log", "tensorboard")
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'objbench[tensorboard]'" in ran.err
    assert not (tmp_path / "out").exists()


# What `run` says at its end


@pytest.mark.slow
def test_pictures_of_cells_that_were_done_before_are_not_listed_again(tmp_path: Path) -> None:
    first = run(tmp_path, "toy", "-o", "toy.steps=3")
    assert first.err.count("pictures of") == 1
    second = run(tmp_path, "toy", "-o", "toy.steps=3", "--seeds", "2")
    assert [line.partition(":")[0] for line in second.err.splitlines() if line.startswith("pictures of")] == [
        "pictures of toy on squares, seed 1"
    ]
    assert json.loads(run(tmp_path, "toy", "-o", "toy.steps=3", "--seeds", "2", "--json").out)
