"""When a training is evaluated on the validation scenes: the points of its curve. They do not affect the weights."""

from __future__ import annotations

from objbench.cells.result import Position

POINTS = 20
"""The default number of evenly spaced points of a curve."""
SHARE = 0.1
"""A point is delayed while all earlier points took more than this share of the training time."""
FIRST_S = 60.0
"""If the first evenly spaced point of a training comes later than this, the curve has extra points: after this many
seconds of training, and then each time that the seconds have doubled."""


class Points:
    """Decides after which steps the curve has a point. It always has one after the last step."""

    def __init__(self, number: int | None = None) -> None:
        """number: this many points, evenly spaced in steps, at any cost. None: about POINTS, with a limited cost.

        With None, the steps of the points depend on the speed of the machine.
        """
        self.number = number

    def due(self, at: Position, steps: int) -> bool:
        """True if the curve should have a point after step `at.step` of `steps`; `at.curve` has the points so far."""
        last = at.curve[-1] if at.curve else {"step": 0, "seconds": 0.0}
        number = self.number or POINTS
        even = at.step * number // steps > last["step"] * number // steps
        if self.number:
            return even
        if not (even or at.seconds >= max(FIRST_S, 2 * last["seconds"])):
            return False
        return bool(sum(row.get("validation_seconds", 0.0) for row in at.curve) <= SHARE * at.seconds)
