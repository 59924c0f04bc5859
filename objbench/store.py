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

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objbench.errors import UsageError
from objbench.results import CellResult

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Raised when files can no longer be read as before; those of another format are refused."""


class Damaged(Exception):
    """A file is not what was written there: cut short, edited, or half of a copy. One line."""


# Files


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` as a whole: after a crash at any instant it holds what it held, or all of `data`.

    Keeps the mode of a file that is there, and writes what a link points to. What cannot be replaced (a pipe, a
    device, a mount, one of our own descriptors such as /dev/stdout) is written to. OSError names `path`.
    """
    try:
        descriptor = _own_descriptor(path)
        there = None if descriptor is not None else _status(path)
        if descriptor is not None or (there and not stat.S_ISREG(there.st_mode)):
            with open(path if descriptor is None else os.dup(descriptor), "wb") as file:
                file.write(data)
            return
        real = Path(os.path.realpath(path))
        beside = real.with_name(
            f".{real.name[:40]}.{secrets.token_hex(4)}.part"
        )  # another may write it at once
        try:
            with beside.open("xb") as file:
                if there:
                    with contextlib.suppress(PermissionError):  # a file system without modes
                        os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(beside, real)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                real.write_bytes(data)  # a file that is mounted there
                beside.unlink()
        except OSError:  # a full disk, say
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        _flush_folder(real.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _own_descriptor(path: Path) -> int | None:
    """The descriptor that /dev/stdout, /dev/fd/3 and their like are; None for another path."""
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(path))
    return int(number[1]) if number else names.get(str(path))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _flush_folder(folder: Path) -> None:
    """Flushes a rename to the disk, on file systems that can do that to a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that one may write but not list
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def canonical(value: Any) -> str:
    """JSON text that equal values share: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Writes `body`, JSON values under text keys; its checksum comes first."""
    rest = json.dumps({"format": FORMAT, **body}, indent=1)[1:].encode()
    write_file(path, _seal(rest) + rest)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Damaged when the file is missing, cut short or edited."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
    rest = data[len(_seal(b"")) :]
    if data != _seal(rest) + rest:
        raise Damaged(f"{path.name} was cut short or edited (its checksum differs)")
    body: dict[str, Any] = json.loads(data)
    del body["sha256"]
    if body.pop("format", None) != FORMAT:
        raise Damaged(f"{path.name} was written by another version of objbench")
    return body


def _seal(rest: bytes) -> bytes:
    """How a JSON object begins whose other bytes are `rest`."""
    return b'{"sha256": "%s",' % hashlib.sha256(rest).hexdigest().encode()


def vouch(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of each of these files, to be kept in a JSON file that vouches for them."""
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Damaged when one of `files` is not as `vouch` saw it."""
    for name, digest in files.items():
        try:
            if vouch(folder, [name])[name] != digest:
                raise Damaged(f"{name} was cut short or edited (its checksum differs)")
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file. Tensors may share memory or lie on any device."""
    from safetensors.torch import save

    write_file(path, save({k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file onto the CPU. Damaged when it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except SafetensorError as error:
        raise Damaged(f"{path.name} was cut short or is not ours ({error})") from None


# Records


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
