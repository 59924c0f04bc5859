"""IIC: invariant information clustering (Ji et al. 2019)."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """The first row of the paper's Table 2."""
    return [
        ClustererSpec(
            name="iic",
            label="IIC",
            summary="Invariant information clustering (Ji et al. 2019)",
            target="objbench_plugins.iic.model:Iic",
            check="objbench_plugins.iic.check:fault_of",
            paper=(
                "X. Ji, J. F. Henriques, A. Vedaldi: Invariant Information Clustering for Unsupervised Image "
                "Classification and Segmentation, ICCV 2019"
            ),
            code="https://github.com/xu-ji/IIC",
            licence="MIT",
            differs={
                "*": (
                    "Crops are in proportion to the glimpse, of any side between the original's smallest and largest, "
                    "and black outside the glimpse; brightness and contrast are changed, saturation and hue are not; "
                    "the two heads alternate by step, originally by epoch; one pair of an object in a batch, "
                    "originally five. An object is assigned by the main sub-head of lowest loss."
                ),
                "small": "A quarter of the width, glimpses of 16, 3,000 steps of 250 objects at a rate of 1e-3.",
                "demo": "An eighth of the width, glimpses of 16, 1,500 steps of 100 objects at a rate of 1e-3.",
            },
            prior_knowledge=(
                "The number of clusters, that clusters are of equal size, and that an object stays the same when it is "
                "turned by 25 degrees, cropped, brighter or darker."
            ),
        )
    ]
