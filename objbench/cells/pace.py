"""What `objbench check` measured of a detector's steps, in the user's cache: a first estimate of what a run takes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from objbench.cells.files import Damaged, read_json, write_json


def keep_pace(model: str, code: str, seconds: float) -> None:
    """Keeps the seconds of a training step, an image, of the model whose code has that digest.

    A cache that cannot be written only means that there is no estimate.
    """
    with suppress(OSError):
        file = _file(model, code)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"model": model, "code": code, "seconds_an_image": seconds})


def known_pace(model: str, code: str) -> float | None:
    """The seconds of a training step, an image, as they were last kept; None when they were not, for this very code."""
    try:
        return float(read_json(_file(model, code))["seconds_an_image"])
    except (Damaged, KeyError, TypeError, ValueError):
        return None


def _file(model: str, code: str) -> Path:
    from platformdirs import user_cache_path

    name = hashlib.sha256(f"{model}\0{code}".encode()).hexdigest()[:32]
    return user_cache_path("objbench") / "pace" / f"{name}.json"
