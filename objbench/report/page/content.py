"""What the page says: finished cells as JSON values, and the table as text."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from objbench.cells.about import package_words
from objbench.cells.files import Damaged
from objbench.cells.identity import Cell
from objbench.cells.result import CellResult
from objbench.cells.store import read_curve, read_trained
from objbench.detector import NOISE, Detections
from objbench.matching import as_numpy, coco_figures
from objbench.mistakes import BELOW, KINDS, MISSED, RIGHT, WRONG_CLUSTER, Verdicts, matches, verdicts
from objbench.options import as_text
from objbench.plugins import Registry
from objbench.report.page import errors
from objbench.report.rows import Row, words_of
from objbench.report.tables import Table, spec_notes
from objbench.report.text import ABSENT, sheets_of
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_tensors, load_truth
from objbench.score.draws import scenes_digest

SCENES = 24
"""How many test scenes are shown of each data set; a training keeps as many."""
FAINT = 0.1
"""Detections below this score are not shown."""
BOXES = 40
"""How many boxes of a scene are shown at most, those of the highest scores."""
POINTS = 120
"""How many points of a curve are drawn at most."""
HEAVY = 40_000
"""Bytes of a PNG from which a scene is kept as lossy WebP."""
KIND_NAMES = (*KINDS[:BELOW], "split object", "joined objects", KINDS[BELOW])
"""What a box can be, on the page; `KINDS` with two more before the last."""
SPLIT, JOINED, FAINT_KIND = len(KINDS) - 1, len(KINDS), len(KINDS) + 1

Json = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of a row of the table, as text."""

    text: str
    best: bool
    interval: str
    """Its 95 % interval; "" without one."""
    paper: str
    """What was published; "" without any."""
    difference: str
    """Ours minus the paper's; "" without one."""
    value: float | None
    """What rows are sorted by."""


@dataclass(frozen=True)
class Line:
    """A row of the table, as text."""

    row: int
    model: str
    data: str
    differs: str
    """What differs from the paper; "" if nothing is said."""
    figures: Sequence[Figure]
    seeds: str
    marks: Sequence[str]
    """What a reader must beware of: "collapsed", "single seed"."""


def lines_of(table: Table, rows: Sequence[Row], registry: Registry) -> list[Line]:
    """The rows of the table, each with what the text of it says under it."""
    sheet = sheets_of(table)[0]
    first = sheet.figures[0] if sheet.figures else 0
    written: list[tuple[Any, dict[str, Sequence[str]]]] = []
    for line in (line for block in sheet.blocks for line in block):
        figures = [line.cells[i] for i in sheet.figures]
        if line.under:
            title = next((cell for cell in line.cells[:first] if cell), "")
            written[-1][1][title] = figures
        else:
            written.append((line, {}))
    lines = []
    for i, ((line, under), row) in enumerate(zip(written, rows, strict=True)):
        record = _record(table, i)
        none = [""] * len(sheet.figures)
        said: list[Figure] = []
        for j, (column, at) in enumerate(zip(table.columns, sheet.figures, strict=True)):
            below = [under.get(title, none)[j] for title in ("95 % interval", "paper", "difference")]
            interval, paper, difference = ("" if text == ABSENT else text for text in below)
            mean = record[column] if row.results else record.get(f"{column}_paper")
            text = line.cells[at]
            said.append(Figure(text, at in line.bold, interval, paper, difference, _finite(mean)))
        marks = ["collapsed"] * bool(record.get("collapsed", 0))
        marks += ["single seed"] * bool(record["done"] == 1)
        differs = words_of(row, registry)["model"].get("differs", "") if row.results else ""
        names = (record["model_label"], record["data_label"])
        lines.append(Line(i, *names, " ".join(str(differs).split()), said, line.cells[-1], marks))
    return lines


def _record(table: Table, row: int) -> Json:
    """A row of the table as numbers."""
    return {str(name): value for name, value in table.frame.iloc[row].items()}


def content_of(
    rows: Sequence[Row], cells: Mapping[str, Cell], table: Table, registry: Registry
) -> tuple[Json, list[str]]:
    """What the page draws, as JSON values; and a line for each cell whose files cannot be read."""
    sets: dict[tuple[Any, ...], Json] = {}
    said: list[Json] = []
    problems: list[str] = []
    for number, row in enumerate(rows):
        if not row.results:
            continue
        record = _record(table, number)
        of_row: Json = {
            "row": number,
            "model": record["model_label"],
            "replaces": row.replaces,
            "cells": [],
        }
        for result in row.done:
            folder = Path(result.path)
            try:
                truth, found = load_truth(folder), load_detections(folder)
                known = read_trained(folder.parent)
                key = (*row.block, scenes_digest(truth))
                if key not in sets:
                    sets[key] = _test_set(record, row, known.shape, known.classes, truth)
                ours = sets[key]
                if not ours["images"] and (folder.parent / "shown.safetensors").exists():
                    ours["images"] = _pictures(folder.parent / "shown.safetensors")
                cell = _cell(result, found, truth, ours["sizes"], ours["crowds"])
                cell["curve"] = _curve(read_curve(folder.parent))
            except (Damaged, OSError, ValueError) as error:
                problems.append(f"cell {result.cell} is in the table only: {error}")
                continue
            cell["set"] = list(sets).index(key)
            of_row["cells"].append(cell)
        said.append(of_row)
    for ours in sets.values():
        ours["shown"] = min(SCENES, len(ours["images"]) or SCENES, ours["count"])
        ours["truth"] = ours["truth"][: ours["shown"]]
    for of_row in said:
        for cell in of_row["cells"]:
            cell["boxes"] = cell["boxes"][: list(sets.values())[cell["set"]]["shown"]]
            cell["missed"] = cell["missed"][: len(cell["boxes"])]
    body: Json = {
        "columns": [{"name": name, "heading": heading} for name, heading in table.columns.items()],
        "kinds": list(KIND_NAMES),
        "right": RIGHT,
        "other": WRONG_CLUSTER,
        "faint": FAINT_KIND,
        "fixes": list(errors.FIXES),
        "thresholds": list(errors.THRESHOLDS),
        "sets": list(sets.values()),
        "rows": said,
    }
    return body, problems


def _test_set(
    record: Mapping[str, Any],
    row: Row,
    shape: Sequence[int],
    classes: Sequence[str],
    truth: GroundTruth,
) -> Json:
    """Test scenes that several cells were tested on."""
    sizes, crowds = errors.sizes(truth), errors.crowding(truth)
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, 6))) if len(sizes) else np.zeros(1)
    image, boxes, labels = (as_numpy(t) for t in (truth.image, truth.boxes, truth.labels))
    return {
        "label": f"{record['data_label']}, protocol {row.protocol}",
        "height": shape[1],
        "width": shape[2],
        "count": truth.images,
        "classes": list(classes),
        "images": [],
        "truth": [
            [[*_box(boxes[j]), int(labels[j])] for j in np.flatnonzero(image == i)]
            for i in range(min(SCENES, truth.images))
        ],
        "sizes": [round(float(edge), 1) for edge in edges],
        "crowds": [*np.unique(crowds).astype(int).tolist()],
    }


def _pictures(path: Path) -> list[str]:
    """The scenes that a training kept, as data URIs."""
    return [_uri(image) for image in as_numpy(load_tensors(path)["images"])[:SCENES]]


def _uri(image: NDArray[np.uint8]) -> str:
    """[channels, height, width], of 1 to 3 channels; two are red and green."""
    if len(image) == 2:
        image = np.concatenate([image, np.zeros_like(image[:1])])
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    kind, written = "png", io.BytesIO()
    picture.save(written, "png", optimize=True)
    if written.tell() > HEAVY:
        kind, written = "webp", io.BytesIO()
        picture.save(written, "webp", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"


def _cell(
    result: CellResult,
    found: Detections,
    truth: GroundTruth,
    sizes: Sequence[float],
    crowds: Sequence[int],
) -> Json:
    """What is known of a cell by its detections."""
    judged = verdicts(found, truth)
    kind, (split, joined) = judged.kind.copy(), errors.split_or_joined(found, truth, judged)
    kind[kind == BELOW] = FAINT_KIND
    kind[split], kind[joined] = SPLIT, JOINED
    objects = len(truth.labels)
    got = ~judged.missed
    of_crowds = [*crowds, crowds[-1] + 1] if crowds else []
    return {
        "cell": result.cell,
        "seed": result.seed,
        "metrics": {name: _finite(value) for name, value in result.metrics.items()},
        "seconds": _finite(result.seconds),
        "clustering": _finite(result.clusterer_seconds) or None,
        "memory": _finite(result.peak_memory_mb) or None,
        "speed": _finite(result.images_per_second) or None,
        "counts": np.bincount(kind, minlength=len(KIND_NAMES)).tolist(),
        MISSED: [],
        "objects": objects,
        "missing": int(judged.missed.sum()),
        "gains": [errors.gains(found, truth)[name] for name in errors.FIXES] if objects else [],
        "precisions": [f.precision for f in coco_figures(found, truth, errors.THRESHOLDS)] if objects else [],
        "by_size": errors.recall_by(errors.sizes(truth), sizes, got) if len(sizes) > 1 else [],
        "by_crowd": errors.recall_by(errors.crowding(truth), of_crowds, got) if of_crowds else [],
        "confusion": _confusion(found, truth, judged),
        **_scenes(found, truth, judged, kind),
    }


def _confusion(found: Detections, truth: GroundTruth, judged: Verdicts) -> Json | None:
    """How many matches of each class are in each cluster; clusters by the class that they stand for, then by size."""
    if found.clusters is None:
        return None
    taken = matches(found, truth)
    labels, clusters = as_numpy(truth.labels)[taken.object], as_numpy(found.clusters)[taken.detection]
    names, sizes = np.unique(clusters, return_counts=True)
    size = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    order = sorted(size, key=lambda c: (c == NOISE, judged.class_of.get(c, 10**9), -size[c]))[:60]
    classes = np.unique(as_numpy(truth.labels)).tolist()
    return {
        "clusters": order,
        "stands": [judged.class_of.get(c, -1) for c in order],
        "classes": classes,
        "table": [[int(((labels == k) & (clusters == c)).sum()) for c in order] for k in classes],
    }


def _scenes(found: Detections, truth: GroundTruth, judged: Verdicts, kind: NDArray[np.int64]) -> Json:
    """The boxes of the scenes that are shown, and which objects are missed there.

    A box is [x0, y0, x1, y1, score, cluster or -1, class that this stands for or -1, IoU, index into KIND_NAMES, the
    object of the scene that it takes or overlaps most or -1].
    """
    image, scores, boxes = (as_numpy(t) for t in (found.image, found.scores, found.boxes))
    clusters = np.full(len(scores), NOISE) if found.clusters is None else as_numpy(found.clusters)
    there = as_numpy(truth.image)
    number = np.zeros(
        len(there) + 1, dtype=np.int64
    )  # of each object within its scene; the last is for no object
    number[-1] = -1
    of_scenes = []
    for i in range(min(SCENES, truth.images)):
        number[np.flatnonzero(there == i)] = np.arange((there == i).sum())
        here = np.flatnonzero((image == i) & (scores >= FAINT))
        here = here[np.argsort(-scores[here], kind="stable")][:BOXES]
        of_scenes.append(
            [
                [
                    *_box(boxes[j]),
                    round(float(scores[j]), 3),
                    int(clusters[j]),
                    judged.class_of.get(int(clusters[j]), -1),
                    round(float(judged.iou[j]), 3),
                    int(kind[j]),
                    int(number[judged.object[j]]),
                ]
                for j in here
            ]
        )
    missed = [np.flatnonzero(judged.missed[there == i]).tolist() for i in range(len(of_scenes))]
    return {"clusters": found.clusters is not None, "boxes": of_scenes, MISSED: missed}


def _box(box: NDArray[np.floating]) -> list[float]:
    return [round(float(x), 1) for x in box]


def _curve(curve: Sequence[Mapping[str, Any]]) -> Json:
    """The running figures as columns; thinned evenly where there are many."""
    if len(curve) > POINTS:
        kept = np.unique(np.linspace(0, len(curve) - 1, POINTS).round().astype(int))
        curve = [curve[i] for i in kept]

    def columns(group: str) -> dict[str, list[float | None]]:
        names = dict.fromkeys(name for row in curve for name in row.get(group, {}))
        return {name: [_short(row.get(group, {}).get(name)) for row in curve] for name in names}

    return {
        "step": [row["step"] for row in curve],
        "seconds": [_short(row["seconds"]) for row in curve],
        "metrics": columns("metrics"),
        "terms": {"loss": [_short(row.get("loss")) for row in curve]} | columns("terms"),
        "watch": columns("watch"),
    }


def _short(value: float | None) -> float | None:
    """Four digits are enough to draw."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Origin:
    """Where a cell comes from."""

    cell: str
    seed: int
    status: str
    error: str
    facts: Mapping[str, str]
    command: str


@dataclass(frozen=True)
class Source:
    """Where a row comes from."""

    row: int
    label: str
    notes: Sequence[str]
    origins: Sequence[Origin]


def sources_of(
    rows: Sequence[Row], cells: Mapping[str, Cell], table: Table, registry: Registry
) -> list[Source]:
    """Provenance of every row and cell."""
    found = []
    for number, row in enumerate(rows):
        if row.results:
            record = _record(table, number)
            label = f"{record['model_label']} on {record['data_label']}, {row.protocol}"
            origins = [_origin(result, cells.get(result.cell)) for result in row.results]
            found.append(Source(number, label, spec_notes(row, registry), origins))
    return found


def _origin(result: CellResult, cell: Cell | None) -> Origin:
    known = result.provenance
    git = known.get("git") or {}
    commit = str(git.get("commit") or "")[:12] + (", with uncommitted changes" if git.get("dirty") else "")
    packages = ", ".join(f"{name} {version}" for name, version in known.get("packages", {}).items())
    facts = {
        "trained": f"{result.train_steps} steps in {result.seconds:.0f} s",
        "speed": f"{result.images_per_second:.0f} images/s" if result.images_per_second else "",
        "memory": f"{result.peak_memory_mb:.0f} MB" if result.peak_memory_mb else "",
        "device": str(known.get("device", "")),
        "started": str(known.get("started", "")),
        "finished": str(known.get("finished", "")),
        "objbench": str(known.get("objbench", "")) + (f", commit {commit}" if commit else ""),
        "packages": packages,
        "platform": str(known.get("platform", "")),
        "warnings": "; ".join(map(str, known.get("warnings", []))),
    }
    if cell is not None:
        for part in ("model", "data"):
            facts[f"plugin of the {part}"] = package_words(
                cell.training.about.get(part, {}).get("plugin", {})
            )
    return Origin(
        result.cell,
        result.seed,
        result.status,
        result.error,
        {name: text for name, text in facts.items() if text},
        command_of(cell) if cell is not None else "",
    )


def command_of(cell: Cell) -> str:
    """The command that makes a cell again, quoted for a shell.

    Options are those that are not the protocol's own, as far as the cell recorded these.
    """
    training, about = cell.training, cell.training.about
    identity = training.identity
    words = ["objbench", "run", "--models", identity["model"], "--data", identity["data"]]
    words += ["--protocol", identity["protocol"]["name"], "--seeds", f"{identity['seed']}-{identity['seed']}"]
    name = cell.clusterer.get("name", "")
    parts = [
        (identity["model"], identity["model_config"], about.get("model", {})),
        (identity["data"], identity["data_config"], about.get("data", {})),
        (name, cell.clusterer.get("config", {}), about.get(name, {})),
    ]
    for owner, config, known in parts:
        usual = known.get("settings", config)
        chosen = {key: value for key, value in config.items() if usual.get(key, value) != value}
        for key, value in {**chosen, **known.get("given", {})}.items():
            words += ["-o", f"{owner}.{key}={as_text(value)}"]
    for file in dict.fromkeys(_plugin_files(about.values())):
        words += ["--plugin", file]
    return shlex.join(words)


def _plugin_files(about: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(of["plugin"]["file"]) for of in about if of.get("plugin", {}).get("file")]
