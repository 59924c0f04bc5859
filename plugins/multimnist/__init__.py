"""MultiMNIST: handwritten digits scattered over black scenes."""

from objbench import DataSpec, hookimpl


@hookimpl
def objbench_data() -> list[DataSpec]:
    """The data set of the paper's Table 2, second block."""
    return [
        DataSpec(
            name="multimnist",
            label="MultiMNIST",
            summary="1 to 10 MNIST digits of 14x14 pixels at random places on a black image",
            target="objbench_plugins.multimnist.source:MultiMnist",
            clusters=10,
        )
    ]
