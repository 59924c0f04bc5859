"""Results as frames: every figure of the report can be made from them, and docs/results.md runs as it stands."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

import objbench as package
from objbench.detector import Detections
from objbench.plugins import load_plugins
from objbench.report.frames import OBJECTS, Results
from objbench.scenes import GroundTruth
from objbench.score.metrics import score
from running import TOY, objbench

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "results" / "demo"
GUIDE = (ROOT / "docs" / "results.md").read_text()
PICKED = {("gmair", 0), ("gmair", 1), ("space", 0), ("pca-gmm", 0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the demo's cells, scored by the metrics as they are now."""
    out = tmp_path_factory.mktemp("store") / "runs"
    for folder in sorted((DEMO / "cells").iterdir()):
        identity = json.loads((folder / "training.json").read_text())["identity"]
        if (identity["model"], identity["seed"]) in PICKED:
            shutil.copytree(folder, out / "cells" / folder.name)
    return out


@pytest.fixture(scope="module")
def results(store: Path) -> Results:
    return package.load(store)


def rebuilt(of_cell: pd.DataFrame, scenes: int) -> tuple[Detections, GroundTruth]:
    """The detections and the true objects of a cell, from its rows alone."""
    found = of_cell[of_cell.kind != "missed"]
    there = of_cell.dropna(subset="object").drop_duplicates("object")
    labels = {name: i for i, name in enumerate(sorted(there["class"].unique()))}

    def boxes(frame: pd.DataFrame, lead: str) -> torch.Tensor:
        return torch.from_numpy(frame[[f"{lead}{n}" for n in ("x0", "y0", "x1", "y1")]].to_numpy(copy=True))

    clusters = found.cluster
    return (
        Detections(
            scenes, torch.tensor(found.scene.to_numpy()), boxes(found, ""), torch.tensor(found.score.to_numpy()),
            None if clusters.isna().any() else torch.tensor(clusters.to_numpy(dtype=np.int64)),
        ),
        GroundTruth(
            scenes, torch.tensor(there.scene.to_numpy()), boxes(there, "true_"),
            torch.tensor(there["class"].map(labels).to_numpy(dtype=np.int64)),
        ),
    )  # fmt: skip


def test_every_figure_is_rebuilt_from_the_objects(results: Results) -> None:
    cells, objects = results.cells.set_index("cell"), results.objects
    registry = load_plugins(())
    assert len(cells) == 8
    for key, of_cell in objects.groupby("cell"):
        values = score(registry, *rebuilt(of_cell, int(cells.scenes[key])))
        assert values == pytest.approx(
            {name: cells.loc[key, name] for name in values}, abs=1e-12, nan_ok=True
        )
    figures = {name for spec in registry.metrics.values() for name in (*spec.columns, *spec.more)}
    assert figures <= values.keys()


def test_kinds_are_counted_by_the_frame_alone(results: Results) -> None:
    cells = results.cells.set_index("cell")
    counts = results.objects.groupby("cell").kind.value_counts().unstack()
    for kind in ("right", "wrong cluster", "duplicate", "badly placed", "background", "missed"):
        assert (counts[kind] == cells[f"{kind.replace(' ', '_')}_count"].reindex(counts.index)).all()
    objects = results.objects
    assert list(objects) == list(OBJECTS)
    right = objects[objects.kind == "right"]
    assert (right["class"] == right.cluster_class).all()
    assert right.iou.min() >= 0.5
    wrong = objects[objects.kind == "wrong cluster"]
    assert not (wrong["class"] == wrong.cluster_class).fillna(False).any()
    near = objects[objects.kind == "badly placed"].iou
    assert near.between(0.1, 0.5, inclusive="left").all()
    assert objects[objects.kind == "missed"].score.isna().all()


def test_the_ten_lines_of_the_guide_make_the_table_and_the_plot(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 10
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(store)
    names: dict[str, pd.DataFrame] = {}
    exec(block, names)
    assert (tmp_path / "errors.png").stat().st_size > 10_000
    rows = json.loads(objbench("report", "--no-intervals", "--out", str(store), "--format", "json").out)[
        "rows"
    ]
    table = names["table"]
    assert len(table) == len(rows) == 6
    for row in rows:
        mine = table.loc[row["data_label"], row["model_label"]]
        for name in ("ap50", "acc", "nmi"):
            assert mine[name, "mean"] == pytest.approx(row[name], abs=1e-12)
            if row["done"] > 1:
                assert mine[name, "std"] == pytest.approx(row[f"{name}_std"], abs=1e-12)


@pytest.mark.parametrize("which", ["rows", "cells", "objects"])
def test_files_hold_the_frames(which: str, store: Path, results: Results, tmp_path: Path) -> None:
    expected = {"cells": results.cells, "objects": results.objects}.get(which)
    for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        file = tmp_path / f"frame.{form}"
        ran = objbench("report", "--out", str(store), "--format", form, "--of", which, "--to", str(file))
        assert ran.code == 0, ran.err
        frame = read(file)
        if expected is not None:
            assert list(frame) == list(expected)
            numbers = expected.select_dtypes("number").columns
            pd.testing.assert_frame_equal(
                frame[numbers].astype(float),
                expected[numbers].astype(float),
                rtol=1e-6,
                check_exact=form == "parquet",
            )
        else:
            assert len(frame) == 6
    if which == "objects":
        pd.testing.assert_frame_equal(frame, expected)


def test_without_pyarrow_it_is_one_line(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name, *rest):  # type: ignore[no-untyped-def]
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    file = tmp_path / "frame.parquet"
    ran = objbench("report", "--no-intervals", "--out", str(store), "--format", "parquet", "--to", str(file))
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert "pip install 'objbench[parquet]'" in line
    assert not file.exists()


def test_frames_are_no_table(store: Path) -> None:
    ran = objbench("report", "--out", str(store), "--of", "cells")
    assert (ran.code, ran.err) == (2, "objbench: --of cells needs --format csv or --format parquet\n")


def test_a_store_without_cells_and_one_without_a_finished_cell(tmp_path: Path) -> None:
    from objbench.errors import UsageError

    with pytest.raises(UsageError, match="no cells"):
        package.load(tmp_path)
    words = ["--models", "toy", "--data", "squares", "--plugin", TOY, "--out", str(tmp_path)]
    assert objbench("run", *words, "-o", "toy.trouble=raise").code == 1
    results = package.load(tmp_path, plugins=(TOY,))
    assert results.cells.status.tolist() == ["failed"]
    assert list(results.objects) == list(OBJECTS)
    assert results.objects.empty
