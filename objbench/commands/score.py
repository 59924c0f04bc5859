"""`objbench score`: computes all metrics for the output of any detector, from COCO files."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import click

from objbench.commands.shared import json_option, plan_timeout_option, plugin_option, warn_of_clashes
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.option("--truth", required=True, metavar="FILE", help="COCO annotations file.")
@click.option(
    "--detections",
    required=True,
    metavar="FILE",
    help="COCO results list: image_id, category_id (the cluster; -1 is noise), bbox [x, y, w, h], score in 0..1.",
)
@click.option(
    "--present",
    type=float,
    metavar="T",
    help="Detections with a score of at least T count as present; scores may then have any scale. Without it, "
    "scores must be in 0..1, and T is 0.5.",
)
@click.option(
    "--iou",
    "thresholds",
    type=float,
    multiple=True,
    metavar="T",
    help="Also compute AP by COCO's rules at this IoU, above 0 and at most 1 (repeatable).",
)
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="Leave out boxes without size or with values that are not finite, and entries with unknown images or "
    "categories; their number is reported.",
)
@plan_timeout_option
@json_option
@plugin_option
def score(
    truth: str,
    detections: str,
    present: float | None,
    thresholds: tuple[float, ...],
    skip_invalid: bool,
    plan_timeout: float,
    as_json: bool,
    plugin_files: tuple[str, ...],
) -> None:
    """Score the output of any detector with every registered metric.

    Also prints a table with the results for each class; one cluster is assigned to each class (Hungarian method).

    Files may be compressed with gzip. If an entry has no bbox, the box of its mask (polygons or RLE) is used.
    Detections may also be an annotations file with scores. Ids are integers or texts: 7 and "7" are different.

    Cluster -1 is noise: a box that belongs to no cluster. It is a normal box for AP and object counts, is wrong in ACC
    (noise is assigned to no class), and is one more cluster for NMI and cluster usage.

    Crowd annotations are left out, so detections in them are false positives. With --present, only the order of scores
    is kept, so metrics that use the values of scores have little meaning. Exit code 1 when a metric failed; the others
    are still printed.
    """
    if present is not None and not math.isfinite(present):
        raise UsageError(f"--present {present} is not a finite number")
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise UsageError(f"--iou {threshold:g} is not above 0 and at most 1")
    registry = load_plugins(plugin_files)
    warn_of_clashes(registry)
    from objbench.coco import read_detections, read_truth
    from objbench.detector import PRESENT
    from objbench.matching import coco_figures
    from objbench.run.apart import one_thread_apart
    from objbench.score.class_table import class_table
    from objbench.score.metrics import score_each, to_stderr

    ask = one_thread_apart(plan_timeout)
    there = read_truth(truth, skip_invalid, to_stderr)
    found = read_detections(detections, there, present, skip_invalid, to_stderr)
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
    found_by = score_each(registry, found, there.truth, failures.append, ask)
    scored = [(f"{spec.name}: {spec.summary}", values) for spec, values in found_by]
    if thresholds:
        figures = zip(thresholds, coco_figures(found, there.truth, thresholds), strict=True)
        values = {f"coco_ap@{threshold:g}": figure.precision for threshold, figure in figures}
        scored.append(("--iou: COCO's AP at IoU >= T", values))
    rows = [
        {"class": there.class_names[row.label], **{k: v for k, v in row._asdict().items() if k != "label"}}
        for row in class_table(found, there.truth, len(there.class_names))
    ]
    if as_json:
        flat = {name: value for _, values in scored for name, value in values.items()}
        plain: dict[str, Any] = {n: v if math.isfinite(v) else None for n, v in flat.items()}
        click.echo(json.dumps(plain | {"classes": rows}, indent=2))
    else:
        for heading, values in scored:
            click.echo(heading)
            for name, value in values.items():
                click.echo(f"    {name:<20} {'undefined' if math.isnan(value) else f'{value:.4f}'}")
        click.echo("classes: each with the cluster that stands for it")
        click.echo(_table(rows), nl=False)
    for failure in failures:
        to_stderr(failure)
    if failures:
        sys.exit(1)


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys in columns; a share is shown with four digits, None as --."""
    cells = [list(rows[0])]
    for row in rows:
        cells.append(
            [
                "--"
                if value is None
                else f"{value:.4f}"
                if isinstance(value, float)
                else _printable(str(value))
                for value in row.values()
            ]
        )
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "    " + "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]) for line in cells
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _printable(name: str) -> str:
    """A class name that a terminal can show in one line."""
    return "".join(c if c.isprintable() else "?" for c in name)[:40]
