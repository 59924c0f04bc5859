"""What is needed to start is light, and the harness knows no plugin."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import objbench

HEAVY = ["torch", "torchvision", "numpy", "pandas", "matplotlib", "scipy", "sklearn", "rich", "safetensors"]
SOURCES = sorted(Path(objbench.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["list", "models"], ["plugins"], ["--version"]], ids=" ".join
)
def test_a_quick_answer_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys, json\n"
        f"sys.argv = ['objbench', *{words!r}]\n"
        "from objbench.commands import main\n"
        "try:\n    main()\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.splitlines()[-1]) == []


CELLS = [
    "about",
    "code",
    "difference",
    "files",
    "identity",
    "matrix",
    "overrides",
    "pace",
    "plan",
    "protocols",
    "result",
    "store",
]
LIGHT = [f"objbench.cells.{name}" for name in CELLS]
LIGHT += ["objbench.run.runner", "objbench.run.link", "objbench.run.local"]
LIGHT += [
    "objbench.report.rows",
    "objbench.report.tables",
    "objbench.report.text",
    "objbench.report.believed",
]


def test_facts_and_the_runner_and_tables_are_imported_without_torch() -> None:
    there = {path.stem for path in (Path(objbench.__file__).parent / "cells").glob("[!_]*.py")}
    assert set(CELLS) == there, "all of the room"
    code = (
        f"import importlib, sys\n[importlib.import_module(n) for n in {LIGHT}]\nprint('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_the_harness_imports_no_plugin(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        assert not [n for n in names if n.partition(".")[0] in ("objbench_plugins", "plugins")], path


def test_the_harness_names_no_plugin() -> None:
    registered = {"gmair", "spair", "space", "multimnist", "ap50", "nmi", "fruit2d"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in registered, f"{path.name} names {node.value}"
