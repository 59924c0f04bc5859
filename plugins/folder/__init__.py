"""A folder of the user's own pictures as a data set."""

from objbench import DataSpec, hookimpl


@hookimpl
def objbench_data() -> list[DataSpec]:
    """Pictures in a folder, with COCO annotations or without."""
    return [
        DataSpec(
            name="folder",
            label="Folder",
            summary="your own pictures: -o folder.images=DIR, with COCO annotations or without",
            target="objbench_plugins.folder.source:Folder",
        )
    ]
