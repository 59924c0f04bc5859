"""AAE: the adversarial autoencoder as a clusterer (Makhzani et al. 2015)."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """The second and third row of the paper's Table 2: aae.clusters=16 and 30."""
    return [
        ClustererSpec(
            name="aae",
            label="AAE",
            summary="Adversarial autoencoder with a categorical code (Makhzani et al. 2015)",
            target="objbench_plugins.aae.model:Aae",
            paper=(
                "A. Makhzani, J. Shlens, N. Jaitly, I. Goodfellow, B. Frey: Adversarial Autoencoders, arXiv "
                "1511.05644"
            ),
            code="none by the authors; one that was read: https://github.com/musyoku/adversarial-autoencoder",
            licence="none",
            differs={
                "*": (
                    "Widths, optimiser (Adam) and the noise on what discriminators see are those of the implementation "
                    "read; losses of discriminators as in non-saturating GANs. The rows of GMAIR's Table 2 are "
                    "aae.clusters=16 and 30, counted with many clusters to a class."
                ),
                "small": "Widths of 500, not 1,000; glimpses of 16; 12,000 steps at a learning rate of 1e-3.",
                "demo": "Widths of 500, not 1,000; glimpses of 16; 3,000 steps at a learning rate of 1e-3.",
            },
            prior_knowledge="The number of clusters, and that they are of equal size.",
        )
    ]
