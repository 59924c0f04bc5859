"""Shows progress while cells run, on stderr: a live table on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from objbench.cells.identity import Cell
from objbench.cells.result import CellResult, Event
from objbench.run.board import TRAINING, Notice, duration, line_of, table

NARROWEST = 20
"""The least width of a terminal. A smaller reported width (such as COLUMNS=0) is taken as unknown."""
PLAIN_S = 15.0
"""Seconds between two lines of a cell when there is no terminal."""
NOTICE_S = 5.0
"""Seconds between two notices for `objbench watch`."""


def console_on(stderr: bool) -> Console:
    """A console on stdout or stderr. It is a terminal only if the stream is one, also if FORCE_COLOR is set."""
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    console = Console(stderr=stderr, highlight=False, emoji=False, force_terminal=is_terminal)
    if console.width < NARROWEST:
        console.width = 80
    return console


class Progress:
    """Shows the cells of a run; a context manager."""

    def __init__(
        self,
        cells: Sequence[Cell],
        headings: Mapping[str, str],
        *,
        apart: Mapping[str, str] | None = None,
        seconds: Mapping[str, float | None] | None = None,
        workers: int = 1,
        store: Path | None = None,
    ) -> None:
        """cells: to be run. headings: metric -> heading in the main table, the most important first.

        apart, seconds: by key, what tells cells of one name apart, and what each may take. store: the directory in
        which notices for `objbench watch` are kept; None for none.
        """
        self.ended, self.headings, self.workers = 0, headings, workers
        self.console = console_on(stderr=True)
        apart, seconds = apart or {}, seconds or {}
        self.lines = {c.key: line_of(c, apart.get(c.key, ""), seconds.get(c.key)) for c in cells}
        self._known: dict[str, dict[str, Any]] = {}
        """By training: what its process has reported."""
        self._current: dict[str, str] = {}
        """By training: the key of the cell that its process works on."""
        self._said: dict[str, float] = {}
        self._live = Live(
            console=self.console, get_renderable=self._drawn, refresh_per_second=2, transient=True
        )
        self._notice = Notice(store, workers) if store is not None and cells else None
        self._over = threading.Event()
        self._noticing = threading.Thread(target=self._keep_notice, daemon=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal and self.lines:
            self._live.start()
        if self._notice:
            self._noticing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._notice:
            self._over.set()
            self._noticing.join()
            with contextlib.suppress(OSError):
                self._notice.remove()

    def say(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def begin(self, cell: Cell) -> None:
        """Shows that a cell was started."""
        training = cell.training.key
        self._known[training] = {"phase": "starting"}
        self._said[training] = time.monotonic()
        self._current[training] = cell.key
        self.lines[cell.key].state = "starting"

    def update(self, cell: Cell, event: Event) -> None:
        """Shows an event of a cell, or of another one of its training."""
        training = cell.training.key
        known = self._known[training]
        known |= {"phase": "", **event}
        key = event.get("cell", "")
        if key in self.lines and key != self._current[training]:
            before = self.lines[self._current[training]]
            before.state, before.left = "scored", 0.0
            self._current[training] = key
        line = self.lines[self._current[training]]
        line.state = known["phase"] or TRAINING
        line.step, line.steps = known.get("step", line.step), known.get("steps", line.steps)
        line.figures = dict(known.get("metrics", {}))
        if not known["phase"]:
            line.left = seconds_left(known)
        elif line.step and line.step == line.steps:
            line.left = 0.0
        if not self.console.is_terminal and time.monotonic() - self._said[training] > PLAIN_S:
            self._said[training] = time.monotonic()
            self.say(f"{cell.name}: {describe(known, list(self.headings))}")

    def end(self, cell: Cell, result: CellResult) -> None:
        """Prints how a cell ended."""
        self.ended += 1
        self.lines[cell.key].ends(result)
        why = f": {result.error}" if result.error else ""
        count = len(result.provenance.get("warnings", []))
        warned = (
            f", with {count} warning{'s' if count > 1 else ''}" if count else ""
        )  # printed when the run ends
        self.say(f"[{self.ended}/{len(self.lines)}] {cell.name}: {result.status}{warned}{why}")

    def _drawn(self) -> RenderableType:
        return table(list(self.lines.values()), self.headings, self.console, self.workers)

    def _keep_notice(self) -> None:
        """Writes the notice until the run is over. A store that cannot be written only means that there is none."""
        assert self._notice
        while True:
            with contextlib.suppress(OSError):
                self._notice.write(list(self.lines.values()))
            if self._over.wait(NOTICE_S):
                return


def describe(known: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Step, pace, time left, metrics and loss, as far as they are known; or the phase."""
    if known["phase"]:
        return str(known["phase"])
    left = duration(seconds_left(known))
    parts = [f"{known['step']}/{known['steps']}", f"{known['steps_per_second']:.1f} steps/s", f"{left} left"]
    running = known.get("metrics", {})
    parts += [f"{name} {running[name]:.2f}" for name in metrics if name in running]
    return ", ".join([*parts, f"loss {known['loss']:.4g}"])


def seconds_left(known: Mapping[str, Any]) -> float:
    """Seconds until the last step at the present pace."""
    return float((known["steps"] - known["step"]) / max(known["steps_per_second"], 1e-9))
