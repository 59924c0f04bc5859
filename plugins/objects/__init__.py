"""Multi-object scenes with masks: the field's own files, and sprites drawn in their manner."""

from objbench import DataSpec, hookimpl


@hookimpl
def objbench_data() -> list[DataSpec]:
    """Files of scenes with masks, and a stand-in for Multi-dSprites that needs no download."""
    return [
        DataSpec(
            name="objects",
            label="Objects",
            summary="multi-object scenes with masks from HDF5 or npz: -o objects.file=FILE",
            target="objbench_plugins.objects.source:Objects",
        ),
        DataSpec(
            name="sprites-sim",
            label="Sprites-sim",
            summary="coloured squares, ellipses and hearts on grey, drawn as in Multi-dSprites; needs no download",
            target="objbench_plugins.objects.sprites:SpritesSim",
            stand_in_for="Multi-dSprites",
            clusters=3,
        ),
    ]
