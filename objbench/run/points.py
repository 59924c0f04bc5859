"""When a training is looked at on the validation scenes: the points of its curve. They change no weight."""

from __future__ import annotations

from objbench.cells.result import Position

POINTS = 20
"""Of a curve, evenly spaced in steps, where nothing else is asked for."""
SHARE = 0.1
"""A point waits while those before it took more than this share of the seconds of training."""
FIRST_S = 60.0
"""A training so long that its first evenly spaced point comes later has one after so many seconds of training, and then
others, each at twice the seconds of the one before."""


class Points:
    """Says after which steps the curve has a point, beside the last."""

    def __init__(self, number: int | None = None) -> None:
        """number: exactly so many, evenly spaced in steps, whatever they cost. None: POINTS at most, at a bounded cost.

        With None, where the points are depends on how fast the machine is.
        """
        self.number = number

    def due(self, at: Position, steps: int) -> bool:
        """Whether there is to be a point after step `at.step` of `steps`, given those of `at.curve`."""
        last = at.curve[-1] if at.curve else {"step": 0, "seconds": 0.0}
        number = self.number or POINTS
        even = at.step * number // steps > last["step"] * number // steps
        if self.number:
            return even
        if not (even or at.seconds >= max(FIRST_S, 2 * last["seconds"])):
            return False
        return bool(sum(row.get("validation_seconds", 0.0) for row in at.curve) <= SHARE * at.seconds)
