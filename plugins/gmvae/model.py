"""GMVAE (Dilokthanakul et al. 2016): w -> a mixture of Gaussians in x -> the glimpse y; z is the component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objbench.clusterer import ObjectShape
from objbench.options import Settings, option, settings_for
from objbench_plugins.glimpses.base import GlimpseClusterer, GlimpseConfig
from objbench_plugins.glimpses.views import batches


@dataclass(frozen=True)
class GmvaeConfig(GlimpseConfig):
    """Defaults are those of the authors' code; K, the number of components, is `clusters`."""

    glimpse: int = option(28, "side in pixels of a glimpse", low=4, high=128)
    width: int = option(500, "units of each hidden layer", low=1)
    x: int = option(200, "dimension of x, the mixture's space", low=1)
    w: int = option(150, "dimension of w, from which the mixture's components are made", low=1)
    samples: int = option(1, "Monte Carlo samples M of x and w", low=1)
    batch_size: int = option(50, "objects a step", low=2)
    steps: int = option(120_000, "steps: 100 epochs of 60,000 digits", low=1)
    lr: float = option(1e-4, "Adam's learning rate", above=0)
    free_bits: float = option(
        0.0, "lowest value, in nats, of the z term that is minimised (section 3.2.2)", low=0
    )


SETTINGS: Settings = {
    ("small", "*"): {
        "width": 300,
        "x": 64,
        "w": 32,
        "steps": 8_000,
        "lr": 1e-3,
        "glimpse": 16,
        "batch_size": 100,
    },
    ("demo", "*"): {
        "width": 300,
        "x": 64,
        "w": 32,
        "steps": 3_000,
        "lr": 1e-3,
        "glimpse": 16,
        "batch_size": 100,
    },
    ("*", "mnist"): {"margin": -0.15},
}

Gaussian = tuple[Tensor, Tensor]
"""Mean and logarithm of the variance, one a dimension."""


def draw(gaussian: Gaussian) -> Tensor:
    """A sample, with gradient (the reparametrisation trick)."""
    mean, log_variance = gaussian
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


def log_density(x: Tensor, gaussian: Gaussian) -> Tensor:
    """Of x [..., d], summed over d, without the constant."""
    mean, log_variance = gaussian
    return -0.5 * (log_variance + (x - mean) ** 2 / log_variance.exp()).sum(-1)


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), summed over dimensions."""
    (mean, log_variance), (other, log_other) = q, p
    distance = (mean - other) ** 2
    return 0.5 * (log_other - log_variance + (log_variance.exp() + distance) / log_other.exp() - 1).sum(-1)


class Gmvae(GlimpseClusterer):
    """The most probable component of p(z | x, w), at the means of x and w, is the cluster."""

    Config = GmvaeConfig
    config: GmvaeConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: GmvaeConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        values, c = shape.channels * shape.size**2, config
        self.trunk = nn.Sequential(
            nn.Linear(values, c.width), nn.ReLU(), nn.Linear(c.width, c.width), nn.ReLU()
        )
        self.q_x, self.q_w = nn.Linear(c.width, 2 * c.x), nn.Linear(c.width, 2 * c.w)
        self.components = nn.Sequential(
            nn.Linear(c.w, c.width), nn.Tanh(), nn.Linear(c.width, 2 * c.clusters * c.x)
        )
        self.decoder = nn.Sequential(
            nn.Linear(c.x, c.width), nn.ReLU(), nn.Linear(c.width, c.width), nn.ReLU(),
            nn.Linear(c.width, values),
        )  # fmt: skip

    def encode(self, flat: Tensor) -> tuple[Gaussian, Gaussian]:
        """q(x | y) and q(w | y)."""
        h = self.trunk(flat)
        return gaussian(self.q_x(h)), gaussian(self.q_w(h))

    def mixture(self, w: Tensor) -> Gaussian:
        """p(x | w, z) of every component z: two of [n, clusters, x]."""
        mean, log_variance = gaussian(self.components(w))
        shape = (len(w), self.config.clusters, self.config.x)
        return mean.reshape(shape), log_variance.reshape(shape)

    def posterior(self, x: Tensor, mixture: Gaussian) -> Tensor:
        """log p(z | x, w) [n, clusters], with equal weights (equation 4)."""
        return log_density(x[:, None], mixture).log_softmax(1)

    def loss(self, flat: Tensor) -> Tensor:
        """Minus the evidence bound of a batch [n, values] (equation 5), from one sample of x and w."""
        q_x, q_w = self.encode(flat)
        x, w = draw(q_x), draw(q_w)
        mixture = self.mixture(w)
        log_z = self.posterior(x, mixture)
        z = log_z.exp()
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(x), flat, reduction="none").sum(1)
        conditional = (z * kl((q_x[0][:, None], q_x[1][:, None]), mixture)).sum(
            1
        )  # the conditional prior term
        standard = torch.zeros_like(w)
        w_prior = kl(q_w, (standard, standard))  # the w-prior term
        uniform = torch.log(torch.tensor(float(self.config.clusters)))
        z_prior = (z * (log_z + uniform)).sum(1)  # the z-prior term
        held = z_prior.mean().clamp(min=self.config.free_bits)  # section 3.2.2
        return (reconstruction + conditional + w_prior).mean() + held

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """Adam on the bound; with `samples` M, the mean of M draws."""
        c, flat = self.config, glimpses.flatten(1)
        adam = torch.optim.Adam(self.parameters(), lr=c.lr)
        self.train()
        for part in batches(len(flat), c.batch_size, c.steps):
            batch = flat[part.to(flat.device)].repeat(c.samples, 1)
            loss = self.loss(batch)
            adam.zero_grad()
            loss.backward()
            adam.step()

    def scores(self, glimpses: Tensor) -> Tensor:
        """log p(z | x, w) at the means of q."""
        q_x, q_w = self.encode(glimpses.flatten(1))
        return self.posterior(q_x[0], self.mixture(q_w[0]))


def gaussian(values: Tensor) -> Gaussian:
    """The first half is the mean, the second the logarithm of the variance, kept within -10..10."""
    mean, log_variance = values.chunk(2, -1)
    return mean, log_variance.clamp(-10, 10)
