"""What of the options of Slot Attention cannot go together; see `ModelSpec.check`."""

from __future__ import annotations

from objbench.scenes import SceneShape
from objbench_plugins.slot_attention.config import SlotAttentionConfig


def fault_of(config: SlotAttentionConfig, shape: SceneShape, given: frozenset[str]) -> str:
    """What is wrong, in one line; "" when nothing is."""
    if "warmup" in given and config.warmup >= config.steps:
        return f"warmup={config.warmup} is not below steps={config.steps}, so the learning rate would never reach lr"
    if "grid" in given and config.grid > max(shape.height, shape.width):
        return f"grid={config.grid} is larger than the image, which is {shape.height}x{shape.width}"
    if "coarse" in given and config.coarse > max(shape.height, shape.width):
        return f"coarse={config.coarse} is more than the sides of the image, which is {shape.height}x{shape.width}"
    return ""
