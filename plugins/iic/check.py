"""What of IIC's options cannot go together; see `ClustererSpec.check`."""

from __future__ import annotations

from objbench_plugins.iic.model import IicConfig


def fault_of(config: IicConfig, given: frozenset[str]) -> str:
    """What is wrong, in one line; "" when nothing is."""
    if config.least_crop > config.most_crop:
        return f"least_crop={config.least_crop:g} is above most_crop={config.most_crop:g}"
    return ""
