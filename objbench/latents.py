"""Parts of the ELBO of detectors with latents: samples with gradients, and terms of the loss.

All functions work element by element unless they say otherwise; noise comes from torch's global generator.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def positive(raw: Tensor) -> Tensor:
    """A standard deviation from a network's output, same shape: its softplus, the output clamped to -10..10."""
    return F.softplus(raw.clamp(-10, 10))


def normal_sample(mean: Tensor, std: Tensor, sample: bool = True) -> Tensor:
    """A sample of N(mean, std^2), same shape; without `sample`, the mean."""
    return mean + std * torch.randn_like(mean) if sample else mean


def normal_kl(
    mean: Tensor, std: Tensor, prior_mean: Tensor | float = 0.0, prior_std: Tensor | float = 1.0
) -> Tensor:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)); all deviations positive, shapes that broadcast."""
    ratio = (std / prior_std).square()
    return 0.5 * (ratio + ((mean - prior_mean) / prior_std).square() - 1 - ratio.log())


def bernoulli_kl(
    logit: Tensor, log_prior: Tensor | float, log_absent: Tensor | float, *, exact_tail: bool = False
) -> Tensor:
    """KL(Bernoulli(sigmoid(logit)) || Bernoulli(prior)), given log(prior) and log(1 - prior); shapes that broadcast.

    exact_tail: 1 - sigmoid(logit) is computed as sigmoid(-logit), which keeps its digits where sigmoid(logit) rounds
    to 1.
    """
    prob, log_prob = torch.sigmoid(logit), F.logsigmoid(logit)
    absent = torch.sigmoid(-logit) if exact_tail else 1 - prob
    return prob * (log_prob - log_prior) + absent * (F.logsigmoid(-logit) - log_absent)


def categorical_kl(logits: Tensor) -> Tensor:
    """KL(Categorical(logits) || uniform) over the last axis."""
    log_prob = logits.log_softmax(-1)
    return (log_prob.exp() * log_prob).sum(-1) + math.log(logits.shape[-1])


def relaxed_bernoulli(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """A sample of the relaxed Bernoulli (Maddison et al. 2017), in 0..1."""
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid((logits + torch.logit(uniform)) / temperature)


def gumbel_softmax(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """A soft sample of a categorical (Jang et al. 2016); [..., C] on the simplex."""
    gumbel = -torch.empty_like(logits).exponential_().clamp(min=1e-20).log()
    return ((logits + gumbel) / temperature).softmax(-1)


def binary_cross_entropy(mean: Tensor, target: Tensor) -> Tensor:
    """-log p(target) of pixels under Bernoulli(mean), same shapes, both in 0..1; NaN where the mean is NaN.

    torch's own function raises on a NaN, and on a GPU it stops the process. A NaN that reaches the loss is reported
    with its step and term instead.
    """
    nan = mean.isnan()
    half = mean.new_full((), 0.5)  # on the device: a captured step must not copy a number there
    loss = F.binary_cross_entropy(torch.where(nan, half, mean), target, reduction="none")
    return torch.where(nan, mean, loss)
