"""`objbench rm`: removes cells."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from objbench.cells.files import Damaged
from objbench.cells.identity import EVALUATED, START, read_training
from objbench.cells.store import Store
from objbench.commands.shared import find_cells, named, out_option
from objbench.errors import UsageError


@click.command()
@click.argument("cells", nargs=-1, required=True, metavar="CELL...")
@out_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(cells: tuple[str, ...], out: str, yes: bool) -> None:
    """Remove cells from a directory: their figures, detections, weights and logs.

    CELL is the beginning of a cell's key. A training is removed with its last cell. If one of the cells is running,
    nothing is removed. The command asks first, except with --yes.
    """
    store = Store(Path(out).absolute())
    keys = find_cells(cells, store)
    trainings: dict[str, list[str]] = {}
    for key in keys:
        trainings.setdefault(key.partition("/")[0], []).append(key)
    left = [key for key in store.cell_keys() if key not in keys]
    doomed: list[Path] = []
    locks: list[int] = []
    store.prepare()
    try:
        for training, its in trainings.items():
            lock = store.lock(training)
            if lock is None:
                raise UsageError(
                    f"{its[0]} is running: {store.holder(training)} is working on it; stop that first"
                )
            locks.append(lock)
            if store.lockless and training == next(iter(trainings)):
                click.echo(
                    "warning: this file system has no locks, so running cells cannot be detected", err=True
                )
            whole = not any(key.startswith(f"{training}/") for key in left)
            doomed += [store.folder(training)] if whole else [store.folder(key) for key in its]
            for key in its:
                click.echo(f"{key}  {_described(store, key)}", err=True)
            if whole:
                click.echo(f"{training}  the training, because these are its last cells", err=True)
        for line in _orphans(store, left, {path.name for path in doomed if path.name in trainings}):
            click.echo(f"warning: {line}", err=True)
        size = sum(_bytes(folder) for folder in doomed)
        what = f"{len(keys)} cell{'s' * (len(keys) > 1)}, {size / 1e6:.1f} MB"
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{what} would be removed; use --yes when there is no terminal to ask on")
            click.confirm(f"Remove {what}?", abort=True, err=True)
        for folder in doomed:
            hidden = folder.with_name(f".removed-{folder.name}-{os.getpid()}")  # removed in one operation
            try:
                folder.rename(hidden)
                shutil.rmtree(hidden)
            except OSError as error:
                raise UsageError(f"{folder} cannot be removed ({error.strerror})") from None
    finally:
        for lock in locks:
            os.close(lock)
    click.echo(f"removed {what}")


def _orphans(store: Store, left: list[str], doomed: set[str]) -> Iterator[str]:
    """A line for each training that stays and begins with the weights of a training that goes, or evaluates them."""
    for key in dict.fromkeys(key.partition("/")[0] for key in left):
        if key in doomed:
            continue
        with contextlib.suppress(Damaged):
            identity = read_training(store.folder(key)).identity
            origin = identity.get(START) or identity.get(EVALUATED)
            if origin and origin["training"] in doomed:
                does = "starts from" if START in identity else "evaluates"
                yield (
                    f"{key} {does} the weights of {origin['training']}; its figures stay, but they can no longer be "
                    "verified"
                )


def _described(store: Store, key: str) -> str:
    try:
        result = store.result(key)
    except Damaged as error:
        return f"damaged: {error}"
    return f"{named(result)}: {'interrupted' if result.status == 'running' else result.status}"


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
