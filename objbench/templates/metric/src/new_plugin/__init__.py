"""Registers the metric. Imports nothing heavy: `objbench list` imports this, and only this."""

from objbench import MetricSpec, hookimpl


@hookimpl
def objbench_metrics() -> list[MetricSpec]:
    """A column of the main table. Raise `version` when the definition changes."""
    return [
        MetricSpec(
            name="new-plugin",
            summary="share of the objects that were found, at IoU > 0.5",
            target="new_plugin.metric:new_plugin",
            weighted="new_plugin.metric:new_plugin_weighted",
            columns={"new_plugin": "FOUND (%)"},
        )
    ]
