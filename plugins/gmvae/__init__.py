"""GMVAE: a variational autoencoder whose prior is a Gaussian mixture (Dilokthanakul et al. 2016)."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """The fourth and fifth row of the paper's Table 2: gmvae.samples=1 and 10."""
    return [
        ClustererSpec(
            name="gmvae",
            label="GMVAE",
            summary="Gaussian mixture variational autoencoder (Dilokthanakul et al. 2016)",
            target="objbench_plugins.gmvae.model:Gmvae",
            paper=(
                "N. Dilokthanakul, P. A. M. Mediano, M. Garnelo, M. C. H. Lee, H. Salimbeni, K. Arulkumaran, "
                "M. Shanahan: Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, "
                "arXiv 1611.02648"
            ),
            code="https://github.com/Nat-D/GMVAE",
            licence="none",
            differs={
                "*": (
                    "Fully connected layers, the default of the authors' code. M of GMAIR's Table 2 is gmvae.samples."
                ),
                "small": "Layers of 300, x of 64, w of 32, glimpses of 16; 8,000 steps of 100 at a rate of 1e-3.",
                "demo": "Layers of 300, x of 64, w of 32, glimpses of 16; 3,000 steps of 100 at a rate of 1e-3.",
            },
            prior_knowledge="The number of clusters, and that they are of equal size.",
        )
    ]
