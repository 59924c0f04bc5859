"""Registers the detector; imports nothing heavy."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models():
    """`--models spots`."""
    return [ModelSpec("spots", "bright spots", "objbench_spots.model:Spots", clusters=False)]
