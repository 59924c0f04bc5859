"""How long fruit2d-sim takes: a scene, the whole data set, its second use, a game. One core.

python benchmarks/fruit.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from objbench_plugins.fruit2d.drawing import draw
from objbench_plugins.fruit2d.states import SHIPPED, shipped

DRAWN = 400
PLAYED = 60

# In a process of its own with a cache of its own: from an import of torch to the first batch of two splits.
FIRST_BATCH = """
import time, torch
from objbench_plugins.fruit2d.simulated import Fruit2DSim, Fruit2DSimConfig
start = time.perf_counter()
source = Fruit2DSim(Fruit2DSimConfig(size={size}), 0)
for split in ("train", "test"):
    source.scenes(split, torch.arange(16))
print(time.perf_counter() - start)
"""


def rows() -> list[dict[str, Any]]:
    """One row a figure: name, value, unit, note."""
    found = [_row("states shipped", SHIPPED.stat().st_size / 1000, "kB", f"{len(shipped().game):,} scenes")]
    for size in (64, 128):
        start = time.perf_counter()
        for scene in range(DRAWN):
            draw(shipped(), scene, size, "black")
        rate = DRAWN / (time.perf_counter() - start)
        found.append(_row(f"scenes drawn, {size}x{size}", rate, "scenes/s", "asked for at 128x128: over 60"))
        with tempfile.TemporaryDirectory() as cache:
            first, second = _first_batch(size, cache), _first_batch(size, cache)
        what = f"4,000 + 1,000 scenes of {size}x{size}"
        found.append(_row(f"{what}, first use", first, "s", "drawn and kept; asked for: under 120"))
        found.append(_row(f"{what}, second use", second, "s", "to the first batch; asked for: under 2"))
    return [*found, _played()]


def _row(name: str, value: float, unit: str, note: str) -> dict[str, Any]:
    return {"name": f"fruit2d-sim: {name}", "value": value, "unit": unit, "note": note}


def _first_batch(size: int, cache: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_BATCH.format(size=size)],
        env=os.environ | {"XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def _played() -> dict[str, Any]:
    from objbench_plugins.fruit2d.physics import simulate

    start = time.perf_counter()
    simulate({"train": PLAYED})
    rate = PLAYED / (time.perf_counter() - start)
    return _row("scenes settled by the physics", rate, "scenes/s", "only to make the states again")


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<64} {row['value']:9.2f} {row['unit']:<9} {row['note']}")
