"""docs/plugins.md: its code is run, its twenty lines are twenty, and no hook is left out."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objbench import hookspecs, spatial
from objbench.clusterer import Clusterer, Cut, Objects
from objbench.detector import Detections, Detector
from objbench.generation import Generator
from objbench.scenes import SceneSource
from running import objbench, rows_of

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
DETECTOR, CONFIG, CHECK, FIT, DATA, METRIC, DRAWS, CLUSTERER, TESTS = BLOCKS


def code_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.fixture
def spots(tmp_path: Path) -> Iterator[Path]:
    """The guide's detector in a file of its own, as a reader would save it."""
    file = tmp_path / "spots.py"
    file.write_text(DETECTOR)
    yield file
    sys.modules.pop("spots", None)


@pytest.fixture
def centres(tmp_path: Path) -> Iterator[Path]:
    """The guide's clusterer in a file of its own."""
    file = tmp_path / "centres.py"
    file.write_text(CLUSTERER)
    yield file
    sys.modules.pop("centres", None)


@pytest.fixture
def grown(tmp_path: Path) -> Iterator[Path]:
    """All of the guide's code in one file, the later detectors registered too."""
    file = tmp_path / "spots.py"
    more = (
        'objbench_models = hookimpl(lambda: [ModelSpec(n, n, f"spots:{c}", clusters=False) for n, c in ['
        + ('("options", "SpotsWithOptions"), ("fitted", "FittedSpots")]])\n')
    )
    file.write_text("\n".join([DETECTOR, CONFIG, FIT, DATA, METRIC, more]))
    yield file
    sys.modules.pop("spots", None)


def test_the_twenty_lines_are_twenty() -> None:
    for block in (DETECTOR, CLUSTERER):
        lines = code_lines(block)
        assert len(lines) == 20
        assert not [line for line in lines if len(line) > 110 or ";" in line]


def test_the_metric_that_weighs_draws_passes_the_check(tmp_path: Path) -> None:
    file = tmp_path / "my_metric.py"
    file.write_text(
        f"from objbench import hookimpl\n{METRIC}\n{DRAWS}\n"
        "objbench_metrics = hookimpl(lambda: [spec], specname='objbench_metrics')\n"
    )
    ran = objbench("check", str(file), "--json")
    sys.modules.pop("my_metric", None)
    assert ran.code == 0, ran.out
    assert {row["check"]: row["outcome"] for row in rows_of(ran)}["weighted"] == "passed"


def test_a_data_set_and_a_metric_are_ten_lines_each() -> None:
    for block in (DATA, METRIC):
        lines = [line for line in code_lines(block) if not line.startswith(("from ", "objbench_"))]
        assert len(lines) <= 11  # the first is the class's or the function's name
        assert not [line for line in lines if len(line) > 115]


@pytest.mark.slow
def test_the_twenty_lines_train_and_find_the_digits(spots: Path, tmp_path: Path) -> None:
    ran = objbench(
        "run", "--plugin", str(spots), "--models", "spots", "--data", "multimnist", "--out", str(tmp_path / "runs"),
        "-o", "spots.steps=20", "-o", "spots.lr=0.01", "-o", "gmm.restarts=1", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (row,) = rows_of(ran)
    assert row["train_steps"] == 20
    assert row["metrics"]["ap50"] > 0.9
    assert row["metrics"]["nmi"] > 0.1


def test_the_clusterer_of_the_guide_is_a_row_of_the_table(spots: Path, centres: Path, tmp_path: Path) -> None:
    plugins = ["--plugin", str(spots), "--plugin", str(centres), "--out", str(tmp_path / "runs")]
    ran = objbench(
        "run", *plugins, "--models", "spots+centres", "--data", "multimnist", "-o", "spots.steps=20",
        "-o", "spots.lr=0.01", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (row,) = rows_of(ran)
    assert row["clusterer"] == "centres"
    assert row["metrics"]["nmi"] > 0.2
    table = objbench("report", "--no-intervals", *plugins).out
    assert "spots + centres" in table
    assert "Clusters on MultiMNIST: 10." in table


def test_the_clusterer_of_the_guide_passes_the_kit(centres: Path) -> None:
    ran = objbench("check", str(centres))
    assert ran.code == 0, ran.out


@pytest.mark.slow
def test_the_twenty_lines_pass_the_kit(spots: Path) -> None:
    ran = objbench("check", str(spots), "-o", "spots.lr=0.003")
    assert ran.code == 0, ran.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["options", "fitted", "one-square", "boxes"])
def test_the_other_plugins_of_the_guide_pass_the_kit(name: str, grown: Path) -> None:
    ran = objbench("check", name, "--plugin", str(grown))
    assert ran.code == 0, ran.out


def test_the_check_of_options_of_the_guide_refuses_what_the_user_set() -> None:
    names: dict[str, Any] = {}
    exec(CHECK, names)
    late, early = SimpleNamespace(gate_step=9, steps=9), SimpleNamespace(gate_step=8, steps=9)
    assert names["fault_of"](late, None, {"gate_step"}).startswith("gate_step=9 is not below steps=9")
    assert names["fault_of"](late, None, {"steps"}) == names["fault_of"](early, None, {"gate_step"}) == ""


def test_the_options_of_the_guide_are_checked_and_reported(grown: Path) -> None:
    assert "-o options.threshold=0.1" in objbench("info", "options", "--plugin", str(grown)).out
    words = ["run", "--models", "options", "--data", "one-square", "--plugin", str(grown), "--plan"]
    assert "out of range: above 0, at most 1" in objbench(*words, "-o", "options.threshold=2").err
    assert "not one of: small, large" in objbench(*words, "-o", "options.backbone=huge").err


def test_every_hook_is_in_the_guide() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("objbench_")]
    assert len(hooks) >= 4
    missing = [hook for hook in hooks if f"| `{hook}` |" not in GUIDE]
    assert not missing, f"docs/plugins.md does not tell of {missing}"


def test_every_method_and_field_of_the_contract_is_in_the_guide() -> None:
    own = [n for n, f in vars(Detector).items() if inspect.isfunction(f) and not n.startswith("__")]
    own += ["settings", "Config", "oracle", *Detections.__dataclass_fields__]
    own += [n for n, f in vars(Clusterer).items() if inspect.isfunction(f) and not n.startswith("__")]
    own += ["cut", "needs_what", *Objects.__dataclass_fields__, *Cut.__dataclass_fields__]
    own += [name for name in SceneSource.__abstractmethods__ if not name.startswith("__")]
    missing = [name for name in own if not re.search(rf"\b{name}\b", GUIDE)]
    assert not missing, f"docs/plugins.md does not tell of {missing}"


def test_every_command_in_the_guide_exists_with_its_options() -> None:
    consoles = "\n".join(re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL))
    lines = [line.split() for line in consoles.splitlines() if line.startswith("objbench ")]
    assert len(lines) >= 6
    for words in lines:
        command = words[1:3] if words[1] == "data" else words[1:2]
        told = objbench(*command, "--help").out
        assert told, words
        for word in words:
            assert not word.startswith("--") or word in told, f"{words}: {word}"


def test_the_example_is_the_guide_word_for_word() -> None:
    example = (ROOT / "examples" / "spots" / "src" / "objbench_spots" / "model.py").read_text()

    def detector(text: str) -> str:
        (found,) = [n for n in ast.parse(text).body if isinstance(n, ast.ClassDef)]
        return ast.dump(found)

    assert detector(example) == detector(DETECTOR)
    assert code_lines(TESTS)[0] == "import pytest"


def test_signatures_in_the_guide_are_those_of_the_code() -> None:
    """Every `name(arguments)` in the first column of a table can be called so; a default is that of the code."""
    homes = [spatial, Detector, Detections, Clusterer, Generator, SceneSource]
    seen = 0
    for cell in re.findall(r"^\| (`[^|]*`)", GUIDE, re.MULTILINE):
        for name, arguments in re.findall(r"(\w+)\(((?:[^()`]|\([^()]*\))*)\)`", cell):
            functions = [f for home in homes if callable(f := getattr(home, name, None))]
            assert functions, f"the code has no {name}"
            given = [part.strip() for part in re.split(r",(?![^()]*\))", arguments) if part.strip()]
            assert any(fits(inspect.signature(f), given) for f in functions), f"{name}({arguments})"
            seen += 1
    assert seen > 25


def fits(signature: inspect.Signature, given: list[str]) -> bool:
    """Whether a function can be called with these arguments by place, and has the defaults that they state."""
    known = [p for p in signature.parameters.values() if p.name != "self"]
    needed = [p for p in known if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    stated = [(place, word.partition("=")) for place, word in enumerate(given) if "=" in word]
    return len(needed) <= len(given) <= len(known) and all(
        (name, ast.literal_eval(default)) == (known[place].name, known[place].default)
        for place, (name, _, default) in stated
    )
