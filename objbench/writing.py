"""Replaces files as a whole: a crash or a full disk leaves what was there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path


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
