"""Clusters for a detector that has none of its own: a Gaussian mixture on its what-latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from objbench.cells.identity import MIXTURE, OWN, Cell, MixtureConfig
from objbench.detector import PRESENT, Detections
from objbench.errors import UsageError
from objbench.options import build
from objbench.score.arrays import load_tensors

if TYPE_CHECKING:
    from torch import Tensor


class Mixture:
    """A mixture fitted on what-latents [n, A]: all that it knows is in `tensors`."""

    def __init__(self, config: MixtureConfig, tensors: Mapping[str, Tensor]) -> None:
        """tensors: as saved; empty puts everything into cluster 0."""
        self.config = config
        self.tensors = dict(tensors)

    @staticmethod
    def fit(config: MixtureConfig, what: Tensor | None) -> tuple[Mixture, str]:
        """Fits on [n, A] latents of detections that the detector stands by; also a warning, or "".

        A detector that found too little to tell apart is no error: everything is then in cluster 0, and the
        warning says so. ValueError when the detector gives no latents, UsageError when `pca` is above A.
        """
        import numpy as np
        import torch
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        if what is None:
            raise ValueError("the detector gives neither clusters nor what-latents to cluster by")
        if config.pca > what.shape[1]:
            raise UsageError(f"gmm.pca={config.pca} is more than the {what.shape[1]} values of a what-latent")
        if len(what) < max(config.components, config.pca):
            return Mixture(config, {}), (
                f"all detections are in cluster 0: {len(what)} to cluster, and gmm.components="
                f"{config.components}, gmm.pca={config.pca}"
            )
        x = what.double().numpy()
        centre, scale = x.mean(0), np.ones(x.shape[1])
        if config.standardise:
            scale = x.std(0) + 1e-12
        axes = np.eye(x.shape[1])
        if config.pca:
            axes = PCA(config.pca, random_state=config.seed).fit((x - centre) / scale).components_.T.copy()
        model = GaussianMixture(
            config.components,
            covariance_type=config.covariance,
            n_init=config.restarts,
            random_state=config.seed,
        )
        try:
            model.fit((x - centre) / scale @ axes)
        except ValueError as error:
            reason = " ".join(str(error).split())
            if "covariance" not in reason:
                raise
            # A Gaussian collapsed: it holds fewer objects than latents, or they are all alike.
            return Mixture(config, {}), f"all detections are in cluster 0: try gmm.covariance=diag ({reason})"
        fitted = {name: getattr(model, name) for name in _FITTED}
        arrays = {"centre": centre, "scale": scale, "axes": axes} | fitted
        return Mixture(config, {name: torch.from_numpy(array) for name, array in arrays.items()}), ""

    def predict(self, what: Tensor) -> Tensor:
        """The likeliest component of each of [n, A] latents: [n] int64."""
        import torch
        from sklearn.mixture import GaussianMixture

        if not self.tensors or not len(what):
            return torch.zeros(len(what), dtype=torch.int64)
        arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        model = GaussianMixture(self.config.components, covariance_type=self.config.covariance)
        for name in _FITTED:
            setattr(model, name, arrays[name])
        x = (what.double().numpy() - arrays["centre"]) / arrays["scale"] @ arrays["axes"]
        return torch.from_numpy(model.predict(x)).long()

    def apply(self, detections: Detections) -> Detections:
        """The same detections, each with its cluster."""
        assert detections.what is not None, "a mixture is fitted on latents, so there are some"
        return replace(detections, clusters=self.predict(detections.what))


_FITTED = ("weights_", "means_", "covariances_", "precisions_cholesky_")


def cluster(
    config: MixtureConfig, seen: Detections, found: Detections
) -> tuple[Detections, dict[str, Tensor], str]:
    """Clusters detections that have no clusters: `found`, by a mixture fitted on what was `seen` in training scenes.

    Returns `found` with its clusters, the tensors of the mixture, and a warning or "".
    """
    mixture, warning = Mixture.fit(config, present_what(seen))
    return mixture.apply(found), mixture.tensors, warning


def load_mixture(folder: Path, cell: Cell) -> Mixture | None:
    """The mixture of the finished cell in `folder`; None when its detector clusters by itself."""
    if cell.clusterer["name"] == OWN:
        return None
    config = build(MixtureConfig, MIXTURE, cell.clusterer["config"])
    return Mixture(config, load_tensors(folder / "clusterer.safetensors"))


def present_what(found: Detections) -> Tensor | None:
    """The what-latents [m, A] of the detections that the detector stands by; None when it gives none."""
    return None if found.what is None else found.what[found.scores >= PRESENT]
