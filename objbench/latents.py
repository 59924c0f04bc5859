"""What the ELBO of every detector with latents needs: samples that pass gradients, and KL divergences.

All are element by element; noise comes from torch's global generator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal_kl(
    mean: Tensor, std: Tensor, prior_mean: Tensor | float = 0.0, prior_std: Tensor | float = 1.0
) -> Tensor:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)); all positive deviations, shapes that broadcast."""
    ratio = (std / prior_std).square()
    return 0.5 * (ratio + ((mean - prior_mean) / prior_std).square() - 1 - ratio.log())


def categorical_kl(logits: Tensor) -> Tensor:
    """KL(Categorical(logits) || uniform) over the last axis."""
    log_chance = logits.log_softmax(-1)
    return (log_chance.exp() * log_chance).sum(-1) + math.log(logits.shape[-1])


def relaxed_bernoulli(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """A sample of the relaxed Bernoulli (Maddison et al. 2017), in 0..1."""
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid((logits + torch.logit(uniform)) / temperature)


def gumbel_softmax(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """A soft sample of a categorical (Jang et al. 2016); [..., C] on the simplex."""
    gumbel = -torch.empty_like(logits).exponential_().clamp(min=1e-20).log()
    return ((logits + gumbel) / temperature).softmax(-1)
