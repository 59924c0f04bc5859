"""What is AIR's own in its loss: the prior on counts, and the gradient of discrete presence."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def count_log_odds(step: int, start: float, end: float, steps: int) -> float:
    """Log of the geometric prior's odds of one object more: from that of `start` to that of `end`, evenly."""
    share = min(1.0, step / steps)
    return (1 - share) * math.log(start) + share * math.log(end)


def log_sigmoid(log_odds: float) -> float:
    """The log of a probability, from its log odds."""
    return min(log_odds, 0.0) - math.log1p(math.exp(-abs(log_odds)))


def downstream(recon: Tensor, here: Tensor, later: Tensor) -> Tensor:
    """What the choice of presence in a step has an effect on: [n, N].

    recon: [n] cost of the picture, of which every step has a part. here, later: [n, N] costs of a step's latents that
    depend on its own presence, and on that of steps before it alone.
    """
    ends = torch.cat([later[:, 1:], torch.zeros_like(later[:, :1])], 1)
    return recon[:, None] + (here + ends).flip(1).cumsum(1).flip(1)


def score_function(cost: Tensor, baseline: Tensor, logit: Tensor, chosen: Tensor, asked: Tensor) -> Tensor:
    """A term whose gradient is that of the expected cost of chosen presences (NVIL: Mnih and Gregor 2014, Eq. 8). [n].

    cost, baseline: [n, N]; logit: [n, N] of presence; chosen: [n, N] of 0 and 1; asked: [n, N], 1 where a choice was
    made: in all steps up to the first that chose 0. Its value means nothing.
    """
    log_prob = -F.binary_cross_entropy_with_logits(logit, chosen, reduction="none")
    return (asked * (cost - baseline).detach() * log_prob).sum(1)
