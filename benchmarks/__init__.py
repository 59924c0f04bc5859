"""Speed benchmarks; `python -m benchmarks` runs them all."""

from __future__ import annotations

import importlib
from typing import Any


def rows_of(name: str) -> list[dict[str, Any]]:
    """What one benchmark finds."""
    rows: list[dict[str, Any]] = importlib.import_module(f"benchmarks.{name}").rows()
    return rows
