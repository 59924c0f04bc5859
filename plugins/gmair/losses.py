"""The terms of the ELBO (Eqs. 4 to 10), element by element; tested against torch.distributions and sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-9
"""Added inside logarithms, as published: at the first step, where the prior of presence is 1, an absent cell costs
log(1 / EPS), about 20.7 nats, which keeps cells alive."""


def binary_cross_entropy(painted: Tensor, images: Tensor) -> Tensor:
    """-log p(x | z) of a Bernoulli pixel; both in 0..1, same shape."""
    return torch.nn.functional.binary_cross_entropy(painted, images, reduction="none")


def bernoulli_kl(chance: Tensor, prior: float) -> Tensor:
    """KL(Bernoulli(chance) || Bernoulli(prior)) (Eq. 6)."""
    yes = chance * ((chance + EPS).log() - math.log(prior + EPS))
    no = (1 - chance) * ((1 - chance + EPS).log() - math.log(1 - prior + EPS))
    return yes + no


def normal_kl(
    mean: Tensor, std: Tensor, prior_mean: Tensor | float = 0.0, prior_std: Tensor | float = 1.0
) -> Tensor:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)) (Eqs. 7, 8, 10)."""
    prior_std = torch.as_tensor(prior_std)
    ratio = (std / prior_std).square()
    return 0.5 * (ratio + ((mean - prior_mean) / prior_std).square() - 1 - ratio.log())


def categorical_kl(logits: Tensor) -> Tensor:
    """KL(Categorical(logits) || uniform) over the last axis (Eq. 9)."""
    log_chance = logits.log_softmax(-1)
    return (log_chance.exp() * log_chance).sum(-1) + math.log(logits.shape[-1])
