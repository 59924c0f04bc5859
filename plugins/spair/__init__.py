"""SPAIR: a grid of cells that attend, infer and repeat, each seeing its processed neighbours (Crawford & Pineau 2019)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector; a Gaussian mixture on its what-latents does the clustering."""
    return [
        ModelSpec(
            name="spair",
            label="SPAIR",
            summary="Spatially Invariant Attend, Infer, Repeat (Crawford & Pineau 2019)",
            target="objbench_plugins.spair.model:Spair",
            clusters=False,
        )
    ]
