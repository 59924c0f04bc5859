"""The README and docs/*.md: tables are those of the committed results, commands exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import click
import pytest

from objbench.commands import cli
from objbench.plugins import load_plugins

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


@pytest.mark.parametrize(("page", "kind"), [("protocols.md", "models"), ("clusterers.md", "clusterers")])
def test_prior_knowledge_is_what_the_specs_say(page: str, kind: str) -> None:
    """In tables whose first column is a name and whose last is what it knows; every spec that says so has a row."""
    rows = re.findall(
        r"^\| `([\w-]+)` \|(?:.*\|)? (.+) \|$", (ROOT / "docs" / page).read_text(), re.MULTILINE
    )
    specs = getattr(load_plugins(), kind)
    known = {spec.name: spec.prior_knowledge for spec in specs.values() if spec.prior_knowledge}
    assert {name: text for name, text in rows if name in specs} == known


def test_the_table_of_speed_is_that_of_its_record() -> None:
    """The columns that were measured here: seconds a step of two digits, GB with two digits."""
    page = (ROOT / "docs" / "speed.md").read_text()
    (name,) = set(re.findall(r"`(results/bench/[\w.-]+)`", page))
    record = {row["name"]: row for row in json.loads((ROOT / name).read_text())["rows"]}
    rows = re.findall(
        r"^\| (GMAIR|SPAIR|SPACE)(.*?) \| ([\d.]+) s, ([\d.]+) GB \| ([\d.]+) s", page, re.MULTILINE
    )
    assert len(rows) == 4
    for model, more, every, memory, gated in rows:
        kind = ", bfloat16" if "bfloat16" in more else ""
        whole = record[f"{model.lower()} step (paper, all cells{kind})"]
        assert f"{whole['value']:#.2g}" == every
        megabytes = int(re.search(r"(\d+) MB", whole["note"])[1])
        assert f"{megabytes / 1000:.1f}" == memory
        assert f"{record[f'{model.lower()} step (paper, gated{kind})']['value']:#.2g}" == gated


def test_the_readme_says_how_long_the_committed_trainings_were() -> None:
    records = [
        json.loads(file.read_text())
        for file in (ROOT / "results" / "small" / "cells").glob("*/*/record.json")
    ]
    on_cpu = [r for r in records if "NVIDIA" not in r["provenance"]["device"] and r["train_steps"]]
    assert 0 < len(on_cpu) < len(records)
    trained = {r["cell"].partition("/")[0]: r for r in on_cpu}
    steps = [r["train_steps"] for r in trained.values()]
    minutes = [r["seconds"] / 60 for r in trained.values()]
    assert f"{min(steps):,} to {max(steps):,} steps" in README
    assert f"the {len(trained)} trainings took {min(minutes):.0f} to {max(minutes):.0f} minutes" in README
