"""The program for a machine with a GPU, tried without one."""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import on_gpu
from objbench.score.arrays import load_tensors

ROOT = Path(__file__).resolve().parents[1]


def called(out: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, Any]]]:
    """Runs the program tiny on the CPU; how it ended, and its stages."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.on_gpu",
        "--out",
        str(out),
        "--tiny",
        "--device",
        "cpu",
        *words,
    ]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return ended, {s["stage"]: s for s in json.loads((out / "summary.json").read_text())["stages"]}


@pytest.mark.slow
def test_all_stages_run_and_leave_what_they_promise(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended, stages = called(out, "--minutes", "5")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [(name, stage["status"]) for name, stage in stages.items()] == [
        ("machine", "done"), ("tests", "done"), ("steps", "done"), ("train", "done"),
    ]  # fmt: skip
    assert "skipped" in stages["tests"]["said"] or "passed" in stages["tests"]["said"]
    rows = json.loads((out / "steps.json").read_text())["rows"]
    assert {(row["model"], row["phase"]) for row in rows} == {
        (model, phase) for model in on_gpu.MODELS for phase in ("first", "middle")
    }
    assert all(row["steps_per_second"] > 0 and row["peak_memory_mb"] > 0 for row in rows)
    assert (out / "steps.md").read_text().count("| eager |") == len(rows)
    assert stages["train"]["training"] == "done"
    assert "GMAIR" in (out / "table.md").read_text()
    assert (out / "curve.jsonl").read_text().splitlines()
    weights = load_tensors(out / "weights.safetensors")
    assert not any("optimizer" in name for name in weights)
    assert {str(t.dtype) for t in weights.values() if t.is_floating_point()} == {"torch.bfloat16"}
    assert "| train | done |" in ended.stdout


@pytest.mark.slow
def test_training_stops_in_time_and_a_second_call_goes_on(tmp_path: Path) -> None:
    long = ["-o", "gmair.steps=1000000", "--stages", "train", "--minutes", "0.25"]
    first = called(tmp_path, *long)[1]["train"]
    second = called(tmp_path, *long)[1]["train"]
    assert (first["status"], first["training"], first["exit_code"]) == ("done", "interrupted", 130)
    assert first["cell"] == second["cell"]
    assert first["steps"] < second["steps"]
    assert any(name.startswith("backbone") for name in load_tensors(tmp_path / "weights.safetensors"))


@pytest.mark.slow
def test_a_stage_that_fails_is_recorded_and_the_next_runs(tmp_path: Path) -> None:
    session = on_gpu.Session(tmp_path, 1, "cpu", True)

    def breaks() -> dict[str, Any]:
        raise OSError("no such | thing")

    session.stage("one", breaks)
    session.stage("two", lambda: {"rows": 3})
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [(s["stage"], s["status"]) for s in stages] == [("one", "failed"), ("two", "done")]
    assert stages[0]["error"] == "OSError: no such | thing"
    assert (tmp_path / "summary.md").read_text().count("\n") == 4


def test_without_a_gpu_it_says_so_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    session = on_gpu.Session(tmp_path, 1, "cuda", True)
    with pytest.raises(RuntimeError, match="--device cpu --tiny"):
        on_gpu.machine(session)


@pytest.mark.slow
def test_what_does_not_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    module = tmp_path / "sleeps.py"
    module.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    session = on_gpu.Session(tmp_path / "out", 1, "cpu", True)
    session.environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with pytest.raises(TimeoutError, match="did not end"):
        session.run(["sleeps"], tmp_path / "said", 5)
    child = int((tmp_path / "said").read_text())
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("its child lives on")


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_detector_that_cannot_be_measured_has_a_line_in_the_table() -> None:
    row = {"model": "gmair", "phase": "first", "way": "captured", "batch": 16, "steps_per_second": 300.0}
    table = on_gpu.steps_table(
        [row | {"peak_memory_mb": 5.0, "over_eager": 2.5}], ["spair eager: exit code 1"]
    )
    assert "| gmair | first | captured | 16 | 300 | 4800 | 5 | 2.50 |" in table
    assert "Not measured: spair eager: exit code 1" in table


def test_a_checkout_stands_for_an_installed_objbench(tmp_path: Path) -> None:
    """Without what installing has left in the environment: `-S` runs no .pth file."""
    paths = [str(on_gpu.site(tmp_path / "site")), *site.getsitepackages()]
    code = "from importlib.metadata import distribution as d; print(d('objbench').locate_file(''))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def python(*words: str) -> str:
        command = [sys.executable, "-S", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert python("-c", code).strip() == str(tmp_path / "site")
    assert "gmair" in python("-m", "objbench", "list", "models")
    assert python("-c", "import objbench_plugins.gmair as p; print(p.__file__)").startswith(str(tmp_path))


def test_it_is_no_benchmark_of_the_table() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "on_gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "no benchmark named 'on_gpu'" in ended.stderr
    assert "scenes" in ended.stderr
