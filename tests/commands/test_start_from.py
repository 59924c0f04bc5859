"""`-o NAME.start_from=CELL`: a training starts from the weights of a finished one, and its key holds them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from objbench.cells.files import read_json
from objbench.cells.identity import START, Cell, read_training, write_cell
from objbench.cells.matrix import matrix
from objbench.cells.origin import WEIGHTS, origin_folder
from objbench.cells.overrides import parse_overrides
from objbench.cells.protocols import protocol
from objbench.cells.store import Store, read_record, read_trained, write_trained
from objbench.errors import Interrupted, UsageError
from objbench.run import worker
from objbench.score.arrays import load_tensors, save_tensors
from objbench.score.trained import Built, build_training, load_weights
from objbench.train.loop import train
from objbench.train.outcome import run_training
from running import TOY, Until, objbench, run, run_here, toy_cell, toys

FIRST = ["toy.steps=12", "toy.at=99"]
SECOND = ["toy.steps=16", "toy.at=99", "squares.most=5"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished training of each toy."""
    folder = tmp_path_factory.mktemp("finished")
    run_here(folder, toy_cell("toy", *FIRST))
    run_here(folder, toy_cell("toy-fit"))
    return folder


@pytest.fixture
def first(out: Path) -> Path:
    """The folder of the training to start from."""
    return Store(out).folder(toy_cell("toy", *FIRST).training.key)


def cell(out: Path, start: str, *options: str) -> Cell:
    """The cell that starts there."""
    words = parse_overrides([*SECOND, f"toy.start_from={start}", *options])
    return matrix(toys(), ["toy"], ["squares"], [0], protocol("demo"), words, out=str(out))[0]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_key_holds_the_weights_and_not_where_they_lie(out: Path, first: Path, tmp_path: Path) -> None:
    plain, started = toy_cell("toy", *SECOND), cell(out, first.name[:6])
    assert started.key != plain.key
    assert started.training.identity[START] == {
        "training": first.name,
        "weights": read_trained(first).files[WEIGHTS],
    }
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    at_paths = [str(first), str(first / "own"), str(moved / "cells" / first.name), f"{first.name}/own"]
    assert {cell(out, start).key for start in at_paths} == {started.key}
    assert str(out) not in str(started.training.identity)


def test_other_content_under_the_same_key_is_another_cell(out: Path, first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    cell_ = toy_cell("toy", *FIRST)
    shutil.copytree(out, other)
    folder = Store(other).folder(cell_.training.key)
    changed = {name: tensor + 1 for name, tensor in load_tensors(folder / WEIGHTS).items()}
    save_tensors(folder / WEIGHTS, changed)
    with pytest.raises(UsageError, match=r"weights\.safetensors was cut short or edited"):
        cell(other, first.name)
    trained = read_trained(folder)
    write_trained(folder, dataclasses.replace(trained, files={}), trained.files)
    assert cell(other, first.name).key != cell(out, first.name).key


def test_it_starts_from_these_weights_and_says_so(
    out: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    original = run_training

    def watched(built: Built, *rest: object) -> object:
        seen.append({name: value.clone() for name, value in built.detector.state_dict().items()})
        return original(built, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "run_training", watched)
    started = cell(out, first.name)
    result = run_here(out, started)
    assert result.status == "done", result.error
    assert equal(seen[0], load_tensors(first / WEIGHTS))
    assert result.provenance[START] == started.training.identity[START]
    assert result.train_steps == 16, "its own steps, from 0"
    ended = load_tensors(Store(out).folder(started.training.key) / WEIGHTS)
    assert not equal(ended, seen[0])


def test_resumed_it_ends_bit_for_bit_the_same_and_needs_the_start_no_more(
    out: Path, first: Path, tmp_path: Path
) -> None:
    started = cell(out, first.name)
    whole = tmp_path / "whole"
    run_here(whole, started)  # from another store: the weights are found where they lay
    stopped = Store(tmp_path / "stopped")
    stopped.prepare()
    folder = stopped.folder(started.key)
    folder.mkdir(parents=True)
    write_cell(folder, started)
    built = build_training(toys(), started.training, "cpu")
    load_weights(origin_folder(stopped.cells, started.training), built.detector)
    with pytest.raises(Interrupted):
        train(built.detector, built.train_source, 0, folder.parent, Until(8), 2_000)
    lost = dataclasses.replace(started, training=dataclasses.replace(started.training, weights_from=""))
    write_cell(folder, lost)
    assert lost.key == started.key
    assert run_here(stopped.out, lost).status == "done"
    ends = [load_tensors(Store(o).folder(started.training.key) / WEIGHTS) for o in (whole, stopped.out)]
    assert equal(*ends)


def test_weights_that_are_gone_fail_the_cell_in_one_line(out: Path, first: Path, tmp_path: Path) -> None:
    started = cell(out, first.name)
    lost = dataclasses.replace(started, training=dataclasses.replace(started.training, weights_from=""))
    result = run_here(tmp_path, lost)
    assert result.status == "failed"
    assert f"the weights of training {first.name}, which are needed" in result.error


@pytest.fixture
def unfinished(out: Path) -> Iterator[str]:
    """The key of a training that has not ended."""
    begun = toy_cell("toy", *FIRST, seed=1)
    folder = Store(out).folder(begun.key)
    folder.mkdir(parents=True)
    write_cell(folder, begun)
    yield begun.training.key
    shutil.rmtree(folder.parent)


def test_what_cannot_be_started_from_is_refused(
    out: Path, first: Path, unfinished: str, tmp_path: Path
) -> None:
    fitted = toy_cell("toy-fit").training.key

    def refused(model: str, start: str, *more: str) -> str:
        ran = run(out, model, "-o", f"{model}.start_from={start}", *more)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.count("\n") == 1
        return ran.err

    assert "no training in" in refused("toy", "zzz")
    assert first.name in refused("toy", "zzz"), "what there is"
    assert f"training {unfinished} is not finished" in refused("toy", unfinished)
    assert f"training {fitted} is of model 'toy-fit', not of 'toy'" in refused("toy", fitted)
    assert "toy-fit does not train by steps" in refused("toy-fit", first.name)
    bare = tmp_path / first.name
    shutil.copytree(first, bare)
    (bare / WEIGHTS).unlink()
    assert f"training {first.name} was kept without its weights" in refused("toy", str(bare))


def test_weights_that_do_not_fit_are_refused_with_parameter_and_shapes(out: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "coloured.py"
    plugin.write_text(
        "from objbench import DataSpec, hookimpl\nfrom objbench.scenes import Scenes, SceneShape\n"
        "from toy_plugin import Squares\n"
        "class Coloured(Squares):\n"
        "    shape = SceneShape(3, 16, 16)\n"
        "    def scenes(self, split, indices):\n"
        "        grey = super().scenes(split, indices)\n"
        "        return Scenes(grey.images.expand(-1, 3, -1, -1).contiguous(), grey.truth)\n"
        "objbench_data = hookimpl(lambda: [DataSpec('coloured', 'squares', 'coloured:Coloured')])\n"
    )
    key = toy_cell("toy", *FIRST).training.key
    ran = objbench(
        "run", "--models", "toy", "--data", "coloured", "--plugin", TOY, "--plugin", str(plugin),
        "--out", str(out), "-o", f"toy.start_from={key}",
    )  # fmt: skip
    assert ran.code == 2
    assert "'decode.bias' has shape [1] there and [3] here" in ran.err


def test_plan_report_verify_and_predict(out: Path, first: Path) -> None:
    words = [word for option in (*SECOND, f"toy.start_from={first.name}") for word in ("-o", option)]
    assert run(out, "toy", *words).code == 0
    key = cell(out, first.name).key
    assert run(out, "toy", *words, "--plan").out.startswith(f"{key}  toy on squares, seed 0: done")
    report = objbench("report", "--no-intervals", "--out", str(out), "--plugin", TOY, "--format", "csv").out
    (line,) = [line for line in report.splitlines() if key in line]
    assert f"start_from={first.name[:8]}" in line
    verified = objbench("verify", str(out), "--cell", key, "--plugin", TOY)
    assert verified.code == 0, verified.err
    assert read_training(Store(out).folder(key).parent).weights_from == str(first)
    config = read_json(Store(out).folder(key).parent / "training.json")["model_config"]
    assert config.get(START, "") == "", "the identity says it"
    assert read_record(Store(out).folder(key))[0].provenance[START]["training"] == first.name


def test_check_does_not_take_it() -> None:
    ran = objbench("check", "toy", "--plugin", TOY, "-o", "toy.start_from=abc")
    assert ran.code == 2
    assert "leave it out" in ran.err
