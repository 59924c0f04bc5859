"""An author's day, by the commands of the docs as they are: a package each for a detector, a data set and a metric, and
the two detectors of the guide as files; checked, planned, run, looked at, changed and run again.

With `-s` it prints what each command took.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from running import objbench
from test_new import python_with, run_in

DOCS = Path(__file__).parents[1] / "docs"
SHORT = ["-o", "my-det.steps=40", "-o", "gmm.restarts=1"]


def code_of(page: str) -> str:
    """The first code of a page of the docs."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)[0]


class Day:
    """Runs commands as an author types them, and keeps how long they took."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python, self.folder, self.took = python, folder, list[float]()

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        began = time.monotonic()
        ran = run_in(self.python, *words, cwd=self.folder)
        self.took.append(time.monotonic() - began)
        print(f"{self.took[-1]:6.1f} s  objbench {' '.join(words)}", flush=True)
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        return ran


@pytest.mark.slow
def test_an_authors_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kinds = {"model": "my-det", "data": "my-scenes", "metric": "my-metric"}
    for kind, name in kinds.items():
        assert objbench("new", kind, name, "--to", str(tmp_path / name)).code == 0
    python = python_with(tmp_path / "venv", *(tmp_path / name for name in kinds.values()))
    for page, name in (("plugins.md", "blobs.py"), ("masks.md", "slots.py")):
        (tmp_path / name).write_text(code_of(page))
    day = Day(python, tmp_path)

    listed = day("plugins").stdout
    assert all(name in listed for name in kinds.values())
    for name in kinds.values():
        assert ", 0 failed, " in day("check", name).stdout
    assert ", 0 failed, " in day("check", "blobs.py", "-o", "blobs.lr=0.003").stdout
    assert "warning: only zeros" not in day("check", "slots.py").stdout

    mine = ["run", "--models", "my-det", "--data", "my-scenes", *SHORT]
    planned = day(*mine, "--plan").stdout
    assert "at the pace that objbench check measured" in planned, "it has just been checked"
    ran = day(*mine, "--log", "csv")
    assert "0.0 steps/s" not in ran.stderr
    (cell,) = (tmp_path / "runs" / "cells").glob("*/*/record.json")
    assert (cell.parents[1] / "log.csv").read_text().startswith("step,name,value\n")
    assert {"scenes.png", "curves.png"} <= {path.name for path in cell.parent.iterdir()}
    assert "nothing to run" in day(*mine).stderr

    files = ["--plugin", "blobs.py", "--plugin", "slots.py"]
    both = ["run", "--models", "my-det,blobs,slots", "--data", "my-scenes", *SHORT, *files]
    both += ["-o", "blobs.steps=40", "-o", "blobs.lr=0.003", "-o", "slots.steps=20"]
    ran = day(*both)
    assert ran.stderr.count("pictures of") == 2, "my-det was done before"
    table = day("report", *files).stdout
    assert all(name in table for name in ("my-det", "blobs", "slots"))
    assert "my-det" in day("report", "--format", "csv").stdout

    source = tmp_path / "venv" / "lib"
    (model,) = source.glob("python*/site-packages/my_det/model.py")
    model.write_text(model.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    assert "new" in day(*mine, "--plan").stdout, "another code is another cell"
    assert "1 of 1 cells to run" in day(*mine, "--plan").stdout
    day("show", cell.parents[1].name, "--out", "runs")

    print(f"{sum(day.took) / 60:.1f} min in all")
