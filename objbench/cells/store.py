"""Trainings and cells on disk. Nothing half-written is ever read, and nothing damaged is ever believed.

    <out>/cells/<training>/training.json     what the training is: the identity that its key is the hash of
                           checkpoint.json   where training can go on; with checkpoint-<step>.safetensors
                           trained.json      that it ended, how, and the checksums of what it left:
                           weights.safetensors, detections.safetensors (raw, on the test scenes), truth.safetensors,
                           shown.safetensors (what pictures need), curve.jsonl (the running figures),
                           samples.safetensors (what was found in a few validation scenes at points of the curve)
                           log.txt           whatever the plugins printed, and the traceback of a failure
                           log.csv, log.tensorboard/    with `objbench run --log`: see objbench.run.log
    <out>/cells/<training>/<clusterer>/cell.json     what clusters the detections
                                       record.json   how the cell ended and what it scored; checksums of
                                       clusters.safetensors, clusterer.safetensors, where it clusters
    <out>/cells/....broken-<n>               a damaged training or cell, set aside; .old-<n>: one that was run anew
    <out>/progress/<host>-<process>.json     what `objbench watch` shows of a running `objbench run`
    <out>/locks/<training>                   locked by the processes at work on the training and its cells

On a file system without locks no process can know that another is at work: only one objbench may run there at a time.

Every JSON file carries a checksum of itself. A file is written beside its place, flushed to the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objbench.cells.files import Damaged, checksums, read_json, verify_checksums, write_json
from objbench.cells.identity import read_cell, read_training
from objbench.cells.result import CellResult, Position, Status, Trained
from objbench.errors import UsageError
from objbench.writing import write_file

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
"""What flock says on a file system that has no locks."""


def write_trained(folder: Path, trained: Trained, files: Iterable[str]) -> None:
    """Commits that a training ended, with the checksums of these of its files."""
    write_json(folder / "trained.json", asdict(replace(trained, files=checksums(folder, files))))


def read_trained(folder: Path) -> Trained:
    """How a training ended. Damaged when that cannot be believed, or it did not end."""
    body = read_json(folder / "trained.json")
    if body.get("training") != folder.name:
        raise Damaged(f"trained.json is that of training {body.get('training')}: a copy")
    try:
        return Trained(**body | {"position": Position(**body["position"])})
    except (TypeError, KeyError):  # fields that we do not know, or miss
        raise Damaged("trained.json was written by another version of objbench") from None


def write_record(folder: Path, result: CellResult, files: Iterable[str] = ()) -> None:
    """Commits how a cell ended, with the checksums of these of its files."""
    body = asdict(result)
    del body["path"]  # it is where it is
    body["metrics"] = result.as_json()["metrics"]
    write_json(folder / "record.json", body | {"files": checksums(folder, files)})


def read_record(folder: Path) -> tuple[CellResult, dict[str, str]]:
    """A cell's record, and the checksums of its files. Damaged when it cannot be believed."""
    body = read_json(folder / "record.json")
    if body.get("cell") != f"{folder.parent.name}/{folder.name}":
        raise Damaged(f"it holds the record of cell {body.get('cell')}: a copy")
    body["metrics"] = {k: math.nan if v is None else v for k, v in body["metrics"].items()}
    try:
        files = body.pop("files")
        return CellResult(**body, path=str(folder)), files
    except (TypeError, KeyError):  # fields that we do not know, or miss
        raise Damaged("record.json was written by another version of objbench") from None


def update_record(result: CellResult) -> None:
    """Replaces the record of a done cell, whose files stay."""
    folder = Path(result.path)
    write_record(folder, result, read_record(folder)[1])


class Store:
    """The trainings and cells below one `--out` directory."""

    def __init__(self, out: Path | str) -> None:
        self.out = Path(out)
        self.cells = self.out / "cells"
        self.locks = self.out / "locks"
        self.lockless = False
        """Whether the file system turned out to have no locks."""

    def folder(self, key: str) -> Path:
        """Where the training or the cell of that key lies, or will."""
        return self.cells / key

    def prepare(self) -> None:
        """Makes the directories. UsageError when cells cannot be written there."""
        try:
            if self.out.exists() and not self.out.is_dir():
                raise UsageError(f"--out {self.out} is a file; give a directory")
            self.cells.mkdir(parents=True, exist_ok=True)
            self.locks.mkdir(exist_ok=True)
            probe = self.cells / f".probe-{os.getpid()}"
            write_file(probe, b"x")
            probe.unlink()
        except OSError as error:
            raise UsageError(f"--out {self.out}: cannot write there ({error.strerror})") from None

    def cell_keys(self) -> list[str]:
        """The keys of all cells, sorted. UsageError when the directory cannot be read."""
        return self._cell_keys([])

    def _cell_keys(self, unreadable: list[str]) -> list[str]:
        """unreadable: is given a line for each folder that cannot be read."""
        try:
            os.listdir(self.cells)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UsageError(f"{self.out} cannot be read ({error.strerror})") from None
        keys = []
        for training in _folders(self.cells, unreadable):
            keys += [f"{training.name}/{cell.name}" for cell in _folders(training, unreadable)]
        return keys

    def results(self) -> tuple[list[CellResult], list[str]]:
        """Every cell's result, and one line for each cell that cannot be believed. Reads only the records.

        UsageError when the directory cannot be read.
        """
        results: list[CellResult] = []
        warnings: list[str] = []
        for key in self._cell_keys(warnings):
            for left in (2, 1, 0):  # tries: another objbench may be writing or removing the cell as we read
                try:
                    results.append(self.result(key))
                    break
                except Damaged as error:
                    if left:
                        time.sleep(0.02)
                    elif os.path.lexists(self.folder(key)) and not self.locked(key):
                        warnings.append(f"cell {key} is left out: {error}")
        for training in _folders(self.cells):
            if os.path.exists(training / "record.json"):
                warnings.append(f"cell {training.name} is left out: an earlier version of objbench wrote it")
        return results, warnings

    def result(self, key: str) -> CellResult:
        """One cell's result; one that is recorded as running was interrupted if no process is at work on it."""
        folder = self.folder(key)
        result, _ = read_record(folder)
        if result.status != "running" or self.locked(key):
            return result
        at = position(folder.parent)
        return replace(result, status="interrupted", train_steps=at.step, seconds=at.seconds)

    def verify_training(self, key: str) -> Trained | None:
        """How the training of that key ended; None when it has not.

        Reads all its files; Damaged when one is not as it was written, so that nothing of it can be used.
        """
        folder = self.folder(key)
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        read_training(folder)
        if (folder / "checkpoint.json").exists():
            checkpoint = read_json(folder / "checkpoint.json")
            if checkpoint["training"] != key:
                raise Damaged(f"checkpoint.json is that of training {checkpoint['training']}")
            verify_checksums(folder, checkpoint["files"])
        if not (folder / "trained.json").exists():
            return None
        trained = read_trained(folder)
        verify_checksums(folder, trained.files)
        return trained

    def verify(self, key: str) -> CellResult | None:
        """The result of a cell whose training was verified, and that nobody is at work on; None when new.

        Reads all its files; Damaged when one is not as it was written.
        """
        folder = self.folder(key)
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        read_cell(folder)
        if not (folder / "record.json").exists():
            return None  # killed before it began
        result, files = read_record(folder)
        verify_checksums(folder, files)
        if result.status == "done":
            read_trained(folder.parent)
        return self.result(key)

    def set_aside(self, key: str, why: str = "broken") -> Path:
        """Renames a training or cell, so that nothing is lost and nothing reads it. Lock it first.

        why: what its new name says of it: <key>.<why>-<n>.
        """
        n = 1
        while (aside := self.folder(f"{key}.{why}-{n}")).exists():
            n += 1
        self.folder(key).rename(aside)
        return aside

    def tidy(self, keys: Iterable[str]) -> None:
        """Removes what killed processes left half-written in these trainings, if nobody is at work on them."""
        for key in keys:
            left = [path for path in self.folder(key).rglob(".*") if path.exists()]
            lock = self.lock(key) if left else None
            if lock is None:
                continue
            for path in left if not self.lockless else ():
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            os.close(lock)

    def lock(self, key: str) -> int | None:
        """Locks a training with its cells. None when it is locked.

        Returns a file descriptor that holds the lock until all its copies are closed. On a file system without locks
        it holds none, and `lockless` is set. UsageError when the lock file is another user's, and closed to us.
        """
        descriptor, ours = self._open_lock(key)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            self.lockless = True
        if ours:
            with contextlib.suppress(OSError):  # who holds it is only for people to read
                since = datetime.now(UTC).isoformat(timespec="seconds")
                os.ftruncate(descriptor, 0)
                os.pwrite(
                    descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0
                )
        return descriptor

    def _open_lock(self, key: str) -> tuple[int, bool]:
        """A descriptor of a training's lock file, and whether it can be written."""
        file = self._lock_file(key)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            try:
                return os.open(file, os.O_RDONLY), False  # another user's; one can lock it all the same
            except PermissionError:
                raise UsageError(
                    f"{file} is another user's and cannot be opened; ask for `chmod a+rw` of it, or use another --out"
                ) from None
        with contextlib.suppress(
            OSError
        ):  # whoever may write in the store may lock in it, whatever our umask
            os.fchmod(descriptor, 0o666)
        return descriptor, True

    def locked(self, key: str) -> bool:
        """Whether some process is at work on the training of that key, or of that cell's, as far as one can see."""
        try:
            descriptor = os.open(self._lock_file(key), os.O_RDONLY)
        except OSError:  # there is none, or it is closed to us
            return False
        try:
            fcntl.flock(
                descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB
            )  # shared: two who look do not see each other
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        finally:
            os.close(descriptor)
        return False

    def holder(self, key: str) -> str:
        """Who locked a training: "process 12 on host since 2026-01-01T00:00:00+00:00"."""
        try:
            return self._lock_file(key).read_text().strip() or "another objbench"
        except (OSError, UnicodeDecodeError):
            return "another objbench"

    def _lock_file(self, key: str) -> Path:
        return self.locks / key.partition("/")[0]


def _folders(folder: Path, unreadable: list[str] | None = None) -> list[Path]:
    """The folders in a folder, but for hidden ones and those set aside, whose names hold a dot.

    unreadable: is given a line when the folder cannot be read.
    """
    try:
        return sorted(f for f in folder.iterdir() if "." not in f.name and os.path.isdir(f))
    except (FileNotFoundError, NotADirectoryError):  # it may have been removed as we look
        return []
    except OSError as error:
        if unreadable is not None:
            unreadable.append(f"{folder} is left out: it cannot be read ({error.strerror})")
        return []


def end_early(folder: Path, status: Status, error: str = "") -> CellResult:
    """Records that a cell ended before it was done, as far as the checkpoint of its training reaches."""
    at = position(folder.parent)
    result = replace(
        read_record(folder)[0],
        status=status,
        error=error,
        seconds=at.seconds,
        train_steps=at.step,
        peak_memory_mb=at.peak_memory_mb,
    )
    write_record(folder, result)
    return result


def position(folder: Path) -> Position:
    """How far a training has come: to its end, else to its checkpoint; at the start when it has none."""
    if (folder / "trained.json").exists():
        return read_trained(folder).position
    if not (folder / "checkpoint.json").exists():
        return Position()
    return Position(**read_json(folder / "checkpoint.json")["position"])


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The running figures of a training, a row an evaluation; none for a detector that takes no steps."""
    path = folder / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_curve(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes them all, as the whole file."""
    write_file(folder / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
