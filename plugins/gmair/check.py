"""What of GMAIR's options cannot go together; see `ModelSpec.check`."""

from __future__ import annotations

from objbench.scenes import SceneShape
from objbench_plugins.gating import gating_fault, trim_fault
from objbench_plugins.gmair.config import GmairConfig
from objbench_plugins.gmair.networks import STRIDE


def fault_of(config: GmairConfig, shape: SceneShape, given: frozenset[str]) -> str:
    """What is wrong, in one line; "" when nothing is."""
    if config.backbone == "small" and config.backbone_width > 8 and config.backbone_width % 8:
        return f"backbone_width={config.backbone_width} is above 8 and not a multiple of 8 (its groups of channels)"
    if "start_with" in given and config.start_with != "gmm" and not config.mixture_start:
        return f"start_with={config.start_with} needs mixture_start above 0, the step at which that clusterer is fitted"
    cells = (shape.height // STRIDE) * (shape.width // STRIDE)
    return gating_fault(config, shape, cells, given, "gate_step", config.steps) or trim_fault(config)
