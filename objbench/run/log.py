"""Writes the reports of a training to its folder while it runs, as a CSV file or for TensorBoard.

Both contain the same numbers by step: `loss`, `terms/NAME` (terms of the loss) and `seconds` (of training) about twice
a second; `watch/NAME` and `metrics/NAME` at the points of the curve. When steps are repeated after a crash, their old
rows are removed.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from objbench.cells.result import Event
from objbench.errors import UsageError
from objbench.writing import write_file

KINDS = ("csv", "tensorboard")
CSV, TENSORBOARD = "log.csv", "log.tensorboard"
"""The names of the file and of the folder in a training's folder. A name with a dot is never a cell's name."""
COLUMNS = ("step", "name", "value")


class Log(Protocol):
    """A log of a training's reports."""

    def add(self, event: Event) -> None:
        """Writes the numbers of an event with a step; ignores other events."""

    def close(self) -> None:
        """Closes the log; nothing can be added after this."""


def check_log(kind: str) -> None:
    """UsageError when the package that writes such a log is not installed."""
    if kind == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--log tensorboard needs the package tensorboard; run `pip install 'objbench[tensorboard]'`, "
            "or use --log csv"
        )


def open_log(kind: str, folder: Path, step: int) -> Log:
    """Opens the log of the training in `folder` to continue it after `step`; removes its rows of later steps."""
    return TensorBoardLog(folder, step) if kind == "tensorboard" else CsvLog(folder, step)


def numbers(event: Event) -> Iterator[tuple[str, float]]:
    """The numbers of an event, by name."""
    for name in ("loss", "seconds"):
        if name in event:
            yield name, event[name]
    groups: Mapping[str, Any] = event
    for group in ("terms", "watch", "metrics"):
        for name, value in groups.get(group, {}).items():
            yield f"{group}/{name}", value


class _News:
    """Leaves out what was written already: a point of the curve repeats the report of its step."""

    def __init__(self) -> None:
        self._step, self._names = -1, set[str]()

    def of(self, event: Event) -> list[tuple[str, float]]:
        """The numbers of an event with a step that no event of this step had before."""
        if event["step"] != self._step:
            self._step, self._names = event["step"], set()
        new = [(name, value) for name, value in numbers(event) if name not in self._names]
        self._names.update(name for name, _ in new)
        return new


class CsvLog:
    """A CSV file with one row per number: step, name, value."""

    def __init__(self, folder: Path, step: int) -> None:
        path, kept = folder / CSV, [list(COLUMNS)]
        if path.exists():
            with path.open(newline="") as before:
                rows = csv.reader(before)
                kept += [row for row in rows if len(row) == 3 and row[0].isdecimal() and int(row[0]) <= step]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(kept)
        write_file(path, text.getvalue().encode())
        self._file = path.open("a", newline="", buffering=1)
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._news = _News()

    def add(self, event: Event) -> None:
        """Writes the numbers of an event with a step; ignores other events."""
        if "step" in event:
            self._writer.writerows((event["step"], name, value) for name, value in self._news.of(event))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardLog:
    """Event files, for `tensorboard --logdir DIR`."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1, flush_secs=10)
        self._news = _News()

    def add(self, event: Event) -> None:
        """Writes the numbers of an event with a step; ignores other events."""
        if "step" in event:
            for name, value in self._news.of(event):
                self._writer.add_scalar(name, value, event["step"])

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()
