"""Sweeps: an option with several values, `-o gmair.recon=4,8,16`, makes a row of each.

What a text with commas means depends on the type of the option. Of an option that takes one value it is a sweep; values
that hold commas are quoted: `-o my.words='"a,b","c"'`. Of an option that takes a list it is one list, as it always
was; several lists are quoted, `-o my.sizes='"3,4","5,6"'`. A JSON list is a sweep if it is one level deeper than the
option's own values: `-o my.sizes=[[3,4],[5,6]]`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from objbench.cells.identity import Cell
from objbench.cells.overrides import Overrides
from objbench.errors import UsageError
from objbench.options import as_text

PARTS = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^,"][^,]*|)\s*(?:,|$)')
"""One value of a text with commas: a JSON string, or text without commas."""
MOST_ROWS = 1000
"""More combinations of one matrix are taken for a slip."""


def expanded(
    overrides: Mapping[str, Mapping[str, str]], depth_of: Callable[[str, str], int]
) -> list[Overrides]:
    """Every combination of the swept values, the last option changing fastest; one where nothing is swept.

    depth_of: how deep lists in an option's values are (owner, key): 0 for a single value, 1 for a list. It is asked
    only where it matters. UsageError on a sweep without values, or with an empty one.
    """
    places, choices = [], []
    for owner, options in overrides.items():
        for key, text in options.items():
            values = values_of(f"{owner}.{key}", text, lambda o=owner, k=key: depth_of(o, k))  # type: ignore[misc]
            places.append((owner, key))
            choices.append(values)
    rows = 1
    for values in choices:
        rows *= len(values)
    if rows > MOST_ROWS:
        raise UsageError(f"the sweeps of -o make {rows} combinations; at most {MOST_ROWS} can be run at once")
    combinations: list[Overrides] = []
    for chosen in itertools.product(*choices):
        combination: dict[str, dict[str, str]] = {owner: {} for owner in overrides}
        for (owner, key), value in zip(places, chosen, strict=True):
            combination[owner][key] = value
        combinations.append(combination)
    return combinations


def values_of(name: str, text: str, depth_of: Callable[[], int]) -> list[str]:
    """The values that a text gives an option, as texts, each once; name: "owner.key", for messages."""
    if text.startswith("["):
        try:
            listed = json.loads(text)
        except ValueError:
            return [text]
        if not isinstance(listed, list) or _depth(listed) != depth_of() + 1:
            return [text]
        if not listed:
            raise UsageError(f"-o {name}=[]: a sweep without values; give at least one")
        return list(dict.fromkeys(json.dumps(v) if isinstance(v, list) else as_text(v) for v in listed))
    if "," not in text:
        quoted = split(text)
        return [quoted[0][1]] if quoted and quoted[0][0] else [text]
    parts = split(text)
    if parts is None:
        return [text]
    if len(parts) == 1:  # one quoted text
        return [parts[0][1]]
    if depth_of() and not all(quoted for quoted, _ in parts):
        return [text]
    if not all(quoted or value for quoted, value in parts):
        raise UsageError(f'-o {name}={text}: a value of the sweep is empty; write "" for an empty text')
    return list(dict.fromkeys(value for _, value in parts))


def split(text: str) -> list[tuple[bool, str]] | None:
    """The values between the commas of a text, each with whether it was quoted; None where quotes are not closed, or
    stand inside a value."""
    parts, at = [], 0
    while True:
        found = PARTS.match(text, at)
        if found is None:
            return None
        value = found[1].strip()
        try:
            parts.append((True, str(json.loads(value))) if value.startswith('"') else (False, value))
        except ValueError:
            return None
        if not found[0].endswith(",") or found.end(1) == len(text):
            return parts if found.end() == len(text) else None
        at = found.end()


def told_apart(cells: Iterable[Cell]) -> dict[str, str]:
    """Key -> the options that tell a cell from the others of its name, as " [recon=4]"; only where there are others."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.name, []).append(cell)
    labels = {}
    for group in groups.values():
        facts = [_facts(cell) for cell in group]
        names = [n for n in sorted({n for f in facts for n in f}) if len({f.get(n) for f in facts}) > 1]
        for cell, mine in zip(group, facts, strict=True):
            if words := [f"{name}={mine[name]}" for name in names if name in mine]:
                labels[cell.key] = f" [{', '.join(words)}]"
    return labels


def _facts(cell: Cell) -> dict[str, str]:
    identity = cell.training.identity
    data, clusterer = identity["data"], cell.clusterer["name"]
    facts = {k: as_text(v) for k, v in identity["model_config"].items()}
    facts |= {f"{data}.{k}": as_text(v) for k, v in identity["data_config"].items()}
    return facts | {f"{clusterer}.{k}": as_text(v) for k, v in cell.clusterer.get("config", {}).items()}


def _depth(value: Any) -> int:
    """How deep lists are nested: 0 for what is none."""
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
