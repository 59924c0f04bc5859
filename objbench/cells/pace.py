"""What `objbench check` measured of a detector's steps, in the user's cache: a first estimate of what a run takes."""

from __future__ import annotations

from objbench.cells.cache import keep, kept


def keep_pace(model: str, code: str, seconds: float) -> None:
    """Keeps the seconds of a training step, an image, of the model whose code has that digest.

    A cache that cannot be written only means that there is no estimate.
    """
    keep("pace", f"{model}\0{code}", {"model": model, "code": code, "seconds_an_image": seconds})


def known_pace(model: str, code: str) -> float | None:
    """The seconds of a training step, an image, as they were last kept; None when they were not, for this very code."""
    try:
        return float((kept("pace", f"{model}\0{code}") or {})["seconds_an_image"])
    except (KeyError, TypeError, ValueError):
        return None
