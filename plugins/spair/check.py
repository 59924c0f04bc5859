"""What of SPAIR's options cannot go together; see `ModelSpec.check`."""

from __future__ import annotations

from objbench.scenes import SceneShape
from objbench_plugins.gating import gating_fault, trim_fault
from objbench_plugins.spair.config import SpairConfig


def fault_of(config: SpairConfig, shape: SceneShape, given: frozenset[str]) -> str:
    """What is wrong, in one line; "" when nothing is."""
    if "where_frozen_steps" in given and config.where_frozen_steps >= config.steps:
        return (
            f"where_frozen_steps={config.where_frozen_steps} is not below steps={config.steps}, so where, depth and "
            "presence would never be trained"
        )
    cells = -(-shape.height // config.stride) * -(-shape.width // config.stride)
    return gating_fault(config, shape, cells, given, "gate_step", config.steps) or trim_fault(config)
