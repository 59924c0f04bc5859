"""`objbench run --plan` knows the pace that `objbench check` has measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from objbench.cells.pace import keep_pace, known_pace
from objbench.conformance.kit import run_check
from objbench.conformance.subjects import find_subjects
from running import TOY, Ran, run, toy_cell, toys


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan(out: Path, *words: str) -> Ran:
    return run(out, "toy", "--plan", *words)


def test_what_check_measures_is_used_until_a_cell_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "[unknown]" in plan(out).out
    (subject,) = [s for s in find_subjects(toys(), TOY) if s.name == "toy"]
    (cost,) = [check for check in subject.checks if check.name == "cost"]
    assert run_check(subject, cost).outcome == "passed"
    code = toy_cell("toy").identity["model_code"]
    pace = known_pace("toy", code)
    assert pace is not None
    assert 0 < pace < 1
    assert known_pace("gmair", toy_cell("toy").identity["model_code"]) is None, "of other code"
    (row,) = json.loads(plan(out, "--json").out)
    assert row["estimate"] == pytest.approx(60 * 8 * pace)  # steps, images a step
    keep_pace("toy", code, 0.5)
    assert "[240 s" not in plan(out).out
    assert "[4 min of training, at the pace that objbench check measured]" in plan(out).out
    assert "cells to run: about 4 min" in plan(out).out
    assert "[unknown]" in plan(out, "--protocol", "small").out, "it is measured under demo"
    assert run(out, "toy").code == 0
    assert "at the pace that objbench check" not in plan(out, "-o", "toy.steps=70").out, "a cell tells more"


def test_a_damaged_or_missing_cache_is_no_estimate(cache: Path) -> None:
    keep_pace("toy", "abc", 0.5)
    (file,) = cache.rglob("*.json")
    file.write_text(file.read_text().replace("0.5", "0.7"))
    assert known_pace("toy", "abc") is None
    file.write_text("{")
    assert known_pace("toy", "abc") is None


def test_a_cache_that_cannot_be_written_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_pace("toy", "abc", 0.5)
    assert known_pace("toy", "abc") is None
