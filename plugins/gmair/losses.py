"""What is GMAIR's own in its loss: the presence term and the prior of presence (Eq. 6, Table 1)."""

from __future__ import annotations

import math

from torch import Tensor

EPS = 1e-9
"""Added inside the logarithms of the presence KL, as published. At the first step the prior is 1 and an absent cell
costs log(1 / EPS), about 20.7 nats; this keeps cells present at first."""


def log_presence_prior(step: int, decay: float, floor: float) -> dict[str, float]:
    """Logarithms of the prior of presence, exp(-decay step) but at least `floor`, and of that of absence (+ EPS)."""
    log_prior = max(-decay * step, math.log(floor))
    return {"log_prior": log_prior, "log_absent": math.log(1 - math.exp(log_prior) + EPS)}


def presence_kl(prob: Tensor, log_prior: Tensor | float, log_absent: Tensor | float) -> Tensor:
    """KL(Bernoulli(prob) || Bernoulli(prior)) (Eq. 6), element by element, given log(prior) and log(1 - prior)."""
    present = prob * ((prob + EPS).log() - log_prior)
    absent = (1 - prob) * ((1 - prob + EPS).log() - log_absent)
    return present + absent
