"""The merge game, played with pymunk until its fruits lie still. Only needed to make `states.npz` again:

    python -m objbench_plugins.fruit2d.physics --to states.npz

Fruits fall into a box; two equal ones that touch become one of the next kind. It takes a minute or two.
The physics is chaotic: the same versions on the same kind of machine give the same states, others may not.
That is why the states are shipped.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pymunk
from numpy.typing import NDArray

from objbench_plugins.fruit2d.states import DIAMETERS, FIELD, PLACES, SCENES, SHIPPED, TURN, States, shipped

STEP_S = 1 / 60
FRICTION, ELASTICITY = 0.4, 0.1
CALM = 12.0
"""Fruits lie still when none is faster than this, in units/s, for CALM_STEPS steps."""
CALM_STEPS = 6
PATIENCE = 240
"""Steps after which a pile that still trembles counts as still."""
DEEPEST = 3.0
"""A pile is not still while two fruits overlap by more than this, in units."""
DROPPED = 5
"""The first so many kinds are dropped, each as often."""
SKILL = 0.15
"""How often the player drops a fruit on one of its kind rather than anywhere. The better the play, the more
large fruits: this much leaves about 30 of the smallest to one of the largest, as in Fruit2D (paper: ~31)."""
DROPS_A_SCENE = 5


class Game:
    """One game, from an empty box until the pile passes the top."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)  # random() is the same in every version of Python
        self.fruits: dict[pymunk.Circle, int] = {}
        self.touching: list[tuple[pymunk.Circle, pymunk.Circle]] = []
        self.space = space = pymunk.Space()
        space.iterations = 10
        space.gravity = 0, -1500
        space.damping = 0.8
        space.collision_slop = 0.1
        space.collision_bias = (1 - 0.3) ** 60
        thick, high = 50, 4 * FIELD
        left, right = -thick, FIELD + thick
        corners = (left, high), (left, -thick), (right, -thick), (right, high)
        for a, b in itertools.pairwise(corners):
            wall = pymunk.Segment(space.static_body, a, b, thick)
            wall.friction, wall.elasticity = FRICTION, ELASTICITY
            space.add(wall)
        for kind in range(len(DIAMETERS)):
            space.on_collision(kind + 1, kind + 1, post_solve=self._touch)

    def scenes(self) -> Iterator[NDArray[np.float64]]:
        """Settled piles [k, 4]: x, y (up), angle (anticlockwise, radians) and kind of each fruit."""
        drops = 0
        while True:
            self._drop()
            drops += 1
            settled = self._settle()
            pile = self._pile()
            if (pile[:, 1] + DIAMETERS[pile[:, 3].astype(int)] / 2 > FIELD).any():
                return
            if settled and drops % DROPS_A_SCENE == 0:
                yield pile

    def _drop(self) -> None:
        kind = int(self.random.random() * DROPPED)
        radius = DIAMETERS[kind] / 2
        same = [shape for shape, k in self.fruits.items() if k == kind]
        x = radius + self.random.random() * (FIELD - 2 * radius)
        if same and self.random.random() < SKILL:
            target = same[int(self.random.random() * len(same))]
            x = target.body.position.x + (self.random.random() - 0.5) * radius
        x = min(max(x, radius), FIELD - radius)
        self._add(kind, (x, FIELD + radius), self.random.random() * math.tau)

    def _add(self, kind: int, place: tuple[float, float], angle: float) -> None:
        radius = DIAMETERS[kind] / 2
        mass = (radius / 50) ** 2
        body = pymunk.Body(mass, pymunk.moment_for_circle(mass, 0, radius))
        body.position, body.angle = place, angle
        shape = pymunk.Circle(body, radius)
        shape.friction, shape.elasticity, shape.collision_type = FRICTION, ELASTICITY, kind + 1
        self.space.add(body, shape)
        self.fruits[shape] = kind

    def _touch(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        self.touching.append(arbiter.shapes)  # the space may not change in the middle of a step

    def _merge(self) -> None:
        pairs, self.touching = self.touching, []
        for pair in pairs:
            if not all(shape in self.fruits for shape in pair):
                continue  # one of three that touched at once
            low = min(pair, key=lambda shape: shape.body.position.y)
            place, angle, kind = low.body.position, low.body.angle, self.fruits[low]
            for shape in pair:
                self.space.remove(shape, shape.body)
                del self.fruits[shape]
            if kind + 1 < len(DIAMETERS):  # two of the largest vanish
                self._add(kind + 1, (place.x, place.y), angle)

    def _settle(self) -> bool:
        """Steps until the pile lies still; False if it never does."""
        calm = 0
        for step in range(4 * PATIENCE):
            self.space.step(STEP_S)
            if self.touching:
                self._merge()
                calm = 0
            still = all(shape.body.velocity.length < CALM for shape in self.fruits)
            calm = calm + 1 if still else 0
            if (calm >= CALM_STEPS or step >= PATIENCE) and deepest(self._pile()) < DEEPEST:
                return True
        return False

    def _pile(self) -> NDArray[np.float64]:
        rows = [(*s.body.position, s.body.angle, kind) for s, kind in self.fruits.items()]
        return np.array(rows, np.float64).reshape(-1, 4)


def deepest(pile: NDArray[np.float64]) -> float:
    """The deepest that two fruits of a pile [k, 4], or a fruit and the box, overlap, in units; 0 for none."""
    x, y, radius = pile[:, 0], pile[:, 1], DIAMETERS[pile[:, 3].astype(int)] / 2
    between = radius[:, None] + radius - np.hypot(x[:, None] - x, y[:, None] - y)
    np.fill_diagonal(between, 0)
    box = radius - np.minimum(np.minimum(x, FIELD - x), y)
    return max(0.0, between.max(initial=0), box.max(initial=0))


def play(scenes: dict[str, int]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(game, settled pile) for so many scenes of each split, in such order that any few are of many games."""
    game = 0
    for wanted in scenes.values():
        split: list[tuple[int, NDArray[np.float64]]] = []
        while len(split) < wanted:
            split += [(game, pile) for pile in Game(game).scenes()]
            game += 1
        yield from random.Random(wanted).sample(split[:wanted], wanted)


def simulate(scenes: dict[str, int] = SCENES) -> States:
    """The states of so many scenes of each split. No game reaches into two splits."""
    games, piles = zip(*play(scenes), strict=True)
    x, y, angle, kind = np.concatenate(piles).T
    return States(
        game=np.array(games, np.uint16),
        count=np.array([len(pile) for pile in piles], np.uint8),
        x=np.round(x * PLACES).astype(np.uint16),
        y=np.round((FIELD - y) * PLACES).astype(np.uint16),
        angle=(np.round(-angle / math.tau * TURN).astype(np.int64) % TURN).astype(np.uint8),
        fruit=kind.astype(np.uint8),
    )


def main() -> None:
    """Plays every game again and writes the states."""
    parser = argparse.ArgumentParser(description="Play the merge game and write its settled states.")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the .npz file to write")
    path = parser.parse_args().to
    states = simulate()
    states.save(path)
    same = SHIPPED.exists() and states.checksum() == shipped().checksum()
    print(f"{len(states.game)} scenes of {states.game.max() + 1} games, {len(states.x)} fruits: {path}")
    print(f"sha256 {states.checksum()}, {'the same as' if same else 'NOT'} the shipped states")


if __name__ == "__main__":
    main()
