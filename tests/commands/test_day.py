"""docs/day.md: every command of the page is run as it is written, and does what the page says.

A shell reads each line. Once the packages are installed, the processes of objbench are forked: see `warm`.

With `-s` it prints what each command took.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_new import python_with

import warm

PAGE = (Path(__file__).parents[2] / "docs" / "day.md").read_text()
LINES = [
    line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


class Day:
    """Runs the lines of the page in a shell, in order."""

    def __init__(self, folder: Path) -> None:
        python = python_with(folder / "venv")
        command = f"#!{python}\nimport sys\nfrom objbench.commands import main\nmain()\n"
        pip = f'#!/bin/sh\nexec {sys.executable} -m pip --python {python} "$@" -q --no-deps --no-build-isolation\n'
        for name, text in (("objbench", command), ("pip", pip)):  # a pip that needs no network
            (folder / "venv" / "bin" / name).write_text(text)
            (folder / "venv" / "bin" / name).chmod(0o755)
        self.folder, self.before, self.python, self.installed = folder, "", python, False
        self.environment = os.environ | {
            "PATH": f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.took = 0.0

    def __call__(self, line: str) -> subprocess.CompletedProcess[str]:
        if variable := re.match(r"(\w+)=", line):  # of the shell: what it is now, it is for all later lines
            said = subprocess.run(
                ["bash", "-ec", f'{line}; echo "${variable[1]}"'], cwd=self.folder, env=self.environment,
                text=True, capture_output=True, check=True,
            )  # fmt: skip
            self.before += f"{variable[1]}={shlex.quote(said.stdout.strip())}\n"
            return said
        began = time.monotonic()
        command = ["bash", "-ec", self.before + line]
        if self.installed and line.startswith("objbench "):
            command = [self.python, "-P", "-m", "objbench", *self.words(line)]
        shell = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        if line.endswith("# Ctrl-C"):
            while len(self.trainings()) < 2 and shell.poll() is None:  # the second of three has begun
                time.sleep(0.05)
            os.killpg(shell.pid, signal.SIGINT)
        out, err = shell.communicate()
        took = time.monotonic() - began
        self.took += took
        print(f"{took:6.1f} s  {line}", flush=True)
        if line.startswith("pip "):
            self.installed = True
            warm.executables.add(self.python)
        return subprocess.CompletedProcess(line, shell.returncode, out, err)

    def words(self, line: str) -> list[str]:
        """What the shell gives `objbench` in a line of this command alone."""
        shell = f"""objbench() {{ printf '%s\\0' "$@"; }}\n{self.before}{line}"""
        said = subprocess.run(["bash", "-ec", shell], cwd=self.folder, env=self.environment, text=True,
                              stdout=subprocess.PIPE, check=True)  # fmt: skip
        return said.stdout.split("\0")[:-1]

    def trainings(self) -> list[str]:
        return sorted(path.parent.name for path in (self.folder / "runs" / "cells").glob("*/training.json"))


@pytest.mark.slow
def test_a_day_with_objbench(tmp_path: Path) -> None:
    day = Day(tmp_path)
    every: list[tuple[str, str]] = []
    for line in LINES:
        ran = day(line)
        assert ran.returncode == (130 if line.endswith("# Ctrl-C") else 0), (line, ran.stdout, ran.stderr)
        every.append((line, ran.stdout + ran.stderr))
    print(f"{day.took / 60:.1f} min in all")

    def said(words: str) -> list[str]:
        """What the lines that contain these words printed."""
        found = [text for line, text in every if words in line]
        assert found, words
        return found

    assert all(
        name in said("objbench plugins")[0] for name in ("my-detector", "my-scenes", "my-metric", "my-groups")
    )
    assert len(said("objbench check")) == 4
    assert all(", 0 failed, " in text for text in said("objbench check"))
    assert "at the pace that objbench check measured" in said("--plan")[0]
    assert "0.0 steps/s" not in said("--log csv")[0]
    first, three, other, edited, current = said("objbench report")
    assert all("my-detector" in table and "95 % interval" in table for table in (first, three, other, edited))
    assert "1 (single seed)" in first
    assert re.search(r"  3$", three, re.MULTILINE), "three seeds, after the interruption"
    assert "trained on" in other
    assert "start_from=" in other
    assert re.search(r"\[.*code=[0-9a-f]{6}", edited)
    assert "code=" not in current
    assert "removed 1 cell" in said("objbench rm")[0]
    assert len(day.trainings()) == 5, (
        "three seeds, an evaluation, another start and other code, less the one removed"
    )
