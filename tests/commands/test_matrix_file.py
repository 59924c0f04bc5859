"""Matrix files: what they hold is what the command line would; what is wrong in one is said with its line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from objbench.cells.store import Store
from objbench.commands.matrix_file import line_of
from objbench.plugins import load_plugins
from running import TOY, objbench, rows_of

ROOT = Path(__file__).parents[2]
FILE = f"""\
# a comment
models = ["toy", "toy-plain"]
data = "squares"
seeds = [2, 4]
plugin = {json.dumps(TOY)}

[options.toy]
steps = [2, 3]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "matrix.toml"
    path.write_text(text)
    return str(path)


def planned(*words: str) -> list[tuple[str, str]]:
    ran = objbench("run", *words, "--plan", "--json")
    assert ran.code == 0, ran.err
    return [(row["cell"], row["status"]) for row in rows_of(ran)]


def test_a_file_is_the_same_matrix_as_the_words(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "runs")]
    words = ["--models", "toy,toy-plain", "--data", "squares", "--seeds", "2,4", "--plugin", TOY, *out]
    by_words = planned(*words, "-o", "toy.steps=2,3")
    by_file = planned(written(tmp_path, FILE), *out)
    assert by_file == by_words
    assert len(by_words) == 6  # toy twice, toy-plain once, two seeds: what is not swept is there once
    first, second = (planned(*words, "-o", f"toy.steps={n}") for n in (2, 3))
    assert {*first, *second} == {*by_words}


def test_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "runs")]
    file = written(tmp_path, FILE)
    assert len(planned(file, *out, "--models", "toy", "--seeds", "1", "-o", "toy.steps=5")) == 1
    assert planned(file, *out, "-o", "toy.steps=5", "--models", "toy") == planned(
        "--models", "toy", "--data", "squares", "--seeds", "2,4", "--plugin", TOY, *out, "-o", "toy.steps=5"
    )


def test_rows_of_a_sweep_are_told_apart(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "runs")]
    file = written(tmp_path, FILE.replace("[2, 4]", "1").replace('["toy", "toy-plain"]', '"toy"'))
    plan = objbench("run", file, *out, "--plan").out.splitlines()
    assert [line.partition("seed 0 ")[2].partition(":")[0] for line in plan[:2]] == ["[steps=2]", "[steps=3]"]
    ran = objbench("run", file, *out)
    assert ran.code == 0
    assert [line.partition("seed 0 ")[2].partition(" ")[0] for line in ran.out.splitlines()] == [
        "[steps=2]", "[steps=3]",
    ]  # fmt: skip
    table = objbench("report", "--no-intervals", *out, "--plugin", TOY).out
    assert "[steps=2]" in table
    assert "[steps=3]" in table
    again = objbench("run", file, *out)
    assert "nothing to run: all 2 cells are done" in again.err


@pytest.mark.parametrize(
    "options",
    [
        ["toy.steps=2,3"],
        ["toy.steps=2", "squares.folder=a dir, with a comma"],
        ['squares.folder="a,b"', "toy.lr=1e-3"],
        ['squares.folder="a,b","c"'],
        ["toy.steps=[2, 3]", 'squares.folder=quo"te'],
        [],
    ],
)
def test_what_was_typed_is_saved_and_read_again(tmp_path: Path, options: list[str]) -> None:
    out, file = str(tmp_path / "runs"), tmp_path / "saved.toml"
    words = ["--models", "toy", "--data", "squares", "--seeds", "3-4", "--plugin", TOY, "--out", out]
    words += [word for option in options for word in ("-o", option)]
    expected = planned(*words, "--workers", "2", "--save", str(file))
    assert planned(str(file)) == expected
    body = tomllib.loads(file.read_text())
    assert (body["seeds"], body["workers"], body["out"]) == ([3, 4], 2, out)
    assert "protocol" not in body  # it was not typed
    again = tmp_path / "again.toml"
    assert planned(str(file), "--save", str(again)) == expected
    assert again.read_text() == file.read_text()


def test_nothing_is_saved_of_what_cannot_run(tmp_path: Path) -> None:
    file = tmp_path / "saved.toml"
    ran = objbench(
        "run", "--models", "toy", "--data", "squares", "--plugin", TOY, "-o", "toy.stps=2", "--save", str(file),
        "--out", str(tmp_path / "runs"), "--plan",
    )  # fmt: skip
    assert ran.code == 2
    assert not file.exists()


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("data =", "dta ="), 3, "no key named 'dta'; did you mean 'data'?"),
        (("[options.toy]", "[option.toy]"), 7, "option is"),
        (("steps =", "stps ="), 8, "did you mean 'steps'?"),
        (("[2, 3]", "[]"), 8, "without values"),
        (("[2, 3]", '[2, "x"]'), 8, "toy.steps=x is not an integer"),
        (("[options.toy]", "[options.ty]"), 7, "did you mean 'toy'?"),
        (('"toy-plain"', '"toy-plin"'), 2, "did you mean 'toy-plain'?"),
        (('"squares"', '"sqares"'), 3, "did you mean 'squares'?"),
        (("[2, 4]", "0"), 4, "seeds: 0 is not in the range"),
        (("[2, 4]", "[2.5]"), 4, "seeds is [2.5]"),
        (("# a comment", "workers = 0"), 1, "workers: 0 is not in the range"),
        (("# a comment", "workers = [1]"), 1, "workers is [1]"),
        (("# a comment", 'device = "gpu"'), 1, "device: 'gpu' is not one of"),
        (("# a comment", 'protocol = "huge"'), 1, "huge"),
        (("# a comment", "force = true"), 1, "no key named 'force'"),
        (("[options.toy]\n", "[options]\ntoy = 3\n"), 8, "options.toy is 3"),
        (
            ("[options.toy]\n", '[options]\n"toy.steps" = 3\n'),
            8,
            "write a table: [options.toy] with steps = 3",
        ),
        (("[2, 3]", "{a = 1}"), 8, 'toy.steps is {"a": 1}'),
        (('["toy", "toy-plain"]', "[]"), 2, "not empty"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, change: tuple[str, str], line: int, says: str
) -> None:
    text = FILE.replace(*change)
    if "options]" in change[1]:
        text = text.replace("steps = [2, 3]\n", "")
    file = written(tmp_path, text)
    ran = objbench("run", file, "--out", str(tmp_path / "runs"), "--plan")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith(f"objbench: {file}, line {line}: ")
    assert says in ran.err
    assert not (tmp_path / "runs").exists()


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "runs")]
    assert planned(written(tmp_path, "\ufeff" + FILE), *out) == planned(written(tmp_path, FILE), *out)


@pytest.mark.parametrize("text", ["models = [", "\xff", "a = 1\na = 2\n"])
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "matrix.toml"
    file.write_bytes(text.encode("latin-1"))
    ran = objbench("run", str(file), "--plan")
    assert ran.code == 2
    assert f"objbench: {file} is not a TOML file" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_file_that_is_not_there_and_a_model_named_as_one(tmp_path: Path) -> None:
    assert "cannot be read" in objbench("run", str(tmp_path / "none.toml")).err
    assert "--models" in objbench("run", "gmair").err
    assert "--models" in objbench("run", "--data", "squares").err


def test_the_line_of_a_key() -> None:
    text = 'a = 1\n[options]\n"b.c".d = 2\n[options.x]\n  y = 3\n[[z]]\nk = 4\n'
    assert [line_of(text, keys) for keys in (("a",), ("options", "b.c", "d"), ("options", "x", "y"))] == [
        1,
        3,
        5,
    ]
    assert line_of(text, ("options", "x", "gone")) == 4


@pytest.mark.parametrize(
    ("name", "cells"), [("table2", 24), ("table2-small", 36), ("mnist", 24), ("clusters", 27)]
)
def test_the_files_of_the_benchmarks_can_be_planned(name: str, cells: int, tmp_path: Path) -> None:
    file = ROOT / "benchmarks" / f"{name}.toml"
    assert len(planned(str(file), "--out", str(tmp_path))) == cells


@pytest.mark.parametrize(
    ("name", "folder"),
    [("table2", "demo"), ("table2-small", "small"), ("clusters", "clusters"), ("mnist", "mnist")],
)
def test_the_files_of_the_benchmarks_make_the_published_rows(name: str, folder: str) -> None:
    """Every row of a published table is one of its file: detector with clusterer, data set, protocol and seed."""
    results = Store(ROOT / "results" / folder).results()[0]
    file = tomllib.loads((ROOT / "benchmarks" / f"{name}.toml").read_text())
    clusters = {model: spec.clusters for model, spec in load_plugins(()).models.items()}
    assert {r.protocol for r in results} == {file["protocol"]}
    assert {r.data for r in results} <= {*file["data"]}
    assert {r.seed for r in results} <= {*range(file["seeds"])}
    usual = {model: "own" if own else "gmm" for model, own in clusters.items()}
    named = {m if "+" in m else f"{m}+{usual[m]}" for m in file["models"]}
    assert {
        f"{r.model}+{r.clusterer or usual[r.model]}" for r in results
    } == named  # old records name no clusterer


def test_no_file_of_the_benchmarks_is_untried() -> None:
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.toml")} == {
        "table2",
        "table2-small",
        "mnist",
        "clusters",
    }
