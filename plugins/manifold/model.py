"""N2D (McConville et al. 2019) on raw glimpses: a neighbour embedding, and a Gaussian mixture on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objbench.clusterer import ObjectShape
from objbench.options import option
from objbench_plugins.glimpses.base import GlimpseClusterer, GlimpseConfig, sample
from objbench_plugins.manifold.embedding import cluster


@dataclass(frozen=True)
class ManifoldConfig(GlimpseConfig):
    """Options of the embedding and its mixture."""

    most: int = option(12_000, "objects used for fitting, drawn at random where there are more", low=1)
    neighbours: int = option(10, "neighbours of the embedding", low=2)
    dimensions: int = option(10, "dimensions of the embedding", low=1)
    embeddings: int = option(3, "embeddings, whose clusterings are joined", low=1)
    starts: int = option(5, "mixtures on each embedding, of which the likeliest is taken", low=1)
    nearest: int = option(5, "nearest training objects that decide on a new one", low=1)


class Manifold(GlimpseClusterer):
    """A new object takes the cluster of its nearest training objects, by the distance of pixels."""

    Config = ManifoldConfig
    config: ManifoldConfig
    continuous = False  # one neighbour more or less changes shares

    def __init__(self, config: ManifoldConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        values = shape.channels * shape.size**2
        self.register_buffer("known", torch.zeros(config.most, values, dtype=torch.uint8))
        self.register_buffer("shares", torch.zeros(config.most, config.clusters))
        self.register_buffer("count", torch.tensor(0))

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """Clusters the training objects, and keeps them, with 256 shades."""
        c = self.config
        flat = glimpses[sample(len(glimpses), c.most).to(glimpses.device)].flatten(1)
        found = cluster(
            flat.cpu().numpy(), c.clusters, neighbours=c.neighbours, dimensions=c.dimensions,
            starts=c.starts, embeddings=c.embeddings,
        )  # fmt: skip
        self.get_buffer("known")[: len(flat)] = (flat * 255).round().to(torch.uint8)
        self.get_buffer("shares")[: len(flat)] = torch.from_numpy(found.shares).to(flat)
        self.get_buffer("count").fill_(len(flat))

    def scores(self, glimpses: Tensor) -> Tensor:
        """The mean shares of the nearest training objects; where they are equal, the nearest one's decide."""
        count = int(self.get_buffer("count"))
        known = self.get_buffer("known")[:count].to(glimpses) / 255
        x = glimpses.flatten(1)
        squared = (known**2).sum(1) - 2 * x @ known.T  # less each object's own square, which orders nothing
        near = squared.topk(min(self.config.nearest, count), largest=False).indices
        shares = self.get_buffer("shares")[near].to(glimpses)  # [m, nearest, clusters]
        first = F.one_hot(shares[:, 0].argmax(1), shares.shape[2])
        return shares.mean(1) + 1e-9 * first
