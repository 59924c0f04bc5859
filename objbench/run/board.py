"""The state of many cells as one table: `objbench run` shows it live, and `objbench watch` shows that of a store."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import getpid
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from objbench.cells.files import Damaged, read_json, write_json
from objbench.cells.identity import EVALUATED, Cell, with_clusterer
from objbench.cells.result import CellResult

WAITING, TRAINING = "waiting", "training"
"""The states of a line other than those of a `CellResult` and the phases of an `Event`."""
ENDED = ("done", "failed", "out of memory", "timed out")
"""The states in which a cell does not change any more."""
IDLE = (WAITING, "interrupted", *ENDED)
"""The states in which nothing works on a cell."""
COLOURS = {"done": "green", WAITING: "dim", "interrupted": "yellow"} | dict.fromkeys(ENDED[1:], "red")
WIDE = 90
"""From this width the table has a column for each metric of the main table; a narrower one only for the first."""
NOTICES = "progress"
"""The folder in a store in which each running `objbench run` keeps a file with its table."""
FORGOTTEN_S = 24 * 3600.0
"""A notice that is this old was left by a process that was killed; it is removed."""


@dataclass
class Line:
    """What is known of a cell that is to run, runs, or has run."""

    cell: str
    """Its key."""
    name: str
    """Such as "spair+gmm on multimnist [recon=4]"."""
    seed: int
    state: str = WAITING
    """One of the statuses of a `CellResult`, WAITING, TRAINING, or a phase of an `Event`."""
    step: int = 0
    steps: int = 0
    """0 where it is not known, or the detector takes no steps."""
    left: float | None = None
    """Seconds until the cell is done, at the present pace; None if that is not known."""
    figures: dict[str, float] = field(default_factory=dict)
    """The metrics: on validation scenes while it is trained, on test scenes when it is done."""

    def ends(self, result: CellResult) -> None:
        """Takes over how the cell has ended."""
        self.state, self.step, self.left = result.status, result.train_steps or self.step, None
        self.figures = dict(result.metrics) or self.figures


def line_of(cell: Cell, apart: str = "", seconds: float | None = None) -> Line:
    """The line of a cell that waits. apart: what tells it from others of its name. seconds: what it may take."""
    identity = cell.training.identity
    name = f"{with_clusterer(identity['model'], cell.clusterer['name'])} on {identity['data']}{apart}"
    if origin := identity.get(EVALUATED):
        name += f", trained on {origin['identity']['data']}"
    return Line(cell.key, name, identity["seed"], left=seconds)


def summary(lines: Sequence[Line], workers: int) -> str:
    """How many cells are in each state, and how long the rest may take with so many at once: one line."""
    counts = Counter(line.state if line.state in IDLE else "running" for line in lines)
    order = dict.fromkeys(("done", "running", *IDLE))
    parts = [f"{counts[state]} {state}" for state in order if counts[state]]
    left = [line.left for line in lines if line.state not in ENDED]
    known = [seconds for seconds in left if seconds is not None]
    if known and len(known) == len(left):
        parts.append(f"about {duration(max(sum(known) / max(1, workers), *known, 0.0))} left")
    return f"{len(lines)} cell{'s' * (len(lines) != 1)}: {', '.join(parts)}"


def table(
    lines: Sequence[Line], headings: Mapping[str, str], console: Console, workers: int = 1
) -> RenderableType:
    """The lines as a table that fits on the console, and below it their `summary`.

    headings: metric -> heading of its column in the main table, the most important first. If not all lines fit, those
    of running cells are shown first, then failed cells, then the next ones, then the last ones that are done.
    """
    room = max(3, console.size.height - 4)  # the summary may take two lines
    order = sorted(range(len(lines)), key=lambda i: (_rank(lines[i].state), i))
    shown = min(len(lines), room)
    while True:
        chosen = [lines[i] for i in sorted(order[:shown])]
        drawn = _table(chosen, headings, console.width)
        height = len(console.render_lines(drawn)) if chosen else 0
        if height <= room or shown <= 1:
            break
        shown = max(1, shown - max(1, (height - room) // 2))
    rest = [Text(f"... and {len(lines) - shown} more", style="dim")] * (shown < len(lines))
    return Group(*[drawn] * bool(chosen), *rest, Text(summary(lines, workers)))


def _rank(state: str) -> int:
    """How important it is to show a cell in that state; 0 is the most important."""
    if state not in IDLE:
        return 0
    return {"interrupted": 2, WAITING: 3, "done": 4}.get(state, 1)


def _table(lines: Sequence[Line], headings: Mapping[str, str], width: int) -> Table:
    metrics = [name for name in headings if any(name in line.figures for line in lines)]
    metrics = metrics if width >= WIDE else metrics[:1]
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    drawn.add_column("Cell", overflow="fold")
    drawn.add_column("Seed", justify="right", no_wrap=True)
    drawn.add_column("State", no_wrap=True)
    drawn.add_column("Step", justify="right", no_wrap=True)
    for name in metrics:
        drawn.add_column(headings[name].partition(" (")[0], justify="right", no_wrap=width < WIDE)
    drawn.add_column("Left", justify="right", no_wrap=True)
    for line in lines:
        figures = [_figure(line.figures.get(name), headings[name]) for name in metrics]
        left = duration(line.left) if line.left and line.state not in IDLE else ""
        state = Text(line.state, style=COLOURS.get(line.state, "cyan"))
        drawn.add_row(Text(line.name), str(line.seed), state, _steps(line), *figures, left)
    return drawn


def _steps(line: Line) -> str:
    if line.steps and line.step != line.steps:
        return f"{line.step}/{line.steps}"
    return str(line.step or "")


def _figure(value: float | None, heading: str) -> str:
    if value is None or value != value:
        return ""
    return f"{100 * value:.1f}" if "%" in heading else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds as text: "50 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class Notice:
    """The table of a running `objbench run` as a file in its store, for `objbench watch` on this machine or another."""

    def __init__(self, store: Path, workers: int) -> None:
        """store: the directory given as --out."""
        self.folder, self.workers = store / NOTICES, workers
        self.file = self.folder / f"{socket.gethostname()}-{getpid()}.json"

    def write(self, lines: Sequence[Line]) -> None:
        """Writes the lines. OSError when that is not possible."""
        self.folder.mkdir(exist_ok=True)
        body = {"written": time.time(), "workers": self.workers, "lines": [asdict(line) for line in lines]}
        write_json(self.file, body)

    def remove(self) -> None:
        """Removes the file, and those that killed processes have left. OSError when that is not possible."""
        self.file.unlink(missing_ok=True)
        for other in self.folder.glob("*.json"):
            if time.time() - other.stat().st_mtime > FORGOTTEN_S:
                other.unlink(missing_ok=True)


@dataclass(frozen=True)
class Noticed:
    """What a notice says."""

    written: float
    """By the clock of its machine, in seconds since 1970."""
    workers: int
    lines: list[Line]


def notices(store: Path) -> dict[str, Noticed]:
    """All notices in a store by file name; files that cannot be read are left out."""
    found = {}
    for file in sorted((store / NOTICES).glob("*.json")):
        try:
            body: dict[str, Any] = read_json(file)
            lines = [Line(**line) for line in body["lines"]]
            found[file.name] = Noticed(float(body["written"]), int(body["workers"]), lines)
        except (Damaged, KeyError, TypeError, ValueError):
            continue  # half copied, removed as we look, or of another version
    return found
