"""Cells on disk. Nothing half-written is ever read, and nothing damaged is ever believed.

    <out>/cells/<key>/cell.json          what the cell is: the identity that `key` is the hash of
                      record.json        how it ended and what it scored; vouches for the files below
                      curve.jsonl        the running figures, a line an evaluation
                      weights.safetensors, mixture.safetensors, detections.safetensors, truth.safetensors
                      checkpoint.json    where training can go on; vouches for checkpoint-<step>.safetensors
                      log.txt            whatever the plugins printed, and the traceback of a failure
    <out>/cells/<key>.broken-<n>/        a damaged cell, set aside
    <out>/locks/<key>                    locked by the processes at work on the cell

Every JSON file carries a checksum of itself and of the files it vouches for. A file is written beside its
place, flushed to the disk, and renamed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from objbench.cells.files import Damaged, check_files, read_json, vouch, write_file, write_json
from objbench.cells.result import CellResult, Position, Status
from objbench.errors import UsageError


def write_record(folder: Path, result: CellResult, files: Iterable[str] = ()) -> None:
    """Commits how a cell ended, and vouches for these of its files."""
    body = asdict(result)
    del body["path"]  # it is where it is
    body["metrics"] = result.as_json()["metrics"]
    write_json(folder / "record.json", body | {"files": vouch(folder, files)})


def read_record(folder: Path) -> tuple[CellResult, dict[str, str]]:
    """A cell's record, and the files it vouches for. Damaged when it cannot be believed."""
    body = read_json(folder / "record.json")
    if body.get("cell") != folder.name:
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
    """The cells below one `--out` directory."""

    def __init__(self, out: Path | str) -> None:
        self.out = Path(out)
        self.cells = self.out / "cells"
        self.locks = self.out / "locks"

    def folder(self, key: str) -> Path:
        """Where the cell of that key lies, or will."""
        return self.cells / key

    def prepare(self) -> None:
        """Makes the directories. UsageError when cells cannot be written there."""
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out} is a file; give a directory")
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            self.locks.mkdir(exist_ok=True)
            probe = self.cells / f".probe-{os.getpid()}"
            write_file(probe, b"x")
            probe.unlink()
        except OSError as error:
            raise UsageError(f"--out {self.out}: cannot write there ({error.strerror})") from None

    def results(self) -> tuple[list[CellResult], list[str]]:
        """Every cell's result, and one line for each cell that cannot be believed. Reads only the records."""
        results, warnings = [], []
        names = sorted(os.listdir(self.cells)) if self.cells.is_dir() else []
        for name in names:
            if name.startswith(".") or ".broken-" in name:  # a probe, or set aside
                continue
            try:
                results.append(self.result(name))
            except Damaged as error:
                warnings.append(f"cell {name} is left out: {error}")
        return results, warnings

    def result(self, key: str) -> CellResult:
        """One cell's result; one said to be running was interrupted if no process is at work on it."""
        folder = self.folder(key)
        result, _ = read_record(folder)
        if result.status != "running" or self.locked(key):
            return result
        result = replace(result, status="interrupted")
        if (folder / "checkpoint.json").exists():
            at = read_json(folder / "checkpoint.json")["position"]
            result = replace(result, train_steps=at["step"], seconds=at["seconds"])
        return result

    def verified(self, key: str) -> CellResult | None:
        """The result of a cell that nobody is at work on; None when new.

        Reads all that the cell vouches for; Damaged when any of it is not as it was written.
        """
        folder = self.folder(key)
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        read_json(folder / "cell.json")
        if (folder / "checkpoint.json").exists():
            checkpoint = read_json(folder / "checkpoint.json")
            if checkpoint["cell"] != key:
                raise Damaged(f"checkpoint.json is that of cell {checkpoint['cell']}")
            check_files(folder, checkpoint["files"])
        if not (folder / "record.json").exists():
            return None  # killed before it began
        check_files(folder, read_record(folder)[1])
        return self.result(key)

    def set_aside(self, key: str) -> Path:
        """Renames a damaged cell, so that nothing is lost and nothing reads it. Lock the cell first."""
        n = 1
        while (aside := self.cells / f"{key}.broken-{n}").exists():
            n += 1
        self.folder(key).rename(aside)
        return aside

    def lock(self, key: str) -> int | None:
        """Locks a cell: a descriptor that holds the lock until all its copies are closed. None when taken."""
        descriptor = os.open(self.locks / key, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def locked(self, key: str) -> bool:
        """Whether some process is at work on the cell."""
        if not (self.locks / key).exists():
            return False
        descriptor = self.lock(key)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False


def end_early(folder: Path, status: Status, error: str = "") -> CellResult:
    """Records that a cell ended before it was done, as far as its checkpoint reaches."""
    at = position(folder)
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
    """How far the cell's checkpoint is; at the start when it has none."""
    if not (folder / "checkpoint.json").exists():
        return Position()
    return Position(**read_json(folder / "checkpoint.json")["position"])


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The cell's running figures, a row an evaluation; none for a detector that takes no steps."""
    path = folder / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_curve(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes them all, as the whole file."""
    write_file(folder / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
