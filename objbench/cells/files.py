"""Files that are written whole or not at all, and carry checksums of themselves and of the files they describe."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from objbench.errors import UsageError

FORMAT = 2
"""Raised when files can no longer be read as before; those of another format are refused."""


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A path beside `target`; what is written there becomes `target` when the block has ended well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            beside = Path(folder, target.name)
            yield beside
            os.replace(beside, target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from None


class Damaged(Exception):
    """A file is not what was written there: cut short, edited, or half of a copy. One line."""


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
    write_file(path, _checksum_header(rest) + rest)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Damaged when the file is missing, cut short or edited."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
    rest = data[len(_checksum_header(b"")) :]
    if data != _checksum_header(rest) + rest:
        raise Damaged(f"{path.name} was cut short or edited (its checksum differs)")
    body: dict[str, Any] = json.loads(data)
    del body["sha256"]
    if body.pop("format", None) != FORMAT:
        raise Damaged(f"{path.name} was written by another version of objbench")
    return body


def _checksum_header(rest: bytes) -> bytes:
    """How a JSON object begins whose other bytes are `rest`."""
    return b'{"sha256": "%s",' % hashlib.sha256(rest).hexdigest().encode()


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of each of these files, to be kept in a JSON file that vouches for them."""
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def verify_checksums(folder: Path, files: Mapping[str, str]) -> None:
    """Damaged when one of `files` is not as `checksums` saw it."""
    for name, digest in files.items():
        try:
            if checksums(folder, [name])[name] != digest:
                raise Damaged(f"{name} was cut short or edited (its checksum differs)")
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
