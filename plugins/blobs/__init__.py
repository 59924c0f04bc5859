"""Connected components of ink: a detector that learns next to nothing."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """A floor of detection; a clusterer has to be named with it, or the harness clusters by its own default."""
    return [
        ModelSpec(
            name="blobs",
            label="Connected components",
            summary="Floor: each connected component of what differs from the background is a detection",
            target="objbench_plugins.blobs.model:Blobs",
            check="objbench_plugins.blobs.check:fault_of",
            clusters=False,
            paper="none: a floor of this benchmark, made of scipy.ndimage",
            code="this repository",
            licence="that of this repository",
            differs={"*": "There is no publication."},
            prior_knowledge=(
                "That an object differs from the background by more than .2 (blobs.ink) in some channel, and has at "
                "least 4 pixels (blobs.pixels)."
            ),
        )
    ]
