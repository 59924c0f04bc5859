"""Clusters from contrastive features, and the bound that labels set."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """The clusterer, and the same network trained with labels: an oracle, the bound of every row."""
    return [
        ClustererSpec(
            name="contrastive",
            label="contrastive",
            summary="Contrastive features, neighbour embedding, mixtures, two rounds of self-training",
            target="objbench_plugins.contrastive.model:Contrastive",
            paper=(
                "none as a whole; its parts: NT-Xent of T. Chen et al.: A Simple Framework for Contrastive Learning "
                "of Visual Representations, ICML 2020; N2D of R. McConville et al., ICPR 2020; self-labelling of "
                "W. Van Gansbeke et al.: SCAN: Learning to Classify Images without Labels, ECCV 2020"
            ),
            code="this repository",
            licence="that of this repository",
            differs={"*": "There is no publication of the whole."},
            prior_knowledge=(
                "The number of clusters; that an object stays the same when it is turned by .3 rad, scaled by a fifth, "
                "sheared, shifted a little, or has a neighbour. Settings were chosen on scenes of digits by looking "
                "at their labels."
            ),
        ),
        ClustererSpec(
            name="ceiling",
            label="labels",
            summary="Bound, not a clusterer: the network of `contrastive`, trained with the true labels",
            target="objbench_plugins.contrastive.model:Ceiling",
            paper="none: a bound of this benchmark",
            code="this repository",
            licence="that of this repository",
            differs={"*": "There is no publication."},
            prior_knowledge="The class of every training object.",
        ),
    ]
