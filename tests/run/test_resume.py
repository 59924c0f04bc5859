"""Killed at any instant, nothing is lost but the steps since the last checkpoint, and the end is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objbench.cells.files import read_json
from objbench.cells.identity import Cell, write_cell
from objbench.cells.store import Store, position, read_record, read_trained, write_record
from objbench.run.runner import Runner
from objbench.score.arrays import load_tensors
from objbench.train.batches import batch_indices
from running import TOY, rows_of, run, run_here, toy_cell
from stopping import equal, train_here

LONG = ["toy.steps=100", "toy.at=20", "toy.lr_end=0.1", "squares.size=50"]
"""Options of a training of several epochs."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights of a cell that is done."""
    read_trained(folder)
    return load_tensors(folder / "weights.safetensors")


def when(is_so: Any, then: Any) -> threading.Thread:
    """Calls `then` from another thread once `is_so()`; join it to see that it came to that."""

    def wait() -> None:
        limit = time.monotonic() + 300
        while not is_so():
            assert time.monotonic() < limit
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def process_of(folder: Path) -> int:
    """The id of the process that trains the cell in `folder`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"objbench.run.worker" in words and str(folder).encode() in words:
                return int(entry.name)
    raise AssertionError("no process trains it")


@pytest.mark.slow
@pytest.mark.usefixtures("real_processes")  # `process_of` looks at command lines
def test_stopped_then_killed_then_resumed_equals_never_stopped(tmp_path: Path) -> None:
    out, slow, cell = tmp_path / "killed", tmp_path / "slow", toy_cell("toy", *LONG)
    slow.touch()  # from step 20 on there is time to stop it and to kill it
    folder = Store(out).folder(cell.training.key)
    words = [word for option in (*LONG, f"toy.slow={slow}") for word in ("-o", option)]
    often = [*words, "--checkpoint-every", "0", "--json"]

    stop = when(
        lambda: position(folder).step >= 20,
        lambda: os.kill(os.getpid(), signal.SIGINT),
    )
    ran = run(out, "toy", *often)
    stop.join()
    (row,) = rows_of(ran)
    assert (ran.code, row["status"]) == (130, "interrupted")
    first = row["train_steps"]
    assert 20 < first < 100
    assert f"interrupted at step {first} of 100" in run(out, "toy", *words, "--plan").out

    kill = when(
        lambda: position(folder).step > first,
        lambda: os.kill(process_of(folder), signal.SIGKILL),
    )
    ran = run(out, "toy", *often)
    kill.join()
    (row,) = rows_of(ran)
    assert (ran.code, row["status"]) == (1, "failed")
    assert first < row["train_steps"] < 100

    slow.unlink()
    ran = run(out, "toy", *words)
    assert ran.code == 0, ran
    assert not list(folder.glob("checkpoint*")), "a cell that is done needs none"
    whole = run_here(tmp_path / "whole", cell)
    assert equal(weights(folder), weights(Path(whole.path).parent))


@pytest.mark.slow
def test_a_cell_whose_runner_is_gone_saves_and_stops(tmp_path: Path) -> None:
    store, slow = Store(tmp_path / "out"), tmp_path / "slow"
    slow.touch()
    cell = toy_cell("toy", *LONG, f"toy.slow={slow}")
    store.prepare()
    folder = store.folder(cell.key)
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    write_record(folder, cell.result("running"))
    read_end, write_end = os.pipe()
    words = [
        str(folder.parent),
        folder.name,
        "--plugin",
        TOY,
        "--events",
        str(write_end),
        "--checkpoint-every",
        "1000",
    ]
    process = subprocess.Popen([sys.executable, "-m", "objbench.run.worker", *words], pass_fds=[write_end])
    os.close(write_end)
    assert os.read(read_end, 1), "it has begun"
    os.close(read_end)
    assert process.wait(300) == 0
    result, _ = read_record(folder)
    assert result.status == "interrupted"
    assert 0 < result.train_steps < 100


# The same in one process, at many places


@pytest.mark.slow
def test_stopping_anywhere_changes_no_bit(tmp_path: Path) -> None:
    cell = toy_cell("toy", "toy.steps=24", "toy.lr_end=0.1", "squares.size=20")
    whole = train_here(tmp_path / "whole", cell)
    curve = position(tmp_path / "whole").curve
    for stop_after in (0, 1, 6, 11, 22):
        folder = tmp_path / f"after-{stop_after}"
        train_here(folder, cell, stop_after)
        assert position(folder).step == stop_after + 1
        torch.manual_seed(stop_after)  # whatever state the new process begins with
        assert equal(train_here(folder, cell), whole), f"stopped after {stop_after}"
        again = position(folder).curve
        assert [r["terms"] for r in again] == [r["terms"] for r in curve]
    every = tmp_path / "every"
    for _ in range(24):
        last = train_here(every, cell, 0)
    assert equal(last, whole), "stopped after every step"


def test_killed_while_it_is_scored_it_is_not_trained_again(tmp_path: Path) -> None:
    cell = toy_cell("toy", "toy.steps=6")
    store = Store(tmp_path)
    store.prepare()
    folder = store.folder(cell.training.key)
    trained = train_here(folder, cell)
    seconds = position(folder).seconds
    result = run_here(tmp_path, cell)
    assert (result.status, result.seconds) == ("done", seconds)
    assert equal(weights(folder), trained)


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    cell = toy_cell("toy", "toy.steps=20")
    assert equal(train_here(tmp_path / "a", cell), train_here(tmp_path / "b", cell, evaluate=False))


def test_seeds_differ(tmp_path: Path) -> None:
    one, other = toy_cell("toy", "toy.steps=2"), toy_cell("toy", "toy.steps=2", seed=1)
    assert not equal(train_here(tmp_path / "a", one), train_here(tmp_path / "b", other))


def test_a_checkpoint_is_tensors_and_json_alone(tmp_path: Path) -> None:
    cell = toy_cell("toy", "toy.steps=6")
    train_here(tmp_path / "c", cell, 2)
    (tensors,) = (tmp_path / "c").glob("checkpoint-*")
    assert tensors.name == "checkpoint-3.safetensors"
    assert {p.suffix for p in (tmp_path / "c").iterdir()} <= {".json", ".jsonl", ".safetensors"}
    state = read_json(tmp_path / "c" / "checkpoint.json")
    assert state["position"]["step"] == 3
    names = load_tensors(tensors)
    assert any("exp_avg" in name for name in names)
    assert any("momentum_buffer" in name for name in names)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), batch=st.integers(1, 25), seed=st.integers(0, 5))
def test_every_epoch_shows_every_scene_once(size: int, batch: int, seed: int) -> None:
    steps = -(-3 * size // batch)
    shown = torch.cat([batch_indices(size, seed, step, batch) for step in range(steps)])
    for epoch in range(3):
        assert sorted(shown[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))
    assert torch.equal(batch_indices(size, seed, steps - 1, batch), shown[-batch:])


def test_a_split_without_end_is_read_in_order() -> None:
    assert batch_indices(None, 3, 2, 4).tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-3.safetensors"])
def test_a_damaged_checkpoint_is_set_aside_and_the_cell_run_again(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cell, words = Store(tmp_path), toy_cell("toy", "toy.steps=4"), ["-o", "toy.steps=4"]
    store.prepare()
    folder = store.folder(cell.training.key)
    train_here(folder, cell, 2)
    of_cell = store.folder(cell.key)
    of_cell.mkdir()
    write_cell(of_cell, cell)
    write_record(of_cell, cell.result("interrupted"))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert f"damaged, to be set aside and run again: {name}" in run(tmp_path, "toy", *words, "--plan").out

    def start_here(
        runner: Runner, cells: list[Cell], lock: int
    ) -> None:  # a process of its own takes seconds
        runner.results |= {cell.key: run_here(tmp_path, cell) for cell in cells}
        os.close(lock)

    monkeypatch.setattr(Runner, "_start", start_here)
    ran = run(tmp_path, "toy", *words)
    assert ran.code == 0
    assert f"{name} was cut short" in ran.err
    assert f"renamed to {cell.training.key}.broken-1" in ran.err
    assert (tmp_path / "cells" / f"{cell.training.key}.broken-1" / name).exists()
    assert read_record(of_cell)[0].status == "done"
