"""What gets a user out of where things went wrong: seeds by list, cells anew, and removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from objbench.cells.store import Store, read_record
from running import Ran, objbench, rows_of, run, toy_cell


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two mixtures on one training, and two seeds of another model."""
    out = tmp_path_factory.mktemp("made")
    assert run(out, "toy-plain", "-o", "toy-plain.steps=5").code == 0
    assert run(out, "toy-plain", "-o", "toy-plain.steps=5", "-o", "gmm.clusters=2").code == 0
    assert run(out, "toy-fit", "--seeds", "1,3-3").code == 0
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    import shutil

    return Path(shutil.copytree(made, tmp_path / "out"))


def rm(out: Path, *words: str) -> Ran:
    return objbench("rm", "--out", str(out), *words)


def keys(model: str, *options: str, seed: int = 0) -> str:
    return toy_cell(model, *options, seed=seed).key


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [0, 1, 2]), ("3-5,7", [3, 4, 5, 7]), ("4-4", [4]), ("7,1,7", [7, 1]), (" 2 - 3 , 9 ", [2, 3, 9])],
)
def test_seeds(text: str, seeds: list[int], tmp_path: Path) -> None:
    rows = rows_of(run(tmp_path, "toy-fit", "--seeds", text, "--plan", "--json"))
    assert [row["seed"] for row in rows] == seeds


def test_only_the_seeds_that_were_asked_for_were_run(made: Path) -> None:
    results, _ = Store(made).results()
    assert sorted(r.seed for r in results if r.model == "toy-fit") == [1, 3]


def test_force_trains_anew_and_loses_nothing(out: Path) -> None:
    key = keys("toy-fit", seed=1)
    folder = Store(out).folder(key)
    before = read_record(folder)[0]
    plan = run(out, "toy-fit", "--seeds", "1,3", "--force", "--plan").out
    assert "seed 1: done; to be set aside and run anew" in plan
    assert "2 of 2 cells to run" in plan
    ran = run(out, "toy-fit", "--seeds", "1-1", "--force")
    assert ran.code == 0
    aside = folder.parent.with_name(f"{folder.parent.name}.old-1")
    assert f"the old training was renamed to {aside}" in ran.err
    after = read_record(folder)[0]
    assert after.status == "done"
    assert after.provenance["wall_seconds"] != before.provenance["wall_seconds"], "another training"
    assert (aside / folder.name / "record.json").exists()
    assert len(Store(out).results()[0]) == 4, "what is set aside is in no table"
    assert run(out, "toy-fit", "--seeds", "1-1", "--force").code == 0
    assert folder.parent.with_name(f"{folder.parent.name}.old-2").exists()


def test_force_says_what_else_went_aside(out: Path) -> None:
    ran = run(out, "toy-plain", "-o", "toy-plain.steps=5", "--force")
    assert ran.code == 0
    assert "the old training with its 2 cells was renamed to" in ran.err


def test_rm_removes_a_cell_and_with_the_last_its_training(out: Path) -> None:
    store = Store(out)
    ten, two = (keys("toy-plain", "toy-plain.steps=5", f"gmm.clusters={n}") for n in (10, 2))
    training = store.folder(ten).parent
    ran = rm(out, ten, "--yes")
    assert (ran.code, ran.out.startswith("removed 1 cell, ")) == (0, True)
    assert f"{ten}  toy-plain+gmm on squares, seed 0: done" in ran.err
    assert not store.folder(ten).exists()
    assert store.verify(two) is not None
    assert rm(out, two[:20], "--yes").code == 0
    assert not training.exists()
    assert len(store.cell_keys()) == 2
    assert store.results()[1] == []
    assert not [p for p in store.cells.iterdir() if p.name.startswith(".")]


def test_rm_asks_where_somebody_is_and_refuses_elsewhere(out: Path) -> None:
    key = keys("toy-fit", seed=1)
    ran = rm(out, key)
    assert ran.code == 2
    assert "1 cell, " in ran.err
    assert "use --yes when there is no terminal to ask on" in ran.err
    assert Store(out).verify(key) is not None


def test_rm_of_a_running_cell_removes_nothing(out: Path) -> None:
    store = Store(out)
    lock = store.lock(keys("toy-fit", seed=3))
    assert lock is not None
    ran = rm(out, keys("toy-fit", seed=1), keys("toy-fit", seed=3), "--yes")
    os.close(lock)
    assert ran.code == 2
    assert f"is running: process {os.getpid()} on " in ran.err
    assert len(store.cell_keys()) == 4


def test_rm_of_damaged_cells_and_of_unknown_ones(out: Path) -> None:
    key = keys("toy-fit", seed=1)
    (Store(out).folder(key) / "record.json").write_text("{")
    assert "damaged: record.json was cut short" in rm(out, key, "--yes").err
    assert not Store(out).folder(key).exists()
    assert "no cell in " in rm(out, "zzz", "--yes").err
    several = rm(out, keys("toy-plain", "toy-plain.steps=5").partition("/")[0], "--yes")
    assert (several.code, "is the beginning of 2 cells" in several.err) == (2, True)
    assert rm(out, "", "--yes").code == 2
