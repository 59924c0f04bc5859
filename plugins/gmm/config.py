"""The options of the Gaussian mixture."""

from __future__ import annotations

from dataclasses import dataclass

from objbench.clusterer import ClustererConfig
from objbench.options import option


@dataclass(frozen=True)
class GmmConfig(ClustererConfig):
    """One Gaussian a cluster."""

    covariance: str = option("full", "shape of each Gaussian", choices=["full", "diag", "tied", "spherical"])
    restarts: int = option(5, "fits from different starts; the likeliest is kept", low=1)
    standardise: bool = option(False, "scale every latent to unit variance first")
    pca: int = option(0, "reduce the latents to this number of principal components first; 0 does not", low=0)
