"""A neighbour embedding of raw glimpses, and a Gaussian mixture on it."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """N2D without its autoencoder."""
    return [
        ClustererSpec(
            name="manifold",
            label="UMAP + GMM",
            summary="Neighbour embedding of glimpses and a Gaussian mixture on it (N2D, McConville et al. 2019)",
            target="objbench_plugins.manifold.model:Manifold",
            paper=(
                "R. McConville, R. Santos-Rodriguez, R. J. Piechocki, I. Craddock: N2D: (Not Too) Deep Clustering via "
                "Clustering the Local Manifold of an Autoencoded Embedding, ICPR 2020"
            ),
            code="https://github.com/rymc/n2d; the embedding: https://github.com/lmcinnes/umap",
            licence="MIT; that of umap-learn is BSD-3-Clause",
            differs={
                "*": (
                    "Raw glimpses are embedded, not an autoencoder's features of 10; 10 neighbours, not 20; several "
                    "embeddings, whose clusters are joined; a new object takes the cluster of its nearest training "
                    "objects, since the embedding of a new object would depend on the others in its batch."
                )
            },
            prior_knowledge="The number of clusters.",
        )
    ]
