"""What a person did that cannot work, told in one line: what was wrong, what exists, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Shown as one line on stderr, exit code 2, never as a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error for a name that does not exist: suggests the nearest and lists what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return UsageError(f"no {kind} named '{name}'{hint} ({kind}s: {', '.join(names) or 'none'})")
