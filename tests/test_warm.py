"""A process that is forked from the server of `warm` does what one that is started as usual does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import warm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked so on Linux alone"),
]


def ran(folder: Path, *words: str) -> tuple[int, str, str]:
    """How `objbench WORDS` in a folder ended, and what it printed."""
    command = [sys.executable, "-m", "objbench", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
    process = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=environment,
        start_new_session=True,
    )  # fmt: skip
    group, (out, err) = os.getpgid(process.pid), process.communicate()
    assert group == process.pid
    return process.returncode, out, err


@pytest.mark.parametrize(
    "words",
    [
        ["list", "models"],
        ["show", "zzz", "--out", "here"],
        ["new", "data", "drawn", "--to", "there"],
        ["report", "-x"],
    ],
    ids=lambda words: words[0],
)
def test_it_ends_prints_and_writes_as_a_process_of_its_own(words: list[str], tmp_path: Path) -> None:
    for name in ("warm", "real"):
        (tmp_path / name).mkdir()
    forked = ran(tmp_path / "warm", *words)
    warm.uninstall()
    try:
        started = ran(tmp_path / "real", *words)
    finally:
        warm.install()
    assert forked == started
    one, other = (sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("warm", "real"))
    assert one == other


def test_what_differs_from_the_server_is_started_as_usual() -> None:
    server = object.__new__(warm.Server)
    server._environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "/a", "HOME": "/home/a"}
    server._user = os.getpid()
    own = server._environment
    assert server.serves(own | {"HOME": "/home/b", "PYTHONUNBUFFERED": "1", "MKL_NUM_THREADS": "1"})
    for other in (
        {"OMP_NUM_THREADS": "2"},
        {"PYTHONPATH": "/b"},
        {"MKL_NUM_THREADS": "2"},
        {"PYTHONSAFEPATH": "1"},
    ):
        assert not server.serves(own | other), other
    server._user += 1
    assert not server.serves(own), "it is the server of another process"
