"""Runs the command line in this process, and cells in this process or another, on the toy plugin."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from objbench import commands
from objbench.cells.identity import Cell, write_cell
from objbench.cells.matrix import matrix
from objbench.cells.overrides import parse_overrides
from objbench.cells.protocols import protocol
from objbench.cells.result import CellResult
from objbench.cells.store import Store, read_record, write_record
from objbench.plugins import Registry, load_plugins
from objbench.run import worker as cell_module
from objbench.train.loop import Watch

os.environ["OMP_NUM_THREADS"] = "1"  # for the cells' processes; results depend on the number of threads
torch.set_num_threads(1)

TOY = str(Path(__file__).with_name("toy_plugin.py").resolve())


class Until(Watch):
    """Stops a training after `count` more steps."""

    def __init__(self, count: int) -> None:
        self._left = iter(range(count))

    def stopping(self) -> bool:
        return next(self._left, None) is None


class Ran(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def objbench(*words: str) -> Ran:
    """Runs `objbench WORDS` in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["objbench", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            commands.main()
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.argv = before
    return Ran(code, out.getvalue(), err.getvalue())


def run(out: Path, models: str, *words: str) -> Ran:
    """Runs `objbench run` on the toy data; each cell in its own process, of one thread."""
    return objbench(
        "run", "--models", models, "--data", "squares", "--plugin", TOY, "--out", str(out), *words
    )


def toys() -> Registry:
    """The toy plugin beside what is installed."""
    return load_plugins((TOY,))


def toy_cell(model: str = "toy", *options: str, seed: int = 0) -> Cell:
    """One cell on the toy data."""
    return toy_cells(model, *options, seeds=seed + 1)[seed]


def toy_cells(models: str, *options: str, seeds: int = 1, scale: str = "demo") -> list[Cell]:
    """A matrix on the toy data; models are separated by commas."""
    return matrix(
        toys(), models.split(","), ["squares"], range(seeds), protocol(scale), parse_overrides(options)
    )


def run_here(out: Path, cell: Cell) -> CellResult:
    """Runs a cell to its end in this process, as its own process would; its record."""
    store = Store(out)
    store.prepare()
    folder = store.folder(cell.key)
    folder.mkdir(parents=True, exist_ok=True)
    write_cell(folder, cell)
    write_record(folder, cell.result("running"))
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    with open("/dev/null", "wb") as nowhere:
        try:
            cell_module.main(
                [str(folder.parent), folder.name, "--plugin", TOY, "--events", str(nowhere.fileno())]
            )
        finally:
            signal.signal(signal.SIGTERM, handler)
            torch.set_num_threads(threads)
    return read_record(folder)[0]


def rows_of(ran: Ran) -> list[dict[str, Any]]:
    """What `--json` printed."""
    return list(json.loads(ran.out))
