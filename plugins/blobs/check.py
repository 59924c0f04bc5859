"""What of the options of connected components cannot go together; see `ModelSpec.check`."""

from __future__ import annotations

from objbench.scenes import SceneShape
from objbench_plugins.blobs.model import BlobsConfig


def fault_of(config: BlobsConfig, shape: SceneShape, given: frozenset[str]) -> str:
    """What is wrong, in one line; "" when nothing is."""
    if config.ink >= 1:
        return f"ink={config.ink:g} is not below 1, and no pixel differs by more"
    if config.pixels > shape.height * shape.width:
        return f"pixels={config.pixels} is more than an image of {shape.height}x{shape.width} has"
    return ""
