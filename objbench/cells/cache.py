"""Values that take long to compute, in the user's cache. It may be deleted at any time, and need not be writable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from objbench.cells.files import Damaged, read_json, write_json

MOST = 5000
"""How many values of a kind are kept; the oldest are removed."""


def keep(kind: str, key: str, body: Mapping[str, Any]) -> None:
    """Keeps `body`, JSON values under text keys. A cache that cannot be written is not used."""
    with suppress(OSError):
        file = _file(kind, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, body)
        names = os.listdir(file.parent)
        if len(names) > MOST:
            files = [file.parent / name for name in names]
            for old in sorted(files, key=lambda f: f.stat().st_mtime)[: len(files) - MOST]:
                old.unlink()


def kept(kind: str, key: str) -> dict[str, Any] | None:
    """What was kept last under this key; None when there is nothing, or it cannot be read."""
    try:
        return read_json(_file(kind, key))
    except Damaged:
        return None


def _file(kind: str, key: str) -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("objbench") / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
