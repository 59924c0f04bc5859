"""A start of the mixture from what the encoder already knows. Not in the paper.

The paper's mixture starts as random linear layers and needs 50,000 iterations to find the classes (section 4.1), or
it falls into one cluster and stays there. But as soon as objects are located, their what-latents are already separated
by class. So at step `mixture_start` a Gaussian mixture is fitted on them, once, and becomes the prior, and the
cat-encoder is fitted to its assignment. No label is used. Training on the ELBO then goes on, now with a gradient to the
mixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from objbench.detector import PRESENT

if TYPE_CHECKING:
    from objbench_plugins.gmair.model import Gmair

OBJECTS_A_CLUSTER = 10
"""The mixture is not started from fewer objects than this for each cluster."""
RESTARTS = 3
"""Fits of the mixture from different starts; the likeliest is used."""
USED = 0.5
"""A dimension of the what-latent is in use where its posterior deviation is, on average, below this."""
FIT_STEPS = 400
"""Steps in which the cat-encoder is fitted to the mixture's assignment."""
FIT_BATCH = 256
"""Glimpses in each of these steps."""


def objects_needed(clusters: int) -> int:
    """How many objects must be present for the mixture to be started."""
    return OBJECTS_A_CLUSTER * clusters


def start_mixture(model: Gmair, images: Tensor) -> bool:
    """Sets the mixture prior and the cat-encoder from the objects that `model` finds in `images`.

    images: [n, channels, height, width]. The number of objects is kept in `model.start_objects`. Returns False, and
    changes nothing else, when there are fewer than `objects_needed`.
    """
    from sklearn.mixture import GaussianMixture

    glimpses, mean, std = present_objects(model, images)
    clusters = model.config.clusters
    model.start_objects.fill_(len(mean))
    if len(mean) < objects_needed(clusters):
        return False
    used = std.mean(0) < USED  # the rest of the latent is noise around the prior
    known = (mean[:, used] if used.any() else mean).double().cpu().numpy()
    mixture = GaussianMixture(clusters, n_init=RESTARTS, reg_covar=1e-4, random_state=0).fit(known)
    share = torch.from_numpy(mixture.predict_proba(known)).to(mean)  # [m, C]

    # A component covers whole posteriors, not only their means: its variance is the variance of the means plus the
    # mean of the variances. [C, A] each.
    weight = share / share.sum(0).clamp(min=1e-9)
    centre = weight.T @ mean
    spread = (weight.T @ (mean.square() + std.square()) - centre.square()).clamp(min=1e-4).sqrt()
    with torch.no_grad():
        model.prior_mean.weight.copy_(centre.T)
        model.prior_mean.bias.zero_()
        model.prior_std.weight.copy_(inverse_softplus(spread).T)
        model.prior_std.bias.zero_()

    optimizer = torch.optim.Adam(model.cat_encoder.parameters(), lr=1e-3)
    for _ in range(FIT_STEPS):
        pick = torch.randint(len(glimpses), (FIT_BATCH,), device=glimpses.device)
        optimizer.zero_grad()
        F.cross_entropy(model.cat_encoder(glimpses[pick]), share[pick]).backward()
        optimizer.step()
    return True


@torch.no_grad()
def present_objects(model: Gmair, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Glimpses [m, pixels], what means and deviations [m, A] of all objects with a presence of at least PRESENT.

    Objects whose latents are not finite are left out: the loss reports what is wrong with them.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    training = model.training
    model.eval()
    for batch in images.split(100):
        objects = model.infer_modes(batch)
        present = (objects.presence >= PRESENT) & objects.what_mean.isfinite().all(-1)
        glimpses = model.glimpses(batch, objects.boxes)
        found.append((glimpses[present], objects.what_mean[present], objects.what_std[present]))
    model.train(training)
    glimpses, mean, std = (torch.cat(parts) for parts in zip(*found, strict=True))
    return glimpses, mean, std


def inverse_softplus(x: Tensor) -> Tensor:
    """y such that softplus(y) = x > 0."""
    return x + torch.log(-torch.expm1(-x))
