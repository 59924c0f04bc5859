"""What a person sees while cells run: live on a terminal, a line now and then elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from objbench.matrix import Cell
from objbench.results import CellResult

PLAIN_S = 15.0
"""Seconds between two lines of a cell where there is no terminal."""


class Progress:
    """Shows the cells at work. Use it as a context manager."""

    def __init__(self, total: int, metrics: Iterable[str]) -> None:
        """total: cells to run. metrics: those worth showing while they run."""
        self.total, self.ended, self.metrics = total, 0, list(metrics)
        self.console = Console(stderr=True, highlight=False)
        self._known: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self._bars = Bars(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def begin(self, cell: Cell) -> None:
        """A cell was started."""
        self._known[cell.key] = {}
        self._said[cell.key] = time.monotonic()
        self._tasks[cell.key] = self._bars.add_task(cell.name, total=None, said="starting")

    def update(self, cell: Cell, event: dict[str, Any]) -> None:
        """A cell told something."""
        known = self._known[cell.key]
        known |= {"phase": "", **event}
        said = describe(known, self.metrics)
        self._bars.update(
            self._tasks[cell.key], completed=known.get("step", 0), total=known.get("steps"), said=said
        )
        if not self.console.is_terminal and time.monotonic() - self._said[cell.key] > PLAIN_S:
            self._said[cell.key] = time.monotonic()
            at = f"step {known['step']}/{known['steps']}, " if "step" in known else ""
            self.say(f"{cell.name}: {at}{said}")

    def end(self, cell: Cell, result: CellResult) -> None:
        """A cell ended."""
        self.ended += 1
        self._bars.remove_task(self._tasks.pop(cell.key))
        why = f": {result.error}" if result.error else ""
        self.say(f"[{self.ended}/{self.total}] {cell.name}: {result.status}{why}")
        for warning in result.provenance.get("warnings", []):
            self.say(f"    warning: {warning}")


def describe(known: dict[str, Any], metrics: list[str]) -> str:
    """Pace, loss, running metrics and time left, as far as they are known."""
    if known["phase"]:
        return str(known["phase"])
    parts = []
    if "step" in known:
        pace = known["steps_per_second"]
        parts += [f"{pace:.1f} steps/s", f"loss {known['loss']:.4g}"]
    parts += [f"{name} {known['metrics'][name]:.2f}" for name in metrics if name in known.get("metrics", {})]
    if "step" in known and pace > 0:
        parts.append(f"{duration((known['steps'] - known['step']) / pace)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: "50 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
