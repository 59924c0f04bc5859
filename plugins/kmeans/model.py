"""K-means on raw glimpses, by scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from objbench.clusterer import ObjectShape
from objbench.options import option
from objbench_plugins.glimpses.base import GlimpseClusterer, GlimpseConfig, fresh_seed


@dataclass(frozen=True)
class KMeansConfig(GlimpseConfig):
    """Options of k-means."""

    starts: int = option(10, "starts, of which the one of smallest squared distances is taken", low=1)


class KMeans(GlimpseClusterer):
    """An object belongs to the nearest centre."""

    Config = KMeansConfig
    config: KMeansConfig

    def __init__(self, config: KMeansConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("centres", torch.zeros(config.clusters, shape.channels * shape.size**2))

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """The centres."""
        from sklearn.cluster import KMeans as Lloyd

        lloyd = Lloyd(self.config.clusters, n_init=self.config.starts, random_state=fresh_seed())
        lloyd.fit(glimpses.flatten(1).cpu().numpy())
        self.get_buffer("centres").copy_(torch.from_numpy(lloyd.cluster_centers_))

    def scores(self, glimpses: Tensor) -> Tensor:
        """Minus the distances to the centres."""
        return -torch.cdist(glimpses.flatten(1), self.get_buffer("centres"))
