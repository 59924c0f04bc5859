"""The benchmarks run, and their records compare."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from benchmarks import scheduling, steps
from benchmarks.__main__ import compare
from benchmarks.storm import KINDS, Storm, storm


@pytest.mark.slow
def test_a_step_is_measured_beside_its_plain_version_and_its_floor():
    """The smallest case is timed; every plain version names the case it stands beside."""
    for case in steps.CASES.values():
        assert (case.against in steps.CASES) == case.plain, case
    (row,) = steps.rows(threads=1, names=["spair step (demo, gated)"])
    assert row["seconds"] > 0
    assert row["images"] == 32
    assert row["megabytes"] > 100
    assert row["gflop"] > 0.1
    assert 0 < row["of_floor"] < 1
    assert "steps/s" in row["note"]


def test_two_records_are_compared(tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps({"rows": [{"name": "a step", "value": 2.0}, {"name": "gone", "value": 1.0}]}))
    new.write_text(json.dumps({"rows": [{"name": "a step", "value": 0.5}]}))
    compare(old, new)
    told = capsys.readouterr().out
    assert "x0.25" in told
    assert f"only in {old}" in told


def test_an_unknown_benchmark_is_reported_in_a_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "stepz"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no benchmark named 'stepz'" in done.stderr
    assert "steps" in done.stderr


@pytest.mark.slow
def test_a_short_storm_changes_no_figure(tmp_path, real_processes):
    """Two faults; `python -m benchmarks storm` tries many. It finds processes by their command lines."""
    said = []
    assert (
        storm(tmp_path, kills=2, seconds=90, seeds=1, kinds=("kill all", "kill a cell"), say=said.append)
        == []
    )
    assert "are equal" in said[-1]
    assert sum("kill" in line and " s  " in line for line in said) == 2


@pytest.mark.slow
def test_sleeping_cells_are_scheduled():
    """Few of them; as a benchmark there are 2,000."""
    found = {row["name"]: row["value"] for row in scheduling.rows(count=12, slots=6, seconds=0.2)}
    assert 0 < found["scheduling: delay, median"] <= found["scheduling: delay, 99 of 100"]
    assert found["scheduling: store, a cell"] > 100, "the last checkpoint is in it"


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"),
    reason="the clock of a program is changed by a library that a C compiler makes, and that Linux preloads",
)
def test_the_clock_of_a_storm_jumps_and_that_of_the_machine_does_not(tmp_path):
    with Storm(tmp_path, 1, 0, print) as run:
        assert run.faked
        run.disturb("clock jumps")
        run.set_clock(-1000)
        line = [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"]
        before = time.time(), time.monotonic()
        said = subprocess.run(line, capture_output=True, check=True, env=os.environ | run.faked).stdout
        wall, steady = map(float, said.split())
        assert abs(wall - before[0] + 1000) < 100
        assert abs(steady - before[1]) < 100
        assert run.faults["clock jumps"] == 1
    assert "clock jumps" in KINDS


def test_a_fault_of_a_storm_waits_for_what_it_strikes(tmp_path, monkeypatch):
    with Storm(tmp_path, 1, 0, print) as run:
        monkeypatch.setattr(run, "cells", list)
        assert not run.has_a_target("kill a cell")
        assert not run.has_a_target("cut a checkpoint short")
        assert run.has_a_target("kill all")
        (run.out / "cells" / "a").mkdir(parents=True)
        (run.out / "cells" / "a" / "checkpoint-3.safetensors").touch()
        assert run.has_a_target("cut a checkpoint short")
