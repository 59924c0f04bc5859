"""A Gaussian mixture on what-latents, fitted by scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from objbench.clusterer import Clusterer, Cut, Objects, ObjectShape
from objbench.errors import UsageError
from objbench_plugins.gmm.config import GmmConfig

SMALLEST = 1e-12
"""Added to standard deviations: a latent may be the same for all objects."""


class Mixture(Clusterer):
    """Each object belongs to its likeliest Gaussian. Everything is in cluster 0 where none could be fitted."""

    Config = GmmConfig
    config: GmmConfig
    needs_what = True

    @classmethod
    def cut(cls, config: GmmConfig) -> Cut | None:
        """It looks at no glimpse."""
        return None

    def __init__(self, config: GmmConfig, shape: ObjectShape) -> None:
        """UsageError when there are more principal components than values in a what-latent."""
        super().__init__(config, shape)
        if config.pca > shape.what:
            raise UsageError(f"gmm.pca={config.pca} is more than the {shape.what} values of a what-latent")
        k, values = config.clusters, config.pca or shape.what
        factors = {
            "full": (k, values, values),
            "tied": (values, values),
            "diag": (k, values),
            "spherical": (k,),
        }
        axes = (shape.what, values) if config.pca else (0, 0)
        buffers = {"centre": (shape.what,), "scale": (shape.what,), "axes": axes}
        buffers |= {"weights": (k,), "means": (k, values), "factors": factors[config.covariance]}
        for name, size in buffers.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))
        self.warning = ""

    def fit(self, objects: Objects) -> None:
        """The likeliest of `restarts` fits by EM; the starts come from numpy's global generator."""
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        config = self.config
        if len(objects) < max(config.clusters, config.pca, 2):
            self.warning = (
                f"all detections are in cluster 0: {len(objects)} to cluster, and gmm.clusters={config.clusters}, "
                f"gmm.pca={config.pca}"
            )
            return
        x = as_double(objects)
        centre, scale = x.mean(0), np.ones(x.shape[1])
        if config.standardise:
            scale = x.std(0) + SMALLEST
        x = (x - centre) / scale
        found = {"centre": centre, "scale": scale}
        if config.pca:
            found["axes"] = PCA(config.pca).fit(x).components_.T
            x = x @ found["axes"]
        model = GaussianMixture(config.clusters, covariance_type=config.covariance, n_init=config.restarts)
        try:
            model.fit(x)
        except ValueError as error:
            reason = " ".join(str(error).split())
            if "covariance" not in reason:
                raise
            # A Gaussian collapsed: it holds fewer objects than latents, or they are all alike.
            self.warning = f"all detections are in cluster 0: try gmm.covariance=diag ({reason})"
            return
        found |= {"weights": model.weights_, "means": model.means_, "factors": model.precisions_cholesky_}
        for name, values in found.items():
            self.get_buffer(name).copy_(torch.from_numpy(np.ascontiguousarray(values)))
        self.get_buffer("fitted").fill_(True)

    def assign(self, objects: Objects) -> Tensor:
        """The likeliest Gaussian of each object."""
        from sklearn.mixture import GaussianMixture

        if not self.get_buffer("fitted") or not len(objects):
            return torch.zeros(len(objects), dtype=torch.int64)
        arrays = {name: buffer.numpy() for name, buffer in self.named_buffers()}
        x = (as_double(objects) - arrays["centre"]) / arrays["scale"]
        if self.config.pca:
            x = x @ arrays["axes"]
        model = GaussianMixture(self.config.clusters, covariance_type=self.config.covariance)
        model.weights_, model.means_ = arrays["weights"], arrays["means"]
        model.precisions_cholesky_, model.covariances_ = arrays["factors"], arrays["factors"]
        return torch.from_numpy(model.predict(x)).long()

    def warnings(self) -> list[str]:
        """Why no mixture was fitted."""
        return [self.warning] if self.warning else []


def as_double(objects: Objects) -> np.ndarray:
    """The what-latents [m, A] as a numpy array of float64."""
    assert objects.what is not None, "needs_what: there are some"
    values: np.ndarray = objects.what.double().numpy()
    return values
