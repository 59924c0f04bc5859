"""How long the quick commands take, beside a bare Python: the whole process, best of ten.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUNS = 10
OBJBENCH = str(Path(sys.executable).with_name("objbench"))
COMMANDS = {
    "bare python": [sys.executable, "-c", "pass"],
    "objbench --help": [OBJBENCH, "--help"],
    "objbench list models": [OBJBENCH, "list", "models"],
    "objbench plugins": [OBJBENCH, "plugins"],
}


PLUGINS = 10
PLUGIN = """from objbench import ModelSpec, hookimpl

@hookimpl
def objbench_models():
    return [ModelSpec("tenth-{i}", "a plugin", "tenth_{i}.model:Model")]
"""


def rows() -> list[dict[str, Any]]:
    """One row a command: name, value, unit, note."""
    asked = "asked for: under 0.2, warm"
    found = [
        {"name": f"startup: {name}", "value": _best(words), "unit": "s", "note": asked}
        for name, words in COMMANDS.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(PLUGINS):
            _install(Path(folder), i)
        for name in ("objbench --help", "objbench list models"):
            with_them, without = _bests(
                COMMANDS[name], [os.environ | {"PYTHONPATH": folder}, dict(os.environ)]
            )
            note = f"ten plugins installed: {with_them:.3f} s, not: {without:.3f} s; asked for: under 0.02"
            more = {"value": with_them - without, "unit": "s", "note": note}
            found.append({"name": f"ten plugins: {name}", **more})
    return found


def _install(place: Path, i: int) -> None:
    """A package that registers a model, as pip lays it out."""
    (place / f"tenth_{i}").mkdir()
    (place / f"tenth_{i}" / "__init__.py").write_text(PLUGIN.format(i=i))
    info = place / f"tenth_{i}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tenth-{i}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[objbench]\ntenth-{i} = tenth_{i}\n")


def _best(words: list[str]) -> float:
    return _bests(words, [dict(os.environ)])[0]


def _bests(words: list[str], environments: list[dict[str, str]]) -> list[float]:
    """The least seconds in each environment, tried in turn: what else the machine does falls on all alike."""
    taken: list[list[float]] = [[] for _ in environments]
    for _ in range(RUNS):
        for of_this, environment in zip(taken, environments, strict=True):
            start = time.perf_counter()
            subprocess.run(words, capture_output=True, check=True, env=environment)
            of_this.append(time.perf_counter() - start)
    return [min(of_this) for of_this in taken]


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<30} {row['value']:>6.3f} {row['unit']:<2} {row['note']}")
