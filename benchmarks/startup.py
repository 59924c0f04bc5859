"""How long the quick commands take, beside a bare Python: the whole process, best of ten.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
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


def rows() -> list[dict[str, Any]]:
    """One row a command: name, value, unit, note."""
    return [
        {"name": f"startup: {name}", "value": _best(words), "unit": "s", "note": "asked for: under 0.2, warm"}
        for name, words in COMMANDS.items()
    ]


def _best(words: list[str]) -> float:
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(words, capture_output=True, check=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<30} {row['value']:>6.3f} {row['unit']:<2} {row['note']}")
