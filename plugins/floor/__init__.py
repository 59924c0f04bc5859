"""The floor: what clustering costs when detection is given. True boxes, for a clusterer or for PCA and a mixture."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """Oracles: they are shown the true boxes, so their AP says nothing; their ACC and NMI are what to beat."""
    return [
        ModelSpec(
            name="truth",
            label="True boxes",
            summary="Oracle, not a detector: the true boxes, for clusterers of glimpses",
            target="objbench_plugins.floor.truth:Truth",
            clusters=False,
            paper="none: an oracle of this benchmark",
            code="this repository",
            licence="that of this repository",
            differs={"*": "There is no publication."},
            prior_knowledge="The true boxes.",
        ),
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
        ),
    ]
