"""Registers the detector; imports nothing heavy."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models():
    """`--models blobs`."""
    return [ModelSpec("blobs", "bright blobs", "objbench_blobs.model:Blobs", clusters=False)]
