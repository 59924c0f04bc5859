"""MKL or oneDNN: the choice, where it is kept, and what it changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from objbench.cells.protocols import protocol
from objbench.cells.result import Position
from objbench.errors import UsageError
from objbench.score.trained import build_training
from objbench.train import outcome, products
from objbench.train.checkpoint import save
from objbench.train.loop import Watch
from objbench.train.products import ONEDNN, choose, faster_and_exact, onednn
from running import toy_cell, toys

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize(
    ("asked", "before", "check", "wanted", "chosen"),
    [
        ("", "", True, True, True),
        ("auto", "", False, True, False),
        ("", "", True, False, False),  # a detector that does not ask for it, or a GPU
        ("mkl", "here" + ONEDNN, True, True, False),
        ("onednn", "here", False, True, True),
        ("onednn", "here", False, False, False),
        ("", "here", True, True, False),  # resumed on the same machine: as before
        ("", "here" + ONEDNN, False, True, True),
        ("", "there" + ONEDNN, False, True, False),  # on another: as it is here
        ("", "there", True, True, True),
    ],
)
def test_the_choice(asked, before, check, wanted, chosen, monkeypatch):
    monkeypatch.setenv(products.VARIABLE, asked)
    monkeypatch.setattr(products, "faster_and_exact", lambda: check)
    assert choose("here", before, wanted) is chosen


def test_an_unknown_choice_is_refused(monkeypatch):
    monkeypatch.setenv(products.VARIABLE, "blas")
    with pytest.raises(UsageError, match="OBJBENCH_PRODUCTS=blas: it can be auto, mkl or onednn"):
        choose("here", "", True)


def test_products_are_those_of_the_library_asked_for_only_inside_the_block():
    assert torch.get_float32_matmul_precision() == "highest"
    with onednn(True):
        assert torch.get_float32_matmul_precision() == "medium"
        with onednn(False):
            assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ZeroDivisionError), onednn(True):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("seconds", "faster"), [((0.2, 0.1), True), ((0.1, 0.1), False), ((0.1, 0.2), False)]
)
def test_the_check_takes_the_clearly_faster(seconds, faster, monkeypatch):
    """A clock by which a product takes as long as its library is said to."""
    clock = {"now": 0.0}

    def perf_counter() -> float:
        clock["now"] += seconds[torch.get_float32_matmul_precision() == "medium"] / 2
        return clock["now"]

    monkeypatch.setattr(products.time, "perf_counter", perf_counter)
    assert faster_and_exact.__wrapped__() is faster


def test_the_check_refuses_products_that_are_rounded(monkeypatch):
    monkeypatch.setattr(products, "FASTER", 0.0)
    assert faster_and_exact.__wrapped__()
    monkeypatch.setattr(products, "EXACT", 1e-9)  # float32 itself is further off
    assert not faster_and_exact.__wrapped__()


@needs_onednn
def test_training_records_the_choice_steps_use_it_and_detection_does_not(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(products.VARIABLE, "onednn")
    built = build_training(toys(), toy_cell("toy", "toy.steps=4").training, "cpu")
    monkeypatch.setattr(type(built.detector), "fast_products", True)
    seen: dict[str, set[str]] = {"training_step": set(), "detect": set()}

    def spied(name):
        plain = getattr(built.detector, name)

        def spy(*arguments):
            seen[name].add(torch.get_float32_matmul_precision())
            return plain(*arguments)

        return spy

    for name in seen:
        monkeypatch.setattr(built.detector, name, spied(name))
    few = replace(protocol("demo"), test_scenes=4, fit_scenes=8)
    done = outcome.run_training(built, 0, few, tmp_path, Watch())
    assert done.position.machine.endswith(ONEDNN)
    assert seen == {"training_step": {"medium"}, "detect": {"highest"}}


@needs_onednn
def test_resuming_keeps_the_choice_and_another_one_is_a_warning(tmp_path: Path, monkeypatch):
    few = replace(protocol("demo"), test_scenes=4, fit_scenes=8)

    def resumed(folder: str, asked: str, before: str) -> outcome.Outcome:
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(products.VARIABLE, asked)
        built = build_training(toys(), toy_cell("toy", "toy.steps=6").training, "cpu")
        monkeypatch.setattr(type(built.detector), "fast_products", True)
        at = Position(step=2, machine=before)
        if before:
            save(tmp_path / folder, at, built.detector, built.detector.optimizers())
        return outcome.run_training(built, 0, few, tmp_path / folder, Watch())

    mkl = resumed("fresh", "mkl", "").position.machine
    kept = resumed("kept", "auto", mkl + ONEDNN)
    assert (kept.position.machine, kept.warnings) == (mkl + ONEDNN, [])
    changed = resumed("changed", "mkl", mkl + ONEDNN)
    assert changed.warnings == [f"trained on {mkl}{ONEDNN} to step 2, then on {mkl}"]
