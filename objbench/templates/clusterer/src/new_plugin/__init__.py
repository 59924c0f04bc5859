"""Registers the clusterer. Imports nothing heavy: `objbench list` imports this, and only this."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """`--models DETECTOR+new-plugin`."""
    return [
        ClustererSpec(
            name="new-plugin",
            summary="the nearest of the mean glimpses that k-means finds",
            target="new_plugin.clusterer:NewPlugin",
            prior_knowledge="The number of clusters.",
        )
    ]
