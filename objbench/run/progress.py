"""Shows progress while cells run, on stderr: live on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from objbench.cells.identity import Cell
from objbench.cells.result import CellResult, Event

NARROWEST = 20
"""The least width of a terminal. A smaller reported width (such as COLUMNS=0) is taken as unknown."""
PLAIN_S = 15.0
"""Seconds between two lines of a cell when there is no terminal."""


def console_on(stderr: bool) -> Console:
    """A console on stdout or stderr. It is a terminal only if the stream is one, also if FORCE_COLOR is set."""
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    console = Console(stderr=stderr, highlight=False, emoji=False, force_terminal=is_terminal)
    if console.width < NARROWEST:
        console.width = 80
    return console


class Progress:
    """Shows the running cells; a context manager."""

    def __init__(self, total: int, metrics: Iterable[str]) -> None:
        """total: number of cells to run. metrics: shown while cells run, the most important first."""
        self.total, self.ended, self.metrics = total, 0, list(metrics)
        self.console = console_on(stderr=True)
        self._known: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        one_line = Column(no_wrap=True, overflow="ellipsis")
        shown: list[ProgressColumn] = [TextColumn("{task.description}", markup=False, table_column=one_line)]
        if self.console.width >= 110:
            shown.insert(0, BarColumn(16))
        self._bars = Bars(*shown, console=self.console, transient=True, disable=not self.console.is_terminal)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def begin(self, cell: Cell) -> None:
        """Shows that a cell was started."""
        self._known[cell.key] = {"phase": "starting"}
        self._said[cell.key] = time.monotonic()
        self._tasks[cell.key] = self._bars.add_task(f"{cell.name}: starting", total=None)

    def update(self, cell: Cell, event: Event) -> None:
        """Shows an event of a cell."""
        known = self._known[cell.key]
        known |= {"phase": "", **event}
        said = f"{cell.name}: {describe(known, self.metrics)}"
        task, done, steps = self._tasks[cell.key], known.get("step", 0), known.get("steps")
        self._bars.update(task, completed=done, total=steps, description=said)
        if not self.console.is_terminal and time.monotonic() - self._said[cell.key] > PLAIN_S:
            self._said[cell.key] = time.monotonic()
            self.say(said)

    def end(self, cell: Cell, result: CellResult) -> None:
        """Prints how a cell ended."""
        self.ended += 1
        if task := self._tasks.pop(cell.key, None):
            self._bars.remove_task(task)
        why = f": {result.error}" if result.error else ""
        self.say(f"[{self.ended}/{self.total}] {cell.name}: {result.status}{why}")
        for warning in result.provenance.get("warnings", []):
            self.say(f"    warning: {warning}")


def describe(known: dict[str, Any], metrics: list[str]) -> str:
    """Step, pace, time left, metrics and loss, as far as they are known; or the phase."""
    if known["phase"]:
        return str(known["phase"])
    pace = known["steps_per_second"]
    left = duration((known["steps"] - known["step"]) / max(pace, 1e-9))
    parts = [f"{known['step']}/{known['steps']}", f"{pace:.1f} steps/s", f"{left} left"]
    running = known.get("metrics", {})
    parts += [f"{name} {running[name]:.2f}" for name in metrics if name in running]
    return ", ".join([*parts, f"loss {known['loss']:.4g}"])


def duration(seconds: float) -> str:
    """Seconds as text: "50 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
