"""Fruit2D, where a user has its files, and a simulation of the game it was taken from, where not."""

from objbench import DataSpec, hookimpl


@hookimpl
def objbench_data() -> list[DataSpec]:
    """The data set of the paper's Table 2, third block, and its stand-in."""
    return [
        DataSpec(
            name="fruit2d",
            label="Fruit2D",
            summary="the published fruit scenes, from files that you download by hand",
            target="objbench_plugins.fruit2d.official:Fruit2D",
            clusters=9,
        ),
        DataSpec(
            name="fruit2d-sim",
            label="Fruit2D-sim",
            summary="piles of nine kinds of cut fruit from a simulated merge game; needs no download",
            target="objbench_plugins.fruit2d.simulated:Fruit2DSim",
            stand_in_for="Fruit2D",
            clusters=9,
        ),
    ]
