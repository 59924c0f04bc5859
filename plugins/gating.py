"""Options that detectors on a grid of cells share: what of them cannot go together. For their `ModelSpec.check`."""

from __future__ import annotations

from typing import Any

from objbench.scenes import SceneShape


def gating_fault(
    config: Any, shape: SceneShape, cells: int, given: frozenset[str], start: str, end: float
) -> str:
    """What is wrong with the gating that the user set; "" when nothing is.

    cells: in the grid of images of this shape. start: the option that says when gating starts, and end: when training
    ends, in the same unit. Settings that the user did not change may have no effect in small images or short trainings.
    """
    starts = getattr(config, start)
    if "gate_cells" in given and config.gate_cells > cells:
        size = f"{shape.height}x{shape.width}"
        return f"gate_cells={config.gate_cells} is more than the {cells} cells of an image of {size}; 0 keeps all"
    if start in given and starts >= end:
        return f"{start}={starts:g} is not before the end of training ({end:g}), so gating would never start"
    if "warmup_images" in given and config.warmup_images:
        if not starts:
            return f"warmup_images={config.warmup_images} are used until gating starts, but {start}=0; set it above 0"
        if config.warmup_images > config.batch_size:
            return f"warmup_images={config.warmup_images} is more than batch_size={config.batch_size}; 0 uses all"
    return ""


def trim_fault(config: Any) -> str:
    """What is wrong with `trim`, a brightness in 0..1; "" when nothing is."""
    if config.trim >= 1:
        return f"trim={config.trim:g} is not below 1, and nothing is brighter; 0 does not cut boxes"
    return ""
