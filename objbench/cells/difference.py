"""What sets two cells apart: identities, figures, and the surroundings they were measured in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from objbench.cells.identity import EVALUATED, START

CODE = {
    "model_code": "model",
    "data_code": "data",
    "harness_code": "objbench",
    "clusterer_code": "clusterer_name",
}
"""Part of an identity that is a digest of code -> the part that names whose code, or the name itself."""

WORDS = {"clusterer_name": "the clusterer"}
"""Part of an identity -> what messages call it, where that differs."""

if TYPE_CHECKING:
    from objbench.cells.result import CellResult


def figures_that_differ(then: CellResult, now: CellResult) -> list[str]:
    """A line for each metric that did not come out again, to the last bit."""
    lines = []
    for name, value in then.metrics.items():
        again = now.metrics.get(name, math.nan)
        if value != again and not (math.isnan(value) and math.isnan(again)):
            lines.append(f"{name}: {value:.6f} then, {again:.6f} now ({again - value:+.2g})")
    return lines


def surroundings_that_differ(then: CellResult, now: CellResult) -> list[str]:
    """A line for each version, device or commit that is another one now."""
    lines = []
    for name in ("objbench", "python", "platform", "git", "device", "threads"):
        if then.provenance.get(name) != now.provenance.get(name):
            lines.append(f"{name} was {then.provenance.get(name)}, is {now.provenance.get(name)}")
    before, after = (r.provenance.get("packages", {}) for r in (then, now))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            lines.append(f"{name} was {before.get(name)}, is {after.get(name)}")
    return lines


def difference(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """What sets one identity apart from another, a line a value: "gmair.lr is 0.001, there 0.0001"."""
    lines = []
    owners = {
        "model_config": new["model"],
        "data_config": new["data"],
        "clusterer": new["clusterer"]["name"],
        "protocol": "protocol",
    }
    new, old = (
        {**identity, "clusterer": identity["clusterer"].get("config", {})} | _named(identity["clusterer"])
        for identity in (new, old)
    )
    of_clusterer = (
        {"clusterer", "clusterer_code"} if new["clusterer_name"] != old["clusterer_name"] else set()
    )
    for part in sorted((new.keys() | old.keys()) - of_clusterer):
        mine, theirs = new.get(part), old.get(part)
        if mine == theirs:
            continue
        if part in owners and isinstance(mine, dict) and isinstance(theirs, dict):
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):
                    lines.append(f"{owners[part]}.{key} is {mine.get(key)}, there {theirs.get(key)}")
        elif part in CODE:
            lines.append(f"the code of {new.get(CODE[part], CODE[part])} has changed")
        elif part in (START, EVALUATED):
            lines.append(f"{part} is {_training(mine)}, there {_training(theirs)}")
        elif part == "fingerprint":
            lines.append(f"the content of {new['data']} has changed")
        else:
            lines.append(f"{WORDS.get(part, part)} is {mine}, there {theirs}")
    return lines


def _training(origin: Mapping[str, Any] | None) -> str:
    return f"{origin['training']} (weights {origin['weights'][:8]})" if origin else "none"


def _named(clusterer: Mapping[str, Any]) -> dict[str, Any]:
    return {f"clusterer_{key}": clusterer.get(key) for key in ("name", "code")}
