"""`objbench verify`: a cell's figures come out again, or it is said what has changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from objbench.cells.files import read_json, write_json
from objbench.cells.store import Store, read_record, write_record
from running import TOY, objbench, run_here, toy_cell

WORDS = ("toy", "toy.steps=6", "squares.size=20")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the cell of WORDS."""
    out = tmp_path_factory.mktemp("finished")
    run_here(out, toy_cell(*WORDS))
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of that store."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.mark.slow
def test_the_same_figures_come_out_again(out: Path) -> None:
    cell = toy_cell(*WORDS)
    ran = objbench("verify", str(out), "--cell", cell.key[:6], "--plugin", TOY)
    assert ran.code == 0, ran.err + ran.out
    assert ran.out.startswith("same: all ")


@pytest.mark.slow
def test_a_figure_that_differs_is_named_with_what_has_changed(out: Path, tmp_path: Path) -> None:
    cell = toy_cell(*WORDS)
    folder = out / "cells" / cell.key
    result, files = read_record(folder)
    provenance = result.provenance | {"python": "2.7.18"}
    claimed = replace(result, metrics=result.metrics | {"ap50": 0.123}, provenance=provenance)
    write_record(folder, claimed, files)
    ran = objbench("verify", str(out), "--cell", cell.key, "--plugin", TOY, "--to", str(tmp_path / "again"))
    assert ran.code == 1
    assert "ap50: 0.123000 then" in ran.out
    assert "since then: python was 2.7.18" in ran.out
    assert (tmp_path / "again" / "cells" / cell.key / "record.json").exists()


def test_what_cannot_be_verified_is_one_line(out: Path) -> None:
    cell = toy_cell(*WORDS)
    folder = out / "cells" / cell.key
    write_record(folder, replace(read_record(folder)[0], status="failed"))
    ran = objbench("verify", str(out), "--cell", cell.key, "--plugin", TOY)
    assert (ran.code, ran.out) == (2, "")
    assert "is failed, not done" in ran.err
    (folder / "record.json").write_text("{}")
    ran = objbench("verify", str(out), "--cell", cell.key, "--plugin", TOY)
    assert ran.code == 2
    assert "cut short or edited" in ran.err


def test_a_plugin_that_is_gone_is_named_with_its_package_and_the_cell(tmp_path: Path) -> None:
    cell = toy_cell("pca-gmm", "squares.size=20")  # of an installed model, on data of a file
    run_here(tmp_path, cell)
    said = (
        f"cell {cell.key}: no plugin registers the data set 'squares' any more; the file toy_plugin.py had "
        "registered it; name it with --plugin"
    )
    ran = objbench("verify", str(tmp_path), "--cell", cell.key[:6])
    assert (ran.code, ran.err) == (2, f"objbench: {said}\n")
    ran = objbench("show", cell.key[:6], "--out", str(tmp_path))
    assert (ran.code, ran.err) == (0, f"warning: {said}\n"), "pictures need no plugin"
    assert "png" in ran.out
    training = tmp_path / "cells" / cell.training.key / "training.json"
    plugin = {"name": "nice-pack", "version": "1.2"}
    about = {part: of | {"plugin": plugin} for part, of in cell.training.about.items()}
    write_json(training, read_json(training) | {"about": about})
    ran = objbench("verify", str(tmp_path), "--cell", cell.key[:6])
    assert "the package nice-pack 1.2 had registered it; install it again" in ran.err
    write_json(training, read_json(training) | {"about": {}})
    ran = objbench("verify", str(tmp_path), "--cell", cell.key[:6])
    assert "the package that had registered it is not recorded" in ran.err


@pytest.mark.slow
def test_other_code_is_said_before_it_trains(out: Path, tmp_path: Path) -> None:
    """As of a plugin that was edited after its cell was run."""
    cell = toy_cell(*WORDS)
    file = tmp_path / "toy_plugin.py"
    file.write_text(Path(TOY).read_text().replace("0.85).long()", "0.8499).long()"))
    command = [sys.executable, "-m", "objbench", "verify", str(out), "--cell", cell.key[:6]]
    with subprocess.Popen([*command, "--plugin", str(file)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.kill()  # the training that would follow is not needed
    key = cell.training.key
    assert first.startswith(f"warning: training {key} was run with other code than the installed code: ")
    assert "toy_plugin.py changed since" in first


def test_a_record_of_another_version_is_left_out_in_one_line(out: Path) -> None:
    folder = out / "cells" / toy_cell(*WORDS).key
    body = read_json(folder / "record.json")
    write_json(folder / "record.json", body | {"a_field_of_the_future": 1})
    results, warnings = Store(out).results()
    assert results == []
    assert len(warnings) == 1
    assert "another version" in warnings[0]
