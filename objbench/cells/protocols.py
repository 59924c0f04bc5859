"""How long and on what scale to train and test. A protocol names the scale; each plugin's `settings` fit it."""

from __future__ import annotations

from dataclasses import dataclass

from objbench.errors import unknown


@dataclass(frozen=True)
class Protocol:
    """The part of a protocol that belongs to the harness; it is part of a cell's identity."""

    name: str
    summary: str
    validation_scenes: int
    """Scenes of the validation split that the running figures are measured on."""
    test_scenes: int
    """Scenes of the test split that a finished cell is scored on, once."""
    fit_scenes: int
    """Training scenes that a mixture, or a detector without gradient steps, is fitted on."""


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("demo", "minutes on two CPU cores, embedded data, no network", 200, 500, 2_000),
        Protocol("small", "meant for about 15 minutes of one CPU core a cell", 300, 1_000, 4_000),
        Protocol(
            "paper", "128x128 scenes, for a GPU; differs from Appendix B as `info` lists", 500, 2_000, 4_000
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of that name; UsageError when there is none."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
