"""The background of SPACE: K components, each with a mask and a picture, as in GENESIS.

    p(background) = product over k of p(mask_k | mask_<k) p(component_k | mask_k)
    q(background | x) = product over k of q(mask_k | x, mask_<k) q(component_k | x, mask_k)

The two distributions of mask_k are LSTMs over the components.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objbench.latents import normal_kl, normal_sample
from objbench.scenes import SceneShape
from objbench_plugins.space import networks
from objbench_plugins.space.config import SpaceConfig


class Scene(NamedTuple):
    """A background as the model sees it."""

    masks: Tensor  # [n, K, 1, height, width], of sum 1 over K
    pictures: Tensor  # [n, K, channels, height, width] in 0..1
    mask_kl: Tensor  # [n]
    component_kl: Tensor  # [n]

    @property
    def image(self) -> Tensor:
        """The background alone, [n, channels, height, width] in 0..1."""
        return (self.masks * self.pictures).sum(1)


class Background(nn.Module):
    """A model of images as K masked pictures."""

    def __init__(self, config: SpaceConfig, shape: SceneShape) -> None:
        super().__init__()
        self.config = config
        c, w, size = config, config.background_width, shape[1:]
        small, lone, channels = c.background_nets == "mlp", c.components == 1, shape.channels
        self.image_encoder: nn.Module
        self.component_encoder: nn.Module
        self.component_decoder: nn.Module
        if small:
            self.image_encoder = networks.coarse_encoder(channels, size, w, w)
            self.component_encoder = networks.coarse_encoder(channels + 1, size, w, 2 * c.component_dim)
            self.component_decoder = networks.coarse_decoder(c.component_dim, channels, size, w)
        else:
            self.image_encoder = networks.scene_encoder(channels, size, (w, w, w, w), w)
            self.component_encoder = networks.scene_encoder(
                channels + 1, size, (w // 2, w // 2, w, w), 2 * c.component_dim
            )
            if lone:
                self.component_decoder = networks.picture_decoder(
                    c.component_dim, channels, size, w, (4, 2, 4)
                )
            else:
                self.component_decoder = networks.BroadcastDecoder(c.component_dim, channels, size, w // 2)
        self.mask_decoder: nn.Module | None = None  # the last mask takes what is left
        if not lone:
            self.mask_decoder = (
                networks.coarse_decoder(c.mask_dim, 1, size, w)
                if small
                else networks.picture_decoder(c.mask_dim, 1, size, w, (2, 4, 4))
            )
        self.mask_posterior = MaskChain(c.mask_dim + w, w, c.mask_dim)
        self.mask_prior = MaskChain(c.mask_dim, w, c.mask_dim)
        for parameter in (*self.mask_prior.cell.parameters(), self.mask_prior.c):
            parameter.requires_grad_(not lone)  # used only from the second mask on
        self.first_mask = nn.Parameter(torch.zeros(c.mask_dim))  # what the first mask depends on
        self.component_prior = networks.mlp(c.mask_dim, w, 2 * c.component_dim)

    def forward(self, images: Tensor, sample: bool) -> Scene:
        """A sample of q(background | x) of images [n, channels, height, width]; without `sample`, its mode."""
        n, k, precision = len(images), self.config.components, self.config.precision
        features = F.elu(networks.run(self.image_encoder, images, precision))  # [n, width]

        # mask_k ~ q(mask_k | x, mask_<k), and KL(q(mask_k | x, mask_<k) || p(mask_k | mask_<k)): [n, mask_dim], [n]
        mask = self.first_mask.expand(n, -1)
        state, prior_state = self.mask_posterior.start(n), self.mask_prior.start(n)
        latents, mask_kl = [], images.new_zeros(n)
        for _ in range(k):
            mean, std, state = self.mask_posterior(torch.cat([mask, features], 1), state)
            if latents:
                prior_state = self.mask_prior.follow(mask, prior_state)
            mask_kl = mask_kl + normal_kl(mean, std, *self.mask_prior.predict(prior_state)).sum(1)
            mask = normal_sample(mean, std, sample)
            latents.append(mask)
        latent = torch.stack(latents, 1)  # [n, K, mask_dim]

        # component_k ~ q(component_k | x, mask_k), and KL(q(component_k | x, mask_k) || p(component_k | mask_k))
        masks = self.masks(latent, images.shape[-2:])  # [n, K, 1, height, width]
        seen = torch.cat([(masks + 1e-5).log(), images[:, None].expand(-1, k, -1, -1, -1)], 2)
        mean, std = positive_half(networks.run(self.component_encoder, seen.flatten(0, 1), precision))
        prior_mean, prior_std = positive_half(self.component_prior(latent.flatten(0, 1)))
        component_kl = normal_kl(mean, std, prior_mean, prior_std).unflatten(0, (n, k)).sum((1, 2))
        component = normal_sample(mean, std, sample)  # [n K, component_dim]
        pictures = torch.sigmoid(networks.run(self.component_decoder, component, precision))
        return Scene(masks, pictures.unflatten(0, (n, k)), mask_kl, component_kl)

    def masks(self, latent: Tensor, size: torch.Size) -> Tensor:
        """Masks [n, K, 1, height, width] of latents [n, K, mask_dim]: each takes a share of what is left."""
        n, k, _ = latent.shape
        left = latent.new_zeros(n, 1, *size)  # log of what is left
        if self.mask_decoder is None:
            return left[:, None].exp()
        share = networks.run(self.mask_decoder, latent[:, :-1].flatten(0, 1), self.config.precision)
        masks = []
        for logits in share.unflatten(0, (n, k - 1)).unbind(1):
            masks.append((left + F.logsigmoid(logits)).exp())
            left = left + F.logsigmoid(-logits)
        return torch.stack([*masks, left.exp()], 1)


class MaskChain(nn.Module):
    """A distribution over a sequence of mask latents: Gaussians read from an LSTM with a learned start."""

    def __init__(self, inputs: int, hidden: int, mask_dim: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(inputs, hidden)
        self.read = nn.Linear(hidden, 2 * mask_dim)
        self.h, self.c = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(hidden))

    def start(self, n: int) -> tuple[Tensor, Tensor]:
        """The state before the first mask."""
        return self.h.expand(n, -1), self.c.expand(n, -1)

    def follow(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The state after one more input [n, inputs]."""
        h, c = self.cell(inputs, state)
        return h, c

    def predict(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the mask latent, [n, mask_dim] each."""
        return positive_half(self.read(state[0]))

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Follows, then predicts."""
        state = self.follow(inputs, state)
        return *self.predict(state), state


def positive_half(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation from a network's output, halves of its last axis."""
    mean, std = raw.chunk(2, -1)
    return mean, F.softplus(std) + 1e-4
