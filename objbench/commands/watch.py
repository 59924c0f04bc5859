"""`objbench watch`: shows the cells of a store while other processes or machines work on them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from objbench.commands.shared import plugin_option
from objbench.errors import UsageError
from objbench.plugins import load_plugins

if TYPE_CHECKING:
    from objbench.run.board import Line

LOOKS = 2
"""How many looks in a row must find that all cells have ended: between two cells of a run none may be running."""


@click.command()
@click.argument("store", default="runs", metavar="[STORE]")
@click.option(
    "--every",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    metavar="S",
    help="Seconds between two looks at the files.",
)
@plugin_option
def watch(store: str, every: float, plugin_files: tuple[str, ...]) -> None:
    """Show how far the cells in a directory are, while another process or machine runs them.

    STORE is the --out of `objbench run`; the default is runs. On a terminal it is a live table; elsewhere a line for
    each change. It only reads files: steps and figures of a cell may be some seconds old. Figures of a running cell are
    those on validation scenes.

    It ends with Ctrl-C, or when all cells are done: with exit code 0, or 1 if some failed. A cell that is interrupted
    is waited for.
    """
    from rich.live import Live

    from objbench.cells.store import Store
    from objbench.run.board import ENDED, summary, table
    from objbench.run.progress import console_on
    from objbench.run.watched import Watched

    watched = Watched(Store(store))
    if not watched.store.cells.is_dir():
        raise UsageError(f"{store} has no cells yet; give the --out directory of an `objbench run`")
    headings = load_plugins(plugin_files).columns
    console = console_on(stderr=False)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    printed: dict[str, tuple[str, float]] = {}
    looks = 0
    with live or contextlib.nullcontext():
        while looks < LOOKS:
            lines = watched.look()
            if live:
                live.update(table(lines, headings, console, watched.workers), refresh=True)
            else:
                print_changes(printed, lines, list(headings))
            looks = looks + 1 if lines and all(line.state in ENDED for line in lines) else 0
            if looks < LOOKS:
                time.sleep(every)
    if not live:
        click.echo(summary(lines, watched.workers))
    for warning in watched.unreadable:
        click.echo(f"warning: {warning}", err=True)
    sys.exit(any(line.state != "done" for line in lines))


def print_changes(
    printed: dict[str, tuple[str, float]], lines: Sequence[Line], metrics: Sequence[str]
) -> None:
    """Prints a line for each cell whose state has changed, and from time to time for each that is running.

    printed: the state that was printed last for each cell, and when; this function updates it.
    """
    from objbench.run.board import IDLE, duration
    from objbench.run.progress import PLAIN_S

    now = time.monotonic()
    for line in lines:
        state, since = printed.get(line.cell, ("", now))
        if state == line.state and (state in IDLE or now - since < PLAIN_S):
            continue
        printed[line.cell] = (line.state, now)
        words = [line.state]
        if line.steps and line.state not in IDLE:
            words.append(f"{line.step}/{line.steps}")
        if line.left and line.state not in IDLE:
            words.append(f"{duration(line.left)} left")
        words += [f"{name} {line.figures[name]:.2f}" for name in metrics if name in line.figures]
        click.echo(f"{line.name}, seed {line.seed}: {', '.join(words)}")
