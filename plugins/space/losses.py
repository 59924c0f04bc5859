"""What is SPACE's own in its loss: deviations, the likelihood of a pixel, and priors that change evenly."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
"""Added to mixture weights inside logarithms; the published value."""
STD_EPS = 1e-15
"""Added to every standard deviation of the foreground. Published for scale alone, where it keeps the KL finite."""


def deviation(raw: Tensor) -> Tensor:
    """A standard deviation from a network's output, same shape: its softplus, which is published."""
    return F.softplus(raw) + STD_EPS


def normal_log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x; mean, std^2), element by element; shapes that broadcast."""
    return -0.5 * ((x - mean) / std).square() - math.log(std * math.sqrt(2 * math.pi))


def mixture_log_prob(log_probs: Tensor, weights: Tensor) -> Tensor:
    """log sum_k weights_k exp(log_probs_k) over axis 1.

    log_probs: [n, K, channels, height, width]; weights: [n, K, 1, height, width], of sum 1 over K.
    """
    return (log_probs + (weights + EPS).log()).logsumexp(1)


def linear(when: float, first: float, last: float, start: float, end: float) -> float:
    """The value at `when` of a number that is `start` until `first`, then changes evenly to `end` at `last`."""
    if when <= first:
        return start
    return start + (end - start) * min((when - first) / (last - first), 1.0) if last > first else end
