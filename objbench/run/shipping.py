"""The files of a training that runs on another machine: what changed in its folder there, and how that is stored here.

A folder is the same at both ends at any instant that matters: what JSON files vouch for is written before them, and
removed after them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from objbench.writing import write_file

TRIES = 5
"""How often a folder is read anew that changed while it was read."""


@dataclass(frozen=True)
class Parcel:
    """What changed in a folder; files are named by their paths in it, with /."""

    whole: dict[str, bytes] = field(default_factory=dict)
    """Files that are new or were replaced."""
    more: dict[str, bytes] = field(default_factory=dict)
    """What was appended to files: to logs."""
    gone: tuple[str, ...] = ()
    """Files that were removed."""


class Seen(NamedTuple):
    """A file as it was seen. One that is appended to keeps its inode; one that is replaced can get it back."""

    inode: int
    size: int
    changed_ns: int


class Changes:
    """A folder whose changes are to be shipped."""

    def __init__(self, folder: Path) -> None:
        """What is in the folder now is known at the other end."""
        self.folder = folder
        self._known = _listing(folder)
        self._digests = {name: _digest(_read(folder / name)) for name in self._known}
        """Of what the other end has of each file."""

    def changes(self) -> Parcel:
        """What changed since the last call.

        Empty while files are replaced faster than they can be read: half of a change would not be understood.
        """
        for _ in range(TRIES):
            now = _listing(self.folder)
            try:
                parcel, digests = self._difference(now)
            except FileNotFoundError:
                continue
            after = _listing(self.folder)
            if now.keys() == after.keys() and all(
                seen == after[name] or self._is_longer(name, digests.get(name), seen, after[name])
                for name, seen in now.items()
            ):
                self._known = now
                self._digests = {name: (self._digests | digests)[name] for name in now}
                return parcel
        return Parcel()

    def _is_longer(self, name: str, digest: bytes | None, then: Seen, now: Seen) -> bool:
        """Whether a file was only appended to since it was read."""
        if then.inode != now.inode or then.size > now.size:
            return False
        return _digest(_read(self.folder / name)[: then.size]) == (digest or self._digests[name])

    def _difference(self, now: Mapping[str, Seen]) -> tuple[Parcel, dict[str, bytes]]:
        """What changed, and the digests of the files that did."""
        whole: dict[str, bytes] = {}
        more: dict[str, bytes] = {}
        digests: dict[str, bytes] = {}
        for name, seen in now.items():
            before = self._known.get(name)
            if seen == before:
                continue
            content = (self.folder / name).read_bytes()[: seen.size]
            digests[name] = _digest(content)
            if before is not None and _digest(content[: before.size]) == self._digests[name]:
                more[name] = content[before.size :]
            else:
                whole[name] = content
        return Parcel(whole, more, tuple(self._known.keys() - now.keys())), digests


def store(folder: Path, parcel: Parcel) -> None:
    """Does to this folder what was done to the other one. OSError when it cannot be written."""
    for name in sorted(parcel.whole, key=_commits):
        write_file(_inside(folder, name), parcel.whole[name])
    for name, data in parcel.more.items():
        with _inside(folder, name).open("ab") as file:
            file.write(data)
    for name in sorted(parcel.gone, key=_commits, reverse=True):
        (folder / name).unlink(missing_ok=True)


def packed(folder: Path, cells: Iterable[str]) -> dict[str, bytes]:
    """The files with which a training can go on elsewhere: its own, and those of these of its cells."""
    names = ["", *(f"{cell}/" for cell in cells)]
    there = [name for name in _listing(folder) if name[: name.rfind("/") + 1] in names]
    return {name: (folder / name).read_bytes() for name in there if not name.endswith((".png", "log.txt"))}


def unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a folder of which nobody knows yet."""
    for name, data in files.items():
        path = _inside(folder, name)
        path.write_bytes(data)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _commits(name: str) -> tuple[bool, int, str]:
    """Sorts files as they are to be written: JSON files vouch for others, and those of cells for their training's."""
    return name.endswith(".json"), name.count("/"), name


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _read(path: Path) -> bytes:
    """What a file holds; nothing if it has just been removed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _listing(folder: Path) -> dict[str, Seen]:
    """The files in a folder and its folders, but for hidden ones, which are being written."""
    return {name: Seen(stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in _walk(str(folder), "")}


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk(entry.path, f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name, entry.stat()
            except FileNotFoundError:  # removed as we look
                continue
