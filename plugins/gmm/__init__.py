"""A Gaussian mixture on what-latents: what clusters for a detector that does not cluster, unless another is named."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """The clusterer of SPAIR and SPACE in the paper's Table 2."""
    return [
        ClustererSpec(
            name="gmm",
            label="GMM",
            summary="a Gaussian mixture on what-latents, the likeliest of several fits by scikit-learn",
            target="objbench_plugins.gmm.model:Mixture",
            paper="Appendix C of GMAIR (arXiv 2106.01722) clusters for SPAIR and SPACE in this way",
            code="scikit-learn's GaussianMixture",
            licence="BSD-3-Clause",
            differs={"*": "The paper gives no settings of the mixture; ours are the options of gmm."},
            prior_knowledge="The number of clusters.",
        )
    ]
