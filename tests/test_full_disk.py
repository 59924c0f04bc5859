"""What a full disk, or one that cannot be written, says on the command line."""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn

import pytest

from objbench.commands import cli, run_command_line

FILE = "runs/cells/8a/own/record.json"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, f"No space left on device: {FILE}; free some space and run the same command again"),
        (errno.EROFS, f"Read-only file system: {FILE}; correct this and run the same command again"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: Any) -> NoReturn:
        raise OSError(number, os.strerror(number), FILE)

    monkeypatch.setattr(cli, "main", fails)
    assert run_command_line() == 2
    assert capsys.readouterr() == ("", f"objbench: {said}\n")


def test_a_mistake_in_objbench_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", FILE)

    monkeypatch.setattr(cli, "main", fails)
    with pytest.raises(FileNotFoundError):
        run_command_line()
