"""The floor: what clustering costs when detection is given. PCA and a Gaussian mixture on the true boxes."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """An oracle: it is shown the true boxes, so its AP says nothing; its ACC and NMI are what to beat."""
    return [
        ModelSpec(
            name="pca-gmm",
            label="PCA on true boxes",
            summary="Floor, not a detector: principal components of the true boxes' glimpses, clustered",
            target="objbench_plugins.floor.model:PcaOnTrueBoxes",
            clusters=False,
            paper="none: a floor of this benchmark, made of scikit-learn's PCA and GaussianMixture",
            code="this repository",
            licence="that of this repository",
            differs={"*": "There is no publication."},
            prior_knowledge="The true boxes. The number of classes reaches the mixture alone (gmm.clusters).",
        )
    ]
