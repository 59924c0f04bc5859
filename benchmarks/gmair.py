"""What a training step of GMAIR costs, beside a plain version of the same model.

Each version runs in a process of its own, as a cell does, so that its peak memory is its own. The plain version crops
from copies of the image and paints every object on a canvas of its own with `grid_sample`, as the published code does.

    python -m benchmarks.gmair [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from objbench.runner import ALLOCATOR

CASES = {
    "paper, all cells": ("paper", {"gate_cells": 0}),
    "paper, gated to 16": ("paper", {"gate_cells": 16, "gate_step": 0, "overlap_steps": 0}),
    "demo, all cells": ("demo", {"gate_cells": 0, "first_batch": 0}),
    "demo, gated": ("demo", {"gate_step": 0}),
}


def rows(threads: int = 2) -> list[dict[str, Any]]:
    """Seconds and megabytes a step, every case, the plain version last."""
    found = []
    plain = _measure("paper, all cells", threads, plain=True, steps=2)
    for case in CASES:
        fast = _measure(case, threads, plain=False, steps=5 if "paper" in case else 30)
        note = f"{fast['megabytes']:.0f} MB, batch {fast['batch']}"
        if case == "paper, all cells":
            note += f"; {plain['seconds'] / fast['seconds']:.1f} times as fast as the plain version"
        found.append({"name": f"gmair step ({case})", "value": fast["seconds"], "unit": "s", "note": note})
    note = f"{plain['megabytes']:.0f} MB, batch {plain['batch']}"
    found.append(
        {"name": "gmair step (paper, all cells, plain)", "value": plain["seconds"], "unit": "s", "note": note}
    )
    return found


def _measure(case: str, threads: int, plain: bool, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gmair", "--case", case, "--threads", str(threads)]
    command += ["--steps", str(steps)] + (["--plain"] if plain else [])
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, env=os.environ | ALLOCATOR).stdout
    )
    return answer


def _step(case: str, threads: int, plain: bool, steps: int) -> dict[str, Any]:
    import torch

    from objbench.options import build
    from objbench.scenes import SceneShape
    from objbench.spatial.reference import crop_plain
    from objbench_plugins.gmair import model as gmair

    torch.set_num_threads(threads)
    protocol, options = CASES[case]
    if plain:
        gmair.crop = crop_plain
        options = options | {"renderer": "published"}
    config = build(gmair.GmairConfig, "gmair", gmair.Gmair.settings(protocol, "multimnist"), options)
    side = 128 if protocol == "paper" else 64
    torch.manual_seed(0)
    model = gmair.Gmair(config, SceneShape(1, side, side)).train()
    images = torch.rand(config.batch_size, 1, side, side).pow(4)
    optimizers = model.optimizers()
    times = []
    for step in range(steps + 1):
        since = time.perf_counter()
        loss = sum(model.training_step(images, step).values())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        times.append(time.perf_counter() - since)
    return {
        "seconds": statistics.median(times[1:]),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "batch": config.batch_size,
    }


def main() -> None:
    """Prints the table, or, for one case, its figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    told = parser.parse_args()
    if told.case:
        print(json.dumps(_step(told.case, told.threads, told.plain, told.steps)))
        return
    for row in rows(told.threads):
        print(f"{row['name']:<40}{row['value']:8.3f} {row['unit']}  {row['note']}")


if __name__ == "__main__":
    main()
