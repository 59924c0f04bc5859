"""The benchmarks run, and their records compare."""

import json
import subprocess
import sys

import pytest

from benchmarks import steps
from benchmarks.__main__ import compare


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
