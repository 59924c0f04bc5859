"""What of SPACE's options cannot go together; see `ModelSpec.check`."""

from __future__ import annotations

from objbench.scenes import SceneShape
from objbench_plugins.gating import gating_fault, trim_fault
from objbench_plugins.space.config import SpaceConfig

TIMES = tuple(
    name
    for name in SpaceConfig.__dataclass_fields__
    if name.endswith(("_from", "_until")) and name != "start_from"
)
"""Options that are fractions of `steps`."""


def fault_of(config: SpaceConfig, shape: SceneShape, given: frozenset[str]) -> str:
    """What is wrong, in one line; "" when nothing is."""
    for name in TIMES:
        if getattr(config, name) > 1:
            return (
                f"{name}={getattr(config, name):g} is above 1, the end of training: it is a fraction of steps"
            )
    if "boundary_from" in given and config.boundary and config.boundary_from == 1:
        return (
            "boundary_from=1 is the end of training, so the boundary loss would never start; use boundary=0"
        )
    cells = (shape.height // config.cell_size) * (shape.width // config.cell_size)
    return gating_fault(config, shape, cells, given, "gate_from", 1) or trim_fault(config)
