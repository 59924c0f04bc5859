"""The state of a store that other processes or machines fill, by its files alone."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from objbench.cells.files import Damaged
from objbench.cells.identity import read_cell
from objbench.cells.result import CellResult
from objbench.cells.store import Store, position, read_curve
from objbench.run.board import ENDED, IDLE, WAITING, Line, line_of, notices

FRESH_S = 90.0
"""A notice that has not changed for so long is not believed: its `objbench run` was killed."""
SILENT_S = 300.0
"""A cell that is recorded as running, but that no process of this machine works on, counts as interrupted if none of
its files has changed for so long: another machine may work on it."""


class Watched:
    """Looks at a store; remembers which notices have changed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.workers = 1
        """How many cells run at once, by the notices."""
        self.unreadable: list[str] = []
        """A line for each cell that cannot be read."""
        self._seen: dict[str, tuple[float, float]] = {}
        """By notice: when it was written, by its clock; when we saw that first, by ours."""
        self._names: dict[str, Line] = {}

    def look(self) -> list[Line]:
        """The cells as they are now, those that wait or run first by the order of their run. UsageError when the
        directory cannot be read."""
        lines: dict[str, Line] = {}
        self.workers = 0
        for name, noticed in notices(self.store.out).items():
            now = time.monotonic()
            written, since = self._seen.get(name, (0.0, 0.0))
            if written != noticed.written:  # at the first look its age tells, by clocks that may differ
                age = 0.0 if written else max(0.0, time.time() - noticed.written)
                since = now - age
                self._seen[name] = (noticed.written, since)
            if now - since < FRESH_S:
                self.workers += noticed.workers
                for line in noticed.lines:  # several runs may wait for a cell that one of them runs
                    if line.cell not in lines or line.state not in IDLE or lines[line.cell].state == WAITING:
                        lines[line.cell] = line
        results, self.unreadable = self.store.results()
        stored: dict[str, Line] = {}
        for result in results:
            noticed_line = lines.get(result.cell)
            if noticed_line is None:
                stored[result.cell] = self._line(result)
            elif noticed_line.state not in IDLE and result.status in ENDED:
                noticed_line.ends(result)  # the notice is some seconds old
        self.workers = self.workers or sum(line.state not in IDLE for line in stored.values())
        return [*sorted(stored.values(), key=lambda line: (line.name, line.seed)), *lines.values()]

    def _line(self, result: CellResult) -> Line:
        """The line of a cell of which no notice tells."""
        folder = Path(result.path)
        if result.cell not in self._names:
            try:
                self._names[result.cell] = line_of(read_cell(folder))
            except Damaged:
                self._names[result.cell] = Line(result.cell, f"{result.model} on {result.data}", result.seed)
        known = self._names[result.cell]
        line = Line(known.cell, known.name, known.seed)
        line.ends(result)
        steps = result.model_config.get("steps", 0)
        line.steps = steps if isinstance(steps, int) else 0
        if result.status == "interrupted" and _changed_lately(folder):
            line.state = "running"
        if line.state in ("running", "interrupted"):
            with contextlib.suppress(Damaged, OSError, ValueError, TypeError):
                at = position(folder.parent)
                line.step = at.step
                if line.state == "running" and at.step and line.steps:
                    line.left = (line.steps - at.step) * at.seconds / at.step
            with contextlib.suppress(OSError, json.JSONDecodeError, KeyError, IndexError):
                line.figures = dict(read_curve(folder.parent)[-1]["metrics"])
        return line


def _changed_lately(folder: Path) -> bool:
    """Whether a file of the cell or its training was written within SILENT_S."""
    for file in (*folder.parent.glob("*.*"), folder / "record.json"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime < SILENT_S:
                return True
    return False
