"""Registers the data set. Imports nothing heavy: `objbench list` imports this, and only this."""

from objbench import DataSpec, hookimpl


@hookimpl
def objbench_data() -> list[DataSpec]:
    """`--data new-plugin`."""
    return [DataSpec("new-plugin", "squares and discs on black", "new_plugin.source:NewPlugin")]
