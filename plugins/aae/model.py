"""AAE (Makhzani et al. 2015, section 6): an autoencoder whose code is a cluster and a style, both held to a prior."""

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
class AaeConfig(GlimpseConfig):
    """Defaults are the paper's, and where it says nothing those of the implementation that was read."""

    glimpse: int = option(28, "side in pixels of a glimpse", low=4, high=128)
    width: int = option(1000, "units of each hidden layer", low=1)
    style: int = option(10, "values of the style", low=1)
    noise: float = option(0.3, "standard deviation of the noise on what discriminators see", low=0)
    batch_size: int = option(100, "objects a step", low=2)
    steps: int = option(900_000, "steps: 1,500 epochs of 60,000 digits", low=1)
    lr: float = option(1e-4, "Adam's learning rate", above=0)
    momentum: float = option(0.1, "Adam's first beta", low=0, high=0.999)


SETTINGS: Settings = {
    ("small", "*"): {"width": 500, "steps": 12_000, "lr": 1e-3, "glimpse": 16},
    ("demo", "*"): {"width": 500, "steps": 3_000, "lr": 1e-3, "glimpse": 16},
    ("*", "mnist"): {"margin": -0.15},
}


def layers(before: int, width: int, after: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(before, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, after)
    )


def real(logits: Tensor) -> Tensor:
    """Cross-entropy of a discriminator's logits to "from the prior"."""
    return F.softplus(-logits).mean()


def made(logits: Tensor) -> Tensor:
    """Cross-entropy to "from the encoder"."""
    return F.softplus(logits).mean()


class Aae(GlimpseClusterer):
    """The encoder's most probable category is the cluster."""

    Config = AaeConfig
    config: AaeConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: AaeConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        values, c = shape.channels * shape.size**2, config
        self.encoder = layers(values, c.width, c.clusters + c.style)
        self.decoder = layers(c.clusters + c.style, c.width, values)
        self.judge_cluster = layers(c.clusters, c.width, 1)
        self.judge_style = layers(c.style, c.width, 1)

    def encode(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """q(y|x) [n, clusters] and the style [n, style]."""
        code = self.encoder(flat)
        return code[:, : self.config.clusters].softmax(1), code[:, self.config.clusters :]

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """Each step has three phases (section 6): reconstruction, discriminators, encoder against them."""
        c, flat = self.config, glimpses.flatten(1)

        def adam(*modules: nn.Module) -> torch.optim.Adam:
            parameters = [p for module in modules for p in module.parameters()]
            return torch.optim.Adam(parameters, lr=c.lr, betas=(c.momentum, 0.999))

        whole = adam(self.encoder, self.decoder)
        judges, deceiver = adam(self.judge_cluster, self.judge_style), adam(self.encoder)

        def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
            self.zero_grad()
            loss.backward()
            optimizer.step()

        def noisy(code: Tensor) -> Tensor:
            return code + c.noise * torch.randn_like(code)

        self.train()
        for part in batches(len(flat), c.batch_size, c.steps):
            x = flat[part.to(flat.device)]
            y, z = self.encode(x)
            step(whole, F.mse_loss(self.decoder(torch.cat([y, z], 1)), x))  # reconstruction

            y, z = (code.detach() for code in self.encode(x))
            drawn = torch.randint(c.clusters, (len(x),), device=x.device)
            prior_y = F.one_hot(drawn, c.clusters).to(x)  # Cat(1 / clusters)
            prior_z = torch.randn_like(z)  # N(0, 1)
            tell_y = real(self.judge_cluster(noisy(prior_y))) + made(
                self.judge_cluster(noisy(y))
            )  # equation 1, max over D
            tell_z = real(self.judge_style(noisy(prior_z))) + made(self.judge_style(noisy(z)))
            step(judges, tell_y + tell_z)

            y, z = self.encode(x)
            step(
                deceiver, real(self.judge_cluster(noisy(y))) + real(self.judge_style(noisy(z)))
            )  # equation 1, min over G

    def scores(self, glimpses: Tensor) -> Tensor:
        """q(y|x)."""
        return self.encode(glimpses.flatten(1))[0]
