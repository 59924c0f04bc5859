"""MNIST as scenes of one digit."""

from objbench import DataSpec, hookimpl


@hookimpl
def objbench_data() -> list[DataSpec]:
    """The data set of the paper's Table 2, first block."""
    return [
        DataSpec(
            name="mnist",
            label="MNIST",
            summary="one MNIST digit of 28x28 pixels an image, whose box is the whole image",
            target="objbench_plugins.mnist.source:Mnist",
            clusters=10,
        )
    ]
