"""The README and docs/*.md: tables are those of the committed results, commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from objbench.commands import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = [
    block
    for page in PAGES
    for block in re.findall(r"^```(?:console|text)?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
]
LINES = [
    line.split("#")[0].strip()
    for block in FENCED
    for line in block.splitlines()
    if line.startswith("objbench ")
]


def test_the_tables_are_those_of_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("publish", ROOT / "results" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    publish = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(publish)
    assert publish.BLOCK.search(README), "the README holds no table"
    assert publish.with_tables(README) == README, "run `python results/publish.py results/demo`"


@pytest.mark.parametrize("line", LINES)
def test_every_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group):
        assert words[0] in command.commands, f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_its_pictures_and_pages_exist() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).exists(), link


def test_make_knows_what_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
