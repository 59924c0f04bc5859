"""What is SPAIR's own in its loss: the cost of a pixel, and the prior on the number of objects and of presence."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def floored_cross_entropy(mean: Tensor, target: Tensor, floor: float) -> Tensor:
    """-log p(target) of pixels under Bernoulli(mean), with `floor` added inside both logarithms; same shapes.

    A bright pixel that no box covers has mean 0, and costs -log(floor). torch's own function would take 100 there: such
    pixels give boxes no gradient, and their cost would hide all other changes of the loss. NaN where the mean is NaN.
    """
    return -(target * (mean + floor).log() + (1 - target) * ((1 - mean) + floor).log())


def count_log_odds(step: int, start: float, floor: float, decay_steps: float) -> float:
    """Log of the geometric prior's odds: from `start`, a tenth every `decay_steps`, to `floor`."""
    return math.log((start - floor) * 0.1 ** (step / decay_steps) + floor)


def log_one_more(log_odds: float) -> float:
    """log p of p = sigmoid(log_odds): what one object more adds to the log of the geometric prior, p^C."""
    return -math.log1p(math.exp(-log_odds))


@torch.no_grad()
def count_prior(present: Tensor, log_p: Tensor | float) -> Tensor:
    """p(cell i holds an object | what cells 0..i-1 hold), [n, cells] float64 (SPAIR, appendix).

    The count C of an image's objects has a prior in proportion to p^C, up to C = cells; given C, all sets of C cells
    are equally likely. So after k objects in i cells the posterior of C is, exactly,

        p(C | k, i) ~ p^C binom(cells - i, C - k) / binom(cells, C),

    and the next cell holds one with a probability of the mean of (C - k) / (cells - i): no loop over cells.

    present: [n, cells] of 0 and 1, in the order of the cells; log_p: log p.
    """
    cells = present.shape[1]
    place = torch.arange(cells, device=present.device)[:, None]  # i
    count = torch.arange(cells + 1, device=present.device)  # C
    ones = present.long()
    seen = (ones.cumsum(1) - ones)[:, :, None]  # k: [n, cells, 1]
    log_factorial = torch.lgamma(count.double() + 1)
    left, coming = cells - place, count - seen  # cells yet to see, and objects in them: [n, cells, cells + 1]
    possible = (coming >= 0) & (coming <= left)
    coming = coming.clamp(min=0).minimum(left)
    log_ways = log_factorial[left] - log_factorial[coming] - log_factorial[left - coming]
    log_all = log_factorial[cells] - log_factorial - log_factorial.flip(0)
    log_chance = count.double() * log_p + log_ways - log_all
    posterior = log_chance.masked_fill(~possible, -math.inf).softmax(-1)
    return (posterior * coming).sum(-1) / left[:, 0]
