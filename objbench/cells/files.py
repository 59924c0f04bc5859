"""Files that are written whole or not at all, and carry checksums of themselves and of the files they describe."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from objbench.errors import UsageError
from objbench.writing import write_file

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
