"""SPAIR: cells of a grid attend, infer and repeat, each seeing its neighbours (Crawford & Pineau 2019)."""

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
