"""`objbench evaluate`: a finished cell on other scenes, as a cell of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from objbench.cells.identity import EVALUATED, OWN
from objbench.cells.plan import plan
from objbench.cells.store import Store, read_record
from objbench.hookspecs import Published
from objbench.report.believed import Wanted, read_cells
from objbench.report.rows import rows_of
from objbench.report.tables import build, columns_of
from objbench.score.arrays import load_detections, load_tensors, load_truth
from running import TOY, Ran, objbench, run_here, toy_cell, toys
from running import rows_of as printed

STEPS = ["toy.steps=12", "toy.at=99"]
PLAIN = ["toy-plain.steps=12", "toy-plain.at=99", "gmm.restarts=1", "gmm.clusters=3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two finished cells, one of them clustered by a mixture."""
    folder = tmp_path_factory.mktemp("finished")
    run_here(folder, toy_cell("toy", *STEPS))
    run_here(folder, toy_cell("toy-plain", *PLAIN))
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


TOY_KEY = toy_cell("toy", *STEPS).key
PLAIN_KEY = toy_cell("toy-plain", *PLAIN).key


def evaluate(out: Path, cell: str, *words: str) -> Ran:
    return objbench("evaluate", cell, "--out", str(out), "--plugin", TOY, *words)


def evaluated(out: Path, cell: str, *words: str) -> Path:
    """The folder of the evaluation."""
    ran = evaluate(out, cell, "--json", *words)
    assert ran.code == 0, ran.err
    (row,) = printed(ran)
    return Path(row["path"])


@pytest.mark.parametrize("key", [TOY_KEY, PLAIN_KEY])
def test_on_the_same_scenes_every_figure_is_the_same(out: Path, key: str) -> None:
    folder = evaluated(out, key)
    result, then = read_record(folder)[0], read_record(out / "cells" / key)[0]
    assert result.cell != key
    assert result.trained == key.partition("/")[0]
    assert list(result.metrics) == list(then.metrics)
    for name, value in then.metrics.items():
        assert result.metrics[name] == value or value != value, name
    found, before = load_detections(folder), load_detections(out / "cells" / key)
    assert torch.equal(found.boxes, before.boxes)
    assert torch.equal(found.clusters, before.clusters)  # type: ignore[arg-type]


def test_other_scenes_are_a_cell_of_its_own_with_all_that_a_cell_keeps(out: Path) -> None:
    folder = evaluated(out, TOY_KEY, "--data", "squares", "-o", "squares.most=9")
    truth = load_truth(folder)
    assert len(truth.image) > len(load_truth(out / "cells" / TOY_KEY).image)
    assert load_detections(folder).images == truth.images == 500
    assert load_tensors(folder.parent / "shown.safetensors")["images"].shape == (100, 1, 16, 16)
    assert not (folder.parent / "weights.safetensors").exists()
    assert (folder / "scenes.png").exists()
    shown = objbench("show", f"{folder.parent.name}", "--out", str(out), "--plugin", TOY)
    assert (shown.code, "scenes.png" in shown.out) == (0, True)


def test_twice_is_nothing_to_do(out: Path) -> None:
    first = evaluate(out, TOY_KEY, "-o", "squares.most=9")
    keys = Store(out).cell_keys()
    again = evaluate(out, TOY_KEY, "--data", "squares", "--protocol", "demo", "-o", "squares.most=9")
    assert (first.code, again.code) == (0, 0)
    assert "nothing to do" in again.err
    assert again.out == first.out
    assert Store(out).cell_keys() == keys
    assert "nothing to do" not in evaluate(out, TOY_KEY, "-o", "squares.most=9", "--seed", "1").err
    assert len(Store(out).cell_keys()) == len(keys) + 1


def test_the_mixture_is_that_of_the_finished_cell(out: Path) -> None:
    folder = evaluated(out, PLAIN_KEY, "-o", "squares.most=9")
    fitted = load_tensors(out / "cells" / PLAIN_KEY / "clusterer.safetensors")
    reused = load_tensors(folder / "clusterer.safetensors")
    assert fitted.keys() == reused.keys()
    assert all(torch.equal(fitted[name], reused[name]) for name in fitted)


def test_a_row_of_its_own_says_what_it_was_trained_on_and_has_no_published_figure_beside_it(
    out: Path,
) -> None:
    crowded = evaluated(out, TOY_KEY, "-o", "squares.most=9")
    run_here(out, toy_cell("toy", *STEPS, "squares.most=9"))
    registry = toys()
    results, identities = read_cells(Store(out), registry, Wanted(), None, lambda r: (r, []))
    published = [Published("toy", "squares", {"found": (0.5, None)}, "a paper")]
    rows = rows_of(results, identities, registry, published)
    assert [len(row.results) for row in rows] == [1] * 4
    (row,) = [row for row in rows if row.trained_on]
    assert row.results[0].path == str(crowded)
    assert row.trained_on == "squares most=3"
    assert row.published is None
    (beside,) = [r for r in rows if r.model == "toy" and r.block == row.block and r is not row]
    assert beside.published is published[0]
    table = build(rows, columns_of(registry, published), registry)
    assert "toy [trained on squares most=3, at=99, steps=12]" in set(table.frame["model_label"])
    assert any(note.startswith("Trained on:") for note in table.notes)


def test_other_data_and_protocol_in_the_label(out: Path) -> None:
    evaluated(out, TOY_KEY, "--protocol", "small")
    text = objbench("report", "--no-intervals", "--out", str(out), "--plugin", TOY, "--format", "json").out
    labels = {row["model_label"]: row for row in json.loads(text)["rows"]}
    assert "toy [trained on squares protocol=demo, at=99, steps=12]" in labels


def test_intervals_rescoring_and_verify(out: Path) -> None:
    folder = evaluated(out, PLAIN_KEY, "-o", "squares.most=9")
    key = f"{folder.parent.name}/{folder.name}"
    ran = objbench("report", "--out", str(out), "--plugin", TOY, "--resamples", "100", "--format", "csv")
    assert ran.code == 0, ran.err
    assert key in ran.out
    assert "left out" not in ran.err
    verified = objbench("verify", str(out), "--cell", key, "--plugin", TOY)
    assert verified.code == 0, verified.out + verified.err


def test_removing_the_weights_that_it_needs_is_said(out: Path) -> None:
    folder = evaluated(out, TOY_KEY, "--seed", "1")
    words = ["rm", TOY_KEY, "--out", str(out), "--yes"]
    ran = objbench(*words)
    assert ran.code == 0
    training = TOY_KEY.partition("/")[0]
    assert f"warning: {folder.parent.name} evaluates the weights of {training}; its figures stay" in ran.err
    assert "warning" not in objbench("rm", PLAIN_KEY, "--out", str(out), "--yes").err


def test_a_plan_takes_no_pace_from_it(out: Path) -> None:
    evaluated(out, TOY_KEY)
    shutil.rmtree(out / "cells" / TOY_KEY.partition("/")[0])
    (planned,) = plan(Store(out), [toy_cell("toy", *STEPS)])
    assert (planned.why, planned.seconds) == ("new", None)


def test_what_cannot_be_evaluated_is_refused_and_nothing_is_written(out: Path) -> None:
    folder = evaluated(out, TOY_KEY)
    before = Store(out).cell_keys()

    def refused(cell: str, *words: str) -> str:
        ran = evaluate(out, cell, *words)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.count("\n") == 1
        return ran.err

    assert "no cell in" in refused("zzz")
    assert "no data set named 'squars'" in refused(TOY_KEY, "--data", "squars")
    assert "no protocol named 'huge'" in refused(TOY_KEY, "--protocol", "huge")
    assert "only squares has options here" in refused(TOY_KEY, "-o", "toy.lr=1")
    assert "no data set named 'gmm'" in refused(PLAIN_KEY, "-o", "gmm.clusters=4")
    again = refused(f"{folder.parent.name}/{OWN}")
    assert f"is an evaluation, without weights of its own; name training {TOY_KEY.partition('/')[0]}" in again
    ran = objbench(
        "predict", "--cell", folder.parent.name, "--images", str(folder), "--to", "x", "--out", str(out),
        "--plugin", TOY,
    )  # fmt: skip
    assert (ran.code, "is an evaluation" in ran.err) == (2, True)
    (out / "cells" / TOY_KEY).parent.joinpath("weights.safetensors").unlink()
    assert "was kept without its weights" in refused(TOY_KEY)
    assert Store(out).cell_keys() == before


def test_scenes_that_the_weights_do_not_fit_are_refused_with_parameter_and_shapes(out: Path) -> None:
    ran = evaluate(out, TOY_KEY, "--data", "fruit2d-sim")
    assert ran.code == 2
    assert "'decode.bias' has shape [1] there and [3] here" in ran.err


def test_the_identity_holds_weights_and_mixture(out: Path) -> None:
    from objbench.cells.identity import read_cell

    cell = read_cell(evaluated(out, PLAIN_KEY))
    training, clusterer = PLAIN_KEY.split("/")
    origin = cell.training.identity[EVALUATED]
    assert origin["training"] == training
    assert origin["identity"] == toy_cell("toy-plain", *PLAIN).training.identity
    assert cell.clusterer_key != clusterer
    assert len(cell.clusterer["fitted"]) == 64
