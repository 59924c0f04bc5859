"""The terms of SPACE's loss, element by element."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-5
"""Added to mixture weights inside logarithms, as published."""


def normal_log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x; mean, std^2)."""
    return -0.5 * ((x - mean) / std).square() - math.log(std * math.sqrt(2 * math.pi))


def bernoulli_kl(logits: Tensor, log_prior: Tensor | float, log_absent: Tensor | float) -> Tensor:
    """KL(Bernoulli(sigmoid(logits)) || Bernoulli(prior)), given log(prior) and log(1 - prior)."""
    chance = torch.sigmoid(logits)
    log_yes, log_no = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return chance * (log_yes - log_prior) + (1 - chance) * (log_no - log_absent)


def mixture_log_prob(log_probs: Tensor, weights: Tensor) -> Tensor:
    """log sum_k weights_k exp(log_probs_k) over axis 1.

    log_probs: [n, K, channels, height, width]; weights: [n, K, 1, height, width], of sum 1 over K.
    """
    return (log_probs + (weights + EPS).log()).logsumexp(1)


def drawn(mean: Tensor, std: Tensor, sample: bool) -> Tensor:
    """A sample of a Gaussian, or its mean."""
    return mean + std * torch.randn_like(mean) if sample else mean


def annealed(when: float, first: float, last: float, start: float, end: float) -> float:
    """From `start` until `first`, linearly to `end` at `last`."""
    if when <= first:
        return start
    return start + (end - start) * min((when - first) / (last - first), 1.0) if last > first else end
