"""The site: it builds strictly, and everything that a plugin's author may use is in it, with what it is."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACT = [
    "detector",
    "clusterer",
    "generation",
    "scenes",
    "masks",
    "metric",
    "options",
    "matching",
    "mistakes",
    "latents",
    "hookspecs",
]
CONTRACT += [f"spatial.{name}" for name in ("boxes", "cells", "glimpses", "parts")]


def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / "objbench" / f"{module.replace('.', '/')}.py").read_text())


def public(node: ast.AST) -> bool:
    return not getattr(node, "name", "_").startswith("_")


def undocumented(tree: ast.Module) -> Iterator[str]:
    """The public functions, classes, methods, fields and constants of a module that do not say what they are."""
    for node in filter(public, tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and public(method) and not ast.get_docstring(method):
                    yield f"{node.name}.{method.name}"
            yield from (f"{node.name}.{name}" for name in bare(node.body))
    yield from bare(tree.body)


def bare(body: list[ast.stmt]) -> Iterator[str]:
    """The names that a body gives values or types to, without a text after them or a meaning in `option`."""
    for node, after in zip(body, [*body[1:], None], strict=True):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name) or target.id.startswith("_"):
            continue
        value = getattr(node, "value", None)
        says = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if not says and not (isinstance(value, ast.Call) and ast.unparse(value.func) == "option"):
            yield target.id


@pytest.mark.parametrize("module", CONTRACT)
def test_everything_public_says_what_it_is(module: str) -> None:
    assert not list(undocumented(tree_of(module)))


def test_what_says_nothing_is_found() -> None:
    text = (
        '"""M."""\nA = 1\nB = 2\n"""B."""\n_C = 3\n\ndef f(): pass\n\ndef g():\n    """G."""\n\n'
        'class K:\n    """K."""\n    x: int\n    y: int\n    """Y."""\n    z: int = option(1, "z")\n'
        "    def m(self): pass\n    def _n(self): pass\n\nclass L: pass\n"
    )
    assert set(undocumented(ast.parse(text))) == {"A", "f", "K.x", "K.m", "L"}


def test_functions_of_tensors_give_shapes() -> None:
    """Each function of `objbench.spatial` says the shape of each tensor that it takes, and that it returns."""
    for module in (name for name in CONTRACT if name.startswith("spatial.")):
        for node in tree_of(module).body:
            if isinstance(node, ast.FunctionDef) and public(node) and node.name != "vector":
                shapes = re.findall(r"\[[^\]]*\]", ast.get_docstring(node) or "")
                taken = sum("Tensor" in ast.unparse(a.annotation) for a in node.args.args if a.annotation)
                assert len(shapes) >= max(1, taken), f"objbench.{module}.{node.name}"


def build(config: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """Builds the site as `make docs` does. With `--quiet`, mkdocs would let warnings pass."""
    words = [
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(to),
    ]
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=config.parent,
        env=os.environ | {"NO_COLOR": "1"},
    )


needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="the extra objbench[docs] is not installed"
)


@pytest.mark.slow
@needs_mkdocs
def test_the_site_builds_and_holds_every_public_name(tmp_path: Path) -> None:
    ran = build(ROOT / "mkdocs.yml", tmp_path)
    assert ran.returncode == 0, ran.stderr
    packed = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]
    there = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}
    missing = [
        f"objbench.{module}.{node.name}"
        for module in CONTRACT
        for node in tree_of(module).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and public(node)
    ]
    assert len(missing) > 50
    assert not set(missing) - there
    assert {"objbench.detector.Detections.from_padded", "objbench.detector.Detector.at_milestone"} <= there
    page = (tmp_path / "reference" / "spatial" / "index.html").read_text()
    assert "height, width: of the canvas in pixels" in page


@pytest.mark.slow
@needs_mkdocs
@pytest.mark.parametrize(
    "line", ["[gone](gone.md)", "[no heading](plugins.md#no-such-heading)", "::: objbench.gone"]
)
def test_what_leads_nowhere_fails_the_site(line: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "objbench").symlink_to(ROOT / "objbench")
    shutil.copyfile(ROOT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    page = tmp_path / "docs" / "index.md"
    page.write_text(f"{page.read_text()}\n{line}\n")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 1


def test_every_page_is_in_the_menu() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"- {page.relative_to(ROOT / 'docs')}\n" in text
