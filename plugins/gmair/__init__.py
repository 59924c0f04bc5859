"""GMAIR: spatial attention and a Gaussian mixture in one generative model (arXiv 2106.01722)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector of the paper."""
    return [
        ModelSpec(
            name="gmair",
            label="GMAIR",
            summary="Gaussian Mixture Attend, Infer, Repeat (Zhu et al. 2021): detects and clusters at once",
            target="objbench_plugins.gmair.model:Gmair",
        )
    ]
