"""What a person did that cannot work, reported in one line: what was wrong, what exists, what to do."""

from __future__ import annotations

import contextlib
import difflib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path


class UsageError(Exception):
    """Shown as one line on stderr, exit code 2, never as a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error for a name that does not exist: suggests the nearest and lists what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return UsageError(f"no {kind} named '{name}'{hint} ({kind}s: {', '.join(names) or 'none'})")


def error_line(error: BaseException) -> str:
    """An error in one line, and the place in a plugin's own code where it came up; see `place_of`."""
    text = " ".join(str(error).split())
    if isinstance(error, UsageError):  # says all there is to say
        return text
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line + place_of(error)


def place_of(error: BaseException) -> str:
    """Where in a plugin's own code an error came up: " (file.py, line 3)".

    The place is the last that lies neither in objbench nor in Python's import, pluggy or torch;
    empty when there is no such place, as for a plugin that returned what it should not.
    """
    others = [
        str(Path(__file__).parent),
        str(Path(traceback.__file__).parent / "importlib"),
        contextlib.__file__,
        "<frozen ",
    ]
    called = (sys.modules[name] for name in ("pluggy", "torch") if name in sys.modules)
    others += [str(Path(str(module.__file__)).parent) for module in called]
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(tuple(others))
    ]
    return f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""


class Interrupted(BaseException):
    """The cell was asked to stop. Not an Exception: no plugin shall catch it."""
