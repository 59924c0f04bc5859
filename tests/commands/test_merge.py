"""`objbench merge`: two halves are the whole, contradictions are refused, and nothing is written by halves."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from objbench.cells import merge as merging
from objbench.cells.files import read_json, write_json
from objbench.cells.store import Store, read_record, read_trained, write_record, write_trained
from objbench.score.arrays import load_tensors, save_tensors
from running import objbench, run_here, toy_cell

DEMO = Path(__file__).parents[2] / "results" / "demo"


def copied(keys: list[str], to: Path) -> Path:
    """A store of these trainings of the demo."""
    for key in keys:
        shutil.copytree(DEMO / "cells" / key, to / "cells" / key)
    return to


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cells(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(folder).items() if name.startswith("cells/")}


@pytest.fixture(scope="module")
def demo() -> list[str]:
    return sorted(p.name for p in (DEMO / "cells").iterdir())


@pytest.mark.slow
def test_the_report_of_two_halves_is_that_of_one_run(demo: list[str], tmp_path: Path) -> None:
    whole = copied(demo, tmp_path / "whole")
    halves = [copied(demo[i::2], tmp_path / name) for i, name in enumerate("ab")]
    ran = objbench("merge", *map(str, halves), "--to", str(tmp_path / "all"))
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'all'}: 24 cells copied, 0 there already\n")
    assert cells(tmp_path / "all") == cells(whole)
    for form in ("md", "json"):
        reports = [
            objbench("report", "--out", str(tmp_path / n), "--format", form).out for n in ("whole", "all")
        ]
        assert reports[0] == reports[1] != ""


def test_merging_twice_changes_nothing(demo: list[str], tmp_path: Path) -> None:
    one, two = copied(demo[:2], tmp_path / "a"), copied(demo[1:3], tmp_path / "b")
    words = ["merge", str(one), str(two), "--to", str(tmp_path / "all")]
    assert objbench(*words).code == 0
    before = everything(tmp_path / "all")
    stats = {p: os.stat(tmp_path / "all" / p).st_mtime_ns for p in before}
    again = objbench(*words)
    assert (again.code, again.out) == (0, f"{tmp_path / 'all'}: 0 cells copied, 3 there already\n")
    assert everything(tmp_path / "all") == before
    assert {p: os.stat(tmp_path / "all" / p).st_mtime_ns for p in before} == stats
    assert objbench("merge", str(two), "--to", str(one)).code == 0  # into one of them
    assert sorted(cells(one)) == sorted(cells(tmp_path / "all"))


def other_detections(folder: Path) -> None:
    """Makes it a training of another machine, which found its first box elsewhere."""
    found = load_tensors(folder / "detections.safetensors")
    found["boxes"][0] += 0.25
    save_tensors(folder / "detections.safetensors", found)
    trained = read_trained(folder)
    write_trained(folder, trained, trained.files)


def other_figures(folder: Path) -> None:
    """Makes its cells say another AP."""
    for path in folder.glob("*/record.json"):
        result, files = read_record(path.parent)
        result.metrics["ap50"] -= 0.125
        write_record(path.parent, result, files)


@pytest.mark.parametrize(
    ("change", "what"), [(other_detections, "its detections differ"), (other_figures, "its ap50 is")]
)
def test_two_different_results_are_refused(demo: list[str], tmp_path: Path, change, what: str) -> None:  # type: ignore[no-untyped-def]
    one, two = copied(demo[:2], tmp_path / "a"), copied(demo[:2], tmp_path / "b")
    change(two / "cells" / demo[1])
    ran = objbench("merge", str(one), str(two), "--to", str(tmp_path / "all"))
    assert ran.code == 2
    assert not (tmp_path / "all").exists()
    (line,) = ran.err.splitlines()
    assert line.startswith(f"objbench: two different results for {demo[1]}")
    assert f"{one / 'cells' / demo[1]}" in line
    assert f"{two / 'cells' / demo[1]}" in line
    assert what in line
    before = everything(one)
    assert objbench("merge", str(two), "--to", str(one)).code == 2  # into one of them
    assert everything(one) == before


def test_a_store_that_is_being_written_is_refused(demo: list[str], tmp_path: Path) -> None:
    one, two = copied(demo[:1], tmp_path / "a"), copied(demo[1:2], tmp_path / "b")
    store = Store(two)
    store.prepare()
    lock = store.lock(demo[1])
    assert lock is not None
    try:
        ran = objbench("merge", str(one), str(two), "--to", str(tmp_path / "all"))
        into = objbench("merge", str(one), "--to", str(two))
    finally:
        os.close(lock)
    assert (ran.code, into.code) == (2, 2)
    assert "is being written (process" in ran.err
    assert not (tmp_path / "all").exists()
    assert objbench("merge", str(one), str(two), "--to", str(tmp_path / "all")).code == 0


def test_a_store_that_changes_meanwhile_is_refused(
    demo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = copied(demo[:1], tmp_path / "a"), copied(demo[1:2], tmp_path / "b")
    plan = merging.plan_merge
    folder = one / "cells" / demo[0]

    def planned(*words):  # type: ignore[no-untyped-def]
        found = plan(*words)
        (folder / "detections.safetensors").write_bytes(b"half of it")
        return found

    monkeypatch.setattr(sys.modules["objbench.commands.merge"], "plan_merge", planned)
    ran = objbench("merge", str(one), "--to", str(two))
    assert ran.code == 2
    assert "changed while it was merged" in ran.err
    assert list(cells(two)) == [name for name in cells(two) if demo[1] in name]
    assert not list(two.glob(".merge-*"))


def test_a_damaged_cell_is_left_out_and_said(demo: list[str], tmp_path: Path) -> None:
    one = copied(demo[:2], tmp_path / "a")
    (one / "cells" / demo[0] / "truth.safetensors").write_bytes(b"")
    ran = objbench("merge", str(one), "--to", str(tmp_path / "all"))
    assert ran.code == 1
    assert f"warning: {one / 'cells' / demo[0]} is left out" in ran.err
    assert [p.name for p in (tmp_path / "all" / "cells").iterdir()] == demo[1:2]


def test_what_is_finished_takes_the_place_of_what_is_not(tmp_path: Path) -> None:
    cell = toy_cell("toy", "toy.steps=4")
    for name in "ab":
        assert run_here(tmp_path / name, cell).status == "done"
    halfway = Store(tmp_path / "b").folder(cell.training.key)
    (halfway / "trained.json").unlink()
    (halfway / "own" / "record.json").unlink()
    write_record(halfway / "own", cell.result("interrupted"))
    for stores in (("a", "b"), ("b", "a")):
        to = tmp_path / "".join(stores)
        assert objbench("merge", *(str(tmp_path / s) for s in stores), "--to", str(to)).code == 0
        assert Store(to).result(cell.key).status == "done"
    assert objbench("merge", str(tmp_path / "a"), "--to", str(tmp_path / "b")).code == 0
    assert Store(tmp_path / "b").result(cell.key).status == "done"
    assert [p.name for p in (tmp_path / "b" / "cells").iterdir() if "old" in p.name]  # nothing is lost
    before = everything(tmp_path / "a")
    halfway = next(p for p in (tmp_path / "b" / "cells").iterdir() if "old" in p.name)
    halfway.rename(tmp_path / "c")
    (tmp_path / "d" / "cells").mkdir(parents=True)
    (tmp_path / "c").rename(tmp_path / "d" / "cells" / cell.training.key)
    ran = objbench("merge", str(tmp_path / "d"), "--to", str(tmp_path / "a"))
    assert "0 cells copied, 1 there already" in ran.out
    assert cells(tmp_path / "a") == {k: v for k, v in before.items() if k.startswith("cells/")}


def test_cells_of_one_training_come_together(demo: list[str], tmp_path: Path) -> None:
    """Two people clustered the detections of one training in two ways."""
    (key,) = [k for k in demo if (DEMO / "cells" / k).glob("gmm-*")][:1]
    key = next(k for k in demo if list((DEMO / "cells" / k).glob("gmm-*")))
    one, two = copied([key], tmp_path / "a"), copied([key], tmp_path / "b")
    (mine,) = (two / "cells" / key).glob("gmm-*")
    body = read_json(mine / "cell.json")
    body["clusterer"]["config"]["restarts"] = 9
    from objbench.cells.identity import Cell, read_training

    other = Cell(read_training(two / "cells" / key), body["clusterer"])
    theirs = mine.rename(mine.with_name(other.clusterer_key))
    write_json(theirs / "cell.json", {k: v for k, v in body.items() if k not in ("sha256", "format")})
    record = json.loads((theirs / "record.json").read_text())
    record = {k: v for k, v in record.items() if k not in ("sha256", "format")} | {"cell": other.key}
    write_json(theirs / "record.json", record)
    assert objbench("merge", str(one), str(two), "--to", str(tmp_path / "all")).code == 0
    assert Store(tmp_path / "all").cell_keys() == sorted([f"{key}/{mine.name}", other.key])
    assert objbench("merge", str(two), "--to", str(one)).code == 0
    assert Store(one).cell_keys() == sorted([f"{key}/{mine.name}", other.key])


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    ran = objbench("merge", str(tmp_path / "none"), "--to", str(tmp_path / "all"))
    assert ran.code == 2
    assert f"no cells in {tmp_path / 'none'}" in ran.err
    assert not (tmp_path / "all").exists()
