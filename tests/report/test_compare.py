"""`objbench compare`: intervals hold the true difference as often as they say, and words say what the figures do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from objbench.cells.store import read_trained, write_trained
from objbench.report.compare import Duel, paragraph, scenes_that_differ
from objbench.score.arrays import flat, load_detections, load_truth, save_tensors
from running import Ran, objbench

DEMO = Path(__file__).parents[2] / "results" / "demo"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GMAIR and the floor on MultiMNIST, two seeds each, and GMAIR on Fruit2D-sim."""
    out = tmp_path_factory.mktemp("store") / "runs"
    for folder in sorted((DEMO / "cells").iterdir()):
        identity = json.loads((folder / "training.json").read_text())["identity"]
        chosen = (
            identity["data"] == "multimnist"
            and identity["model"] in ("gmair", "pca-gmm")
            and identity["seed"] < 2
        )
        if chosen or (identity["data"], identity["model"], identity["seed"]) == ("fruit2d-sim", "gmair", 0):
            shutil.copytree(folder, out / "cells" / folder.name)
    return out


def compare(*words: str | Path) -> Ran:
    return objbench("compare", *map(str, words), "--resamples", "200")


def test_rows_are_compared_in_a_paragraph_and_as_json(store: Path) -> None:
    ran = compare("gmair", "pca-gmm", "--out", store)
    assert ran.code == 0, ran.err
    (line,) = ran.out.splitlines()
    for part in (
        "GMAIR",
        "PCA on true boxes",
        "2 seeds, 500 test scenes",
        "AP (%, IoU=0.5) is worse by",
    ):
        assert part in line
    assert "times the training time" in line or "times the memory" in line
    assert "more objects right in" in line
    (body,) = json.loads(compare("gmair", "pca-gmm", "--out", store, "--json").out)
    ap = body["figures"]["ap50"]
    rows = json.loads(
        objbench(
            "report", "--no-intervals", "--out", str(store), "--format", "json", "--data", "multimnist"
        ).out
    )["rows"]
    by_model = {row["model"]: row["ap50"] for row in rows}
    assert (ap["first"], ap["second"]) == pytest.approx((by_model["gmair"], by_model["pca-gmm"]))
    assert ap["difference"] == pytest.approx(by_model["gmair"] - by_model["pca-gmm"])
    assert ap["low"] <= ap["difference"] <= ap["high"]
    assert body["seeds"] == [[0, 0], [1, 1]]
    assert {"ap_class", "missed"} <= body["figures"].keys()
    assert len(body["classes"]) == 10
    lead = [row["first"] - row["second"] for row in body["classes"]]
    assert lead == sorted(lead, reverse=True)


def test_the_other_way_round_everything_is_reversed(store: Path) -> None:
    (one,) = json.loads(compare("gmair@multimnist", "pca-gmm", "--out", store, "--json").out)
    (two,) = json.loads(compare("pca-gmm", "gmair@multimnist", "--out", store, "--json").out)
    for name, figure in one["figures"].items():
        other = two["figures"][name]
        assert figure["difference"] == pytest.approx(-other["difference"])
        assert (figure["low"], figure["high"]) == pytest.approx((-other["high"], -other["low"]))
    assert {row["scene"]: -row["difference"] for row in one["scenes_that_differ"]} == pytest.approx(
        {row["scene"]: row["difference"] for row in two["scenes_that_differ"]}
    )


def test_a_store_with_itself_is_not_told_apart(store: Path) -> None:
    ran = compare(store, store, "--json")
    bodies = json.loads(ran.out)
    assert len(bodies) == 3
    for body in bodies:
        assert body["scenes_that_differ"] == []
        for figure in body["figures"].values():
            assert (figure["low"], figure["high"]) == (0, 0)
            assert figure["verdict"] == "not told apart"


def test_cells_of_two_seeds_are_paired_by_their_scenes(store: Path) -> None:
    rows = json.loads(
        objbench(
            "report", "--no-intervals", "--out", str(store), "--format", "json", "--data", "multimnist"
        ).out
    )["rows"]
    one, two = next(row["cells"] for row in rows if row["model"] == "gmair").split()
    ran = compare(one[:6], store / "cells" / two, "--out", store)
    assert ran.code == 0, ran.err
    assert "1 seed, 500 test scenes" in ran.out
    assert "No seed is shared: seeds 0 and 1 were paired." in ran.out
    assert "how far other seeds would differ is not known" in ran.out


def worse(store: Path, to: Path) -> Path:
    """The same store, but everything that it finds in class 0 and in scene 3 is gone."""
    shutil.copytree(store, to)
    for folder in (to / "cells").iterdir():
        found, truth = load_detections(folder / "own"), load_truth(folder / "own")
        from objbench.mistakes import verdicts

        said = verdicts(found, truth)
        lost = np.isin(said.object, np.flatnonzero(truth.labels.numpy() == 0)) | (found.image.numpy() == 3)
        keep = torch.from_numpy(~lost)
        parts = {n: v[keep] for n, v in vars(found).items() if isinstance(v, torch.Tensor)}
        save_tensors(folder / "detections.safetensors", flat(replace(found, **parts)))
        trained = read_trained(folder)
        write_trained(folder, trained, trained.files)
    return to


def test_what_was_taken_away_is_what_is_named(store: Path, tmp_path: Path) -> None:
    """A detector that misses one class and one scene: the scene and the class are found, and the figure is worse."""
    only = tmp_path / "only"
    for folder in (store / "cells").iterdir():
        if (folder / "own").exists() and "multimnist" in (folder / "training.json").read_text():
            shutil.copytree(folder, only / "cells" / folder.name)
    gone = worse(only, tmp_path / "gone")
    (body,) = json.loads(compare(only, gone, "--json").out)
    assert body["classes"][0]["name"] == "0"
    assert body["classes"][0]["second"] == 0
    truth = load_truth(next((only / "cells").iterdir()) / "own")
    without = {row["scene"] for row in body["scenes_that_differ"]}
    assert 3 in without or not (truth.image == 3).any()
    holds = {*truth.image[truth.labels == 0].tolist(), 3}
    assert without <= holds
    assert body["figures"]["ap50"]["verdict"] == "better"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gmiar", "pca-gmm"), "no row named 'gmiar'; did you mean 'gmair'?"),
        (("gmair@multimnits", "pca-gmm"), "did you mean 'multimnist'?"),
        (("gmair[recon=9]", "pca-gmm"), "no row of gmair has all of these options"),
        (("gmair@fruit2d-sim", "pca-gmm"), "no data set and protocol is in both"),
        (("ffffff", "pca-gmm"), "no cell in"),
        (("/dev/null", "pca-gmm"), "is no cell, no directory of cells"),
    ],
)
def test_what_cannot_be_compared_is_one_line(words: tuple[str, str], says: str, store: Path) -> None:
    ran = compare(*words, "--out", store)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err.splitlines()[-1]


def test_a_paragraph_of_nothing_and_scenes_in_order() -> None:
    empty = Duel("A", "B", "D", "demo", [(0, 0)], 4, {}, {"seconds": (0.0, 0.0), "peak_memory_mb": (0.0, 0.0)},
                 np.array([0.0, -2.0, 1.0, 2.0]), [], [])  # fmt: skip
    assert "more objects right in 2 scenes (most in 3, 2) and fewer in 1 (most in 1)" in paragraph(empty)
    assert scenes_that_differ(empty.by_scene) == [1, 3, 2]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((161.0, 160.0), "It took about the same training time (161 s against 160)."),
        ((240.0, 160.0), "It took 1.5 times the training time (240 s against 160)."),
        ((1500.0, 0.1), "It took 15000 times the training time (1500 s against 0.1)."),
        ((0.1, 1500.0), "It took 1/15000 of the training time (0.1 s against 1500)."),
    ],
)
def test_a_cost_is_said_in_plain_numbers(seconds: tuple[float, float], said: str) -> None:
    duel = Duel("A", "B", "D", "demo", [(0, 0)], 4, {}, {"seconds": seconds, "peak_memory_mb": (0.0, 0.0)},
                np.zeros(4), [], [])  # fmt: skip
    assert said in paragraph(duel)


def test_metrics_of_one_file_have_draws_of_their_own_in_the_cache(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, again = (json.loads(compare("gmair", "pca-gmm", "--out", store, "--json").out) for _ in range(2))
    assert {"ap50", "f1", "acc", "ap_class", "missed"} <= first[0]["figures"].keys()
    assert again == first
