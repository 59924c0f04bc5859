"""SPACE: spatial attention for the foreground, a scene mixture for the background (arXiv 2001.02407)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector; the harness clusters its what-latents."""
    return [
        ModelSpec(
            name="space",
            label="SPACE",
            summary="Spatial attention over a scene mixture (Lin et al. 2020): detects on any background",
            target="objbench_plugins.space.model:Space",
            clusters=False,
        )
    ]
