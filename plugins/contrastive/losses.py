"""The loss terms of the contrastive clusterer. Log-probabilities are [n, clusters], of two views of n objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(projected: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen et al. 2020, equation 1) of [2n, d]: rows i and n + i are views of the same object."""
    z = F.normalize(projected, dim=1)
    alike = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    n = len(z) // 2
    other = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(alike.masked_fill(itself, float("-inf")), other)


def to_target(one: Tensor, two: Tensor, shares: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of both views to the shares [n, clusters], `smoothing` of which is spread evenly."""
    target = (1 - smoothing) * shares + smoothing / shares.shape[1]
    return -(target * (one + two)).sum(1).mean() / 2


def between_views(one: Tensor, two: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence between the views."""
    return ((one.exp() - two.exp()) * (one - two)).sum(1).mean() / 2


def balance(one: Tensor, two: Tensor, whole: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the batch's mean assignment from the shares [clusters] of all objects."""
    mean = ((one.exp() + two.exp()) / 2).mean(0).clamp(min=1e-6)
    return (mean * (mean.log() - whole.clamp(min=1e-6).log())).sum()
