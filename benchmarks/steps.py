"""What a training step of each detector costs, beside a plain version and beside what the machine could do at best.

A step is forward, backward, clipping and optimisers, in a process of its own with the environment that the harness
gives a cell, so that its peak memory is its own. The plain versions paint a canvas for every object and crop with
`grid_sample`; SPAIR's also goes from cell to cell. The floor is the time in which the step's products of matrices and
convolutions would be done at the rate of one large product of the same precision, measured in the same process.

    python -m benchmarks.steps [--threads N] [CASE ...]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from objbench.run.local import ENVIRONMENT

ALL = {"gate_cells": 0, "warmup_images": 0}
LATE = {"gmair": {"gate_step": 0}, "spair": {"gate_step": 0}, "space": {"gate_from": 0.0}}
"""Makes a step gated wherever it is; with it, steps are those of the end of training, when schedules have run out."""
SPAIR_11 = {
    "what_dim": 50,
    "anchor": 48.0,
    "glimpse": 28,
    "encoder_widths": "256-128",
    "where_frozen_steps": 0,
}
"""SPAIR as the port to PyTorch was published, whose speed is known."""
FRONTS = "fronts by torch"
"""The variant of SPAIR whose fronts torch differentiates."""


@dataclass(frozen=True)
class Case:
    """One row: a detector under a protocol's settings for MultiMNIST, with the options that make it this row."""

    model: str
    protocol: str
    gated: bool
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 0  # 0: the configuration's
    plain: bool = False
    variant: str = ""  # beside the name
    against: str = ""  # the case it is the plain version of

    @property
    def name(self) -> str:
        """Unique among the cases."""
        cells = "gated" if self.gated else "all cells"
        words = ", ".join(filter(None, [self.protocol, cells, self.variant, "plain" if self.plain else ""]))
        return f"{self.model} step ({words})"


def _cases() -> list[Case]:
    sixteen = {"gate_cells": 16}
    cases = []
    for model, extra in (("gmair", {}), ("spair", SPAIR_11), ("space", {})):
        options = {**ALL, **extra}
        cases += [
            Case(model, "paper", False, options, 16),
            Case(model, "paper", True, {**options, **sixteen, **LATE[model]}, 16),
            Case(model, "demo", False, ALL),
            Case(model, "demo", True, LATE[model]),
        ]
        if model == "space":
            bf16 = {"precision": "bfloat16"}
            late = {**options, **sixteen, **LATE[model], **bf16}
            cases.insert(-2, Case(model, "paper", False, {**options, **bf16}, 16, variant="bfloat16"))
            cases.insert(-2, Case(model, "paper", True, late, 16, variant="bfloat16"))
            cases.insert(-2, Case(model, "paper", False, options, 4, variant="batch 4"))
        whole = cases[-3] if model == "space" else cases[-4]
        cases.append(
            Case(
                model,
                "paper",
                False,
                options,
                whole.batch,
                plain=True,
                variant=whole.variant,
                against=whole.name,
            )
        )
    fast = "spair step (demo, gated)"
    cases.append(Case("spair", "demo", True, LATE["spair"], plain=True, variant=FRONTS, against=fast))
    return cases


CASES = {case.name: case for case in _cases()}


def rows(threads: int = 2, names: list[str] | None = None) -> list[dict[str, Any]]:
    """A row a case: seconds a step, with steps/s, images/s, peak memory and the share of the floor beside them.

    Asked for, on two cores: GMAIR 3 s and 3 GB with all cells, 0.7 s gated (published: 10-12 s); SPAIR 0.5 s and
    1 GB, 0.4 s gated (3.2 s); SPACE 6 s and 5 GB, 2 s gated (46-55 s).
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names or CASES:
        case = CASES[name]
        command = [sys.executable, "-m", "benchmarks.steps", "--threads", str(threads), "--one", name]
        output = subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT | os.environ).stdout
        row: dict[str, Any] = json.loads(output)
        row |= {"name": name, "value": row["seconds"], "unit": "s"}
        row["note"] = (
            f"{1 / row['seconds']:.2f} steps/s, {row['images'] / row['seconds']:.1f} images/s, "
            f"{row['megabytes']:.0f} MB, {row['of_floor']:.0%} of the floor's speed"
        )
        if case.against in found:
            row["times"] = row["seconds"] / found[case.against]["seconds"]
            row["note"] += f"; {row['times']:.1f} times the step above"
        found[name] = row
    return list(found.values())


def _measure(case: Case, threads: int) -> dict[str, Any]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from objbench.train.machine import peak_memory_mb
    from objbench.train.steps import take_step

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, images, step = _built(case)
    optimizers = model.optimizers()

    def one() -> None:
        take_step(model, optimizers, images, step)

    times = _times(one, 5.0)
    memory = peak_memory_mb(torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        one()
    half = getattr(model.config, "precision", "float32") == "bfloat16"
    rate = _rate(torch.bfloat16 if half else torch.float32)
    seconds = statistics.median(times)
    flops = counter.get_total_flops()
    return {
        "seconds": seconds,
        "images": len(images),
        "megabytes": memory,
        "gflop": flops / 1e9,
        "gflops_of_a_product": rate / 1e9,
        "of_floor": flops / rate / seconds,
        "threads": threads,
    }


def _built(case: Case) -> tuple[Any, Any, int]:
    """The detector of a case, a batch for it, and the step it is at."""
    import torch

    from objbench.options import build
    from objbench.scenes import SceneShape
    from objbench_plugins.gmair import model as gmair
    from objbench_plugins.space import model as space
    from objbench_plugins.spair import model as spair

    kinds: dict[str, Any] = {"gmair": gmair.Gmair, "spair": spair.Spair, "space": space.Space}
    kind = kinds[case.model]
    options = dict(case.options)
    if case.plain and case.model == "gmair":
        from objbench.spatial.reference import crop_plain
        from objbench_plugins.gmair.reference import render_plain

        gmair.crop = crop_plain
        gmair.render_published = render_plain
    elif case.plain and case.model == "spair":
        from objbench_plugins.spair.reference import PlainSpair

        kind = spair.Spair if case.variant == FRONTS else PlainSpair
        kind.by_hand = False
    elif case.plain:
        kind = _dense_space()
    config = build(kind.Config, case.model, kind.settings(case.protocol, "multimnist"), options)
    side = 128 if case.protocol == "paper" else 64
    images = torch.rand(case.batch or config.batch_size, 1, side, side).pow(4)
    return kind(config, SceneShape(1, side, side)).train(), images, config.steps - 1 if case.gated else 0


def _dense_space() -> Any:
    import torch

    from objbench_plugins.space import model as space
    from objbench_plugins.space.reference import compose_plain

    class DenseSpace(space.Space):
        """SPACE that makes a canvas for every cell."""

        def compose(self, objects: space.Objects, windows: object) -> tuple[torch.Tensor, torch.Tensor]:
            alpha = objects.alpha * objects.presence[:, :, None, None, None]
            sharpness = space.SHARPNESS * torch.sigmoid(-objects.depth)
            return compose_plain(objects.boxes, alpha * objects.colour, alpha, sharpness, *self.shape[1:])

    return DenseSpace


def _times(work: Callable[[], object], least_s: float) -> list[float]:
    """Seconds of at least three runs, and of `least_s` together, after one to warm up."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least_s:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def _rate(kind: Any) -> float:
    """Operations a second of one large product of matrices."""
    import torch

    side = 2048
    a, b = torch.rand(2, side, side).to(kind).unbind()
    return 2 * side**3 / min(_times(lambda: a @ b, 0.3))


def main() -> None:
    """Prints the table, or, for `--one` case, its figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"which: {'; '.join(CASES)} (all when none)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        print(json.dumps(_measure(CASES[parsed.one], parsed.threads)))
        return
    for row in rows(parsed.threads, parsed.names):
        print(f"{row['name']:<48}{row['value']:8.3f} {row['unit']}  {row['note']}")


if __name__ == "__main__":
    main()
