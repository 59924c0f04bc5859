"""Finished cells as pandas frames: a row a cell, and a row a detection or a missed object. See docs/results.md."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from objbench.cells.identity import Cell
from objbench.cells.result import CellResult
from objbench.cells.store import Store, read_trained
from objbench.errors import UsageError
from objbench.matching import as_numpy
from objbench.mistakes import KINDS, MISSED, verdicts
from objbench.plugins import Registry, load_plugins
from objbench.report.believed import Wanted, read_cells
from objbench.report.rows import rows_of
from objbench.report.tables import build, columns_of
from objbench.score.arrays import load_detections, load_truth
from objbench.score.metrics import rescore

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """The cells of a store that can be believed, by the metrics as they are now."""

    def __init__(self, registry: Registry, results: list[CellResult], cells: Mapping[str, Cell]) -> None:
        """cells: by key, one for each of the results."""
        self.registry, self._results, self._cells = registry, results, cells

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """A row a cell, whatever its status: identity, metrics, cost, provenance."""
        import pandas as pd

        row_of = self._rows()
        rows = [_cell_row(r, self._cells[r.cell], row_of[r.cell]) for r in self._results]
        frame = pd.DataFrame(rows).sort_values("row", kind="stable", ignore_index=True)
        place = {"model": 1, "data": 2, "clusterer": 3, "package": 4}
        names = [str(name) for name in frame]
        in_order = sorted(names, key=lambda n: place[n.partition(".")[0]] if "." in n else 0)
        return frame[in_order]

    @functools.cached_property
    def objects(self) -> pd.DataFrame:
        """A row for each detection of each finished cell, and for each object that it misses."""
        import pandas as pd

        done = [r for r in self._results if r.status == "done"]
        frames = [objects_of(Path(r.path)).assign(cell=r.cell) for r in done]
        if not frames:
            return pd.DataFrame(columns=[*OBJECTS])
        joined = pd.concat(frames, ignore_index=True)
        return joined[["cell", *[name for name in joined if name != "cell"]]]

    def _rows(self) -> dict[str, Mapping[str, Any]]:
        """For each cell what the table says of its row: its place, and labels."""
        rows = rows_of(self._results, self._cells, self.registry)
        table = build(rows, columns_of(self.registry), self.registry).frame.to_dict("records")
        return {
            result.cell: {
                "row": place,
                **{
                    name: record[name]
                    for name in ("model_label", "data_label", "model_options", "data_options")
                },
            }
            for place, (row, record) in enumerate(zip(rows, table, strict=True))
            for result in row.results
        }


OBJECTS = {
    "cell": "key of the cell, as in `cells`",
    "scene": "test scene, from 0",
    "kind": "what it is: one of `objbench.mistakes.KINDS`, or missed",
    "x0": "left edge of the detected box, in pixels; of a missed object NaN, as for the next four",
    "y0": "top edge",
    "x1": "right edge",
    "y1": "bottom edge",
    "score": "0..1",
    "cluster": "cluster of the detection, -1 for none; missing (NA) where the detector does not cluster",
    "cluster_class": "name of the class that the cluster stands for, one to one; NA where it stands for none",
    "object": "the object that it takes, else the one it overlaps most; from 0 within the cell, NA without overlap",
    "iou": "with that object",
    "class": "name of that object's class",
    "true_x0": "left edge of that object's box",
    "true_y0": "top edge",
    "true_x1": "right edge",
    "true_y1": "bottom edge",
}
"""Column of `Results.objects` -> what it holds."""


def load(
    out: str | Path = "runs",
    *,
    protocol: str | None = None,
    models: list[str] | None = None,
    data: list[str] | None = None,
    plugins: tuple[str, ...] = (),
) -> Results:
    """The results in a directory that `objbench run --out` wrote.

    protocol, models, data: only cells of these. plugins: files of plugins, as `--plugin`. Figures of metrics that have
    changed are computed again, from raw detections. A cell that cannot be believed is left out, with a line on stderr.
    UsageError when there is no cell.
    """
    registry = load_plugins(plugins)
    wanted = Wanted(protocol, models or [], data or [])

    def again(result: CellResult) -> tuple[CellResult, list[str]]:
        complaints: list[str] = []
        return rescore(registry, result, complaints.append), complaints

    return Results(registry, *read_cells(Store(out), registry, wanted, None, again))


def _cell_row(result: CellResult, cell: Cell, of_row: Mapping[str, Any]) -> dict[str, Any]:
    identity, known = cell.training.identity, result.provenance
    row: dict[str, Any] = {
        "cell": result.cell,
        "training": cell.training.key,
        "model": result.model,
        "clusterer": cell.clusterer.get("name", ""),
        "data": result.data,
        "protocol": result.protocol,
        "seed": result.seed,
        **of_row,
        "status": result.status,
        "error": result.error,
    }
    row |= result.metrics
    names = ("seconds", "train_steps", "images_per_second", "peak_memory_mb")
    row |= {name: getattr(result, name) for name in names}
    row |= {"scenes": _scenes(result), "path": result.path}
    parts = {"model": identity.get("model_config", {}), "data": identity.get("data_config", {})}
    parts["clusterer"] = cell.clusterer.get("config", {})
    row |= {f"{part}.{key}": _flat(v) for part, config in parts.items() for key, v in config.items()}
    for name in ("model_code", "data_code", "harness_code"):
        row[name] = identity.get(name, "")
    packages = known.get("packages", {})
    row |= {k: _flat(v) for k, v in known.items() if k != "packages" and not isinstance(v, dict)}
    row |= {f"package.{name}": version for name, version in packages.items()}
    return row


def _flat(value: Any) -> Any:
    """A value that a column can hold: lists as text."""
    from objbench.options import as_text

    return as_text(value) if isinstance(value, list) else value


def _scenes(result: CellResult) -> int | None:
    return load_truth(Path(result.path)).images if result.status == "done" else None


def objects_of(folder: Path) -> pd.DataFrame:
    """The detections of one finished cell, and the objects that it misses: `Results.objects`, without `cell`."""
    import pandas as pd

    found, truth = load_detections(folder), load_truth(folder)
    names = np.array(read_trained(folder.parent).classes, dtype=object)
    said = verdicts(found, truth)
    lost = np.flatnonzero(said.missed)
    object_ = np.concatenate([said.object, lost])
    overlaps = object_ >= 0
    blank = np.full(len(lost), np.nan)
    m = len(said.kind)

    def optional(values: Any) -> Any:
        """[m] as integers, NA for the missed objects."""
        return pd.array([*values, *[None] * len(lost)], dtype="Int64")

    columns: dict[str, Any] = {
        "scene": np.concatenate([as_numpy(found.image), as_numpy(truth.image)[lost]]),
        "kind": pd.Categorical.from_codes(
            [*said.kind.tolist(), *[len(KINDS)] * len(lost)], pd.Index([*KINDS, MISSED])
        ),
    }
    boxes = as_numpy(found.boxes)
    for i, name in enumerate(("x0", "y0", "x1", "y1")):
        columns[name] = np.concatenate([boxes[:, i], blank.astype(boxes.dtype)])
    scores = as_numpy(found.scores)
    columns["score"] = np.concatenate([scores, blank.astype(scores.dtype)])
    clusters: list[int | None]
    clusters = [None] * m if found.clusters is None else as_numpy(found.clusters).tolist()
    columns["cluster"] = optional(clusters)
    stands = [None if c is None else said.class_of.get(c) for c in clusters] + [None] * len(lost)
    columns["cluster_class"] = pd.array(
        [None if c is None else str(names[c]) for c in stands], dtype="string"
    )
    columns["object"] = pd.array(np.where(overlaps, object_, 0), dtype="Int64")
    columns["object"][~overlaps] = pd.NA
    columns["iou"] = np.concatenate([said.iou, np.zeros(len(lost))])
    there = np.where(overlaps, object_, 0)
    if len(truth.labels):
        of_object = names[as_numpy(truth.labels)[there]]
        corners = as_numpy(truth.boxes)[there].astype(as_numpy(truth.boxes).dtype)
    else:
        of_object, corners = (
            np.full(len(there), "", dtype=object),
            np.zeros((len(there), 4), dtype=np.float32),
        )
    columns["class"] = pd.array(
        [str(c) if o else None for c, o in zip(of_object, overlaps, strict=True)], "string"
    )
    corners[~overlaps] = np.nan
    for i, name in enumerate(("true_x0", "true_y0", "true_x1", "true_y1")):
        columns[name] = corners[:, i]
    return pd.DataFrame(columns)


def parquet_writer() -> Callable[[pd.DataFrame], bytes]:
    """A function that gives a frame as a Parquet file. UsageError where pyarrow is not installed."""
    try:
        import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        raise UsageError(
            "Parquet files need pyarrow, which is not installed: pip install 'objbench[parquet]', or use --format csv"
        ) from None
    return lambda frame: bytes(frame.to_parquet(index=False, engine="pyarrow"))
