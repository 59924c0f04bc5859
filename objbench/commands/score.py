"""`objbench score`: the same metrics for any detector's output, from COCO files."""

from __future__ import annotations

import json
import math
import sys

import click

from objbench.commands.shared import json_option, plugin_option, warn_of_clashes
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.option("--truth", required=True, metavar="FILE", help="COCO annotations file.")
@click.option(
    "--detections",
    required=True,
    metavar="FILE",
    help="COCO results list: image_id, category_id (the cluster), bbox [x, y, w, h], score in 0..1.",
)
@click.option(
    "--present",
    type=float,
    metavar="T",
    help="Scores are on any scale; the detector stands by those of at least T. Without it: 0..1, and 0.5.",
)
@json_option
@plugin_option
def score(
    truth: str, detections: str, present: float | None, as_json: bool, plugin_files: tuple[str, ...]
) -> None:
    """Score any detector's output with every registered metric.

    Of scores read with --present only the order is kept, so a metric that reads their values says little.
    Exit code 1 when a metric failed; the others are printed all the same.
    """
    if present is not None and not math.isfinite(present):
        raise UsageError(f"--present {present} is not a finite number")
    registry = load_plugins(plugin_files)
    warn_of_clashes(registry)
    from objbench.detector import PRESENT
    from objbench.score.coco import read_detections, read_truth
    from objbench.score.metrics import score_each, to_stderr

    there = read_truth(truth)
    found = read_detections(detections, there.image_ids, present)
    if there.crowds:
        to_stderr(f"{there.crowds} crowd annotations are left out: detections there count as false")
    if not len(found.scores):
        to_stderr(f"{detections} holds no detections")
    elif not (found.scores >= PRESENT).any():
        to_stderr(
            f"no score reaches {PRESENT if present is None else present:g}: the clustering and count figures "
            "use only boxes that do; --present T sets another threshold"
        )
    failures: list[str] = []
    scored = list(score_each(registry, found, there.truth, failures.append))
    if as_json:
        flat = {name: value for _, values in scored for name, value in values.items()}
        click.echo(json.dumps({n: v if math.isfinite(v) else None for n, v in flat.items()}, indent=2))
    else:
        for spec, values in scored:
            click.echo(f"{spec.name}: {spec.summary}")
            for name, value in values.items():
                click.echo(f"    {name:<20} {'undefined' if math.isnan(value) else f'{value:.4f}'}")
    for failure in failures:
        to_stderr(failure)
    if failures:
        sys.exit(1)
