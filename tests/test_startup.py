"""What is needed to start is light, and the harness knows no plugin."""

from __future__ import annotations

import ast
import json
import os
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
    "cache",
    "code",
    "difference",
    "evaluation",
    "files",
    "identity",
    "matrix",
    "merge",
    "origin",
    "overrides",
    "pace",
    "plan",
    "protocols",
    "result",
    "store",
    "sweeps",
]
LIGHT = [f"objbench.cells.{name}" for name in CELLS]
LIGHT += ["objbench.run.runner", "objbench.run.link", "objbench.run.local"]
LIGHT += [
    "objbench.report.rows",
    "objbench.report.tables",
    "objbench.report.text",
    "objbench.report.believed",
    "objbench.report.drawn",
    "objbench.report.statistics",
]


def test_facts_and_the_runner_and_tables_are_imported_without_torch() -> None:
    there = {path.stem for path in (Path(objbench.__file__).parent / "cells").glob("[!_]*.py")}
    assert set(CELLS) == there, "all of the room"
    code = (
        f"import importlib, sys\n[importlib.import_module(n) for n in {LIGHT}]\nprint('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["info", "gmair"], {"torch", "numpy"}),
        (["info", "multimnist"], {"torch", "numpy"}),
        (
            ["run", "--models", "gmair,spair,space", "--data", "multimnist", "--plan", "--out", "/nowhere"],
            {"rich"},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_answer_imports_nothing_heavy_that_it_does_not_need(words: list[str], allowed: set[str]) -> None:
    heavy = [
        "torch",
        "torchvision",
        "numpy",
        "pandas",
        "matplotlib",
        "scipy",
        "sklearn",
        "h5py",
        "PIL",
        "rich",
    ]
    code = (
        "import sys, json\n"
        f"sys.argv = ['objbench', *{words!r}]\n"
        "from objbench.commands import main\n"
        "try:\n    main()\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(ran.stdout.splitlines()[-1])) <= allowed


@pytest.mark.slow
def test_planning_imports_torch_and_nothing_else_heavy(tmp_path: Path) -> None:
    words = ["run", "--models", "gmair,spair,space", "--data", "multimnist", "--plan", "--out", str(tmp_path)]
    ran = subprocess.run([sys.executable, "-m", "objbench", *words], capture_output=True, text=True, check=True,
                         env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"})  # fmt: skip  # its children's, too
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if "import time:" in line}
    assert "torch" in imported
    assert not imported & {"torchvision", "pandas", "matplotlib", "scipy", "sklearn", "h5py"}


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
