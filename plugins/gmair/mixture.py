"""A start of the mixture from what the encoder already knows, and clusters that are held. Not in the paper.

The paper's mixture starts as random linear layers and needs 50,000 iterations to find the classes (section 4.1), or
it falls into one cluster and stays there. But as soon as objects are located, their what-latents are already separated
by class. So at step `mixture_start` a Gaussian mixture is fitted on them, once, and becomes the prior, and the
cat-encoder is fitted to its assignment. No label is used. Training on the ELBO then goes on, now with a gradient to the
mixture.

The first clusters can be those of any clusterer instead (`start_with`), fitted on the objects that are present. The
ELBO does not keep good clusters, so the cat-encoder can be held to them (`hold_clusters`): it then learns the
clusterer's assignment of the objects of each batch, and the ELBO trains everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from objbench.clusterer import Objects
from objbench.detector import NOISE, PRESENT
from objbench.spatial import crop

if TYPE_CHECKING:
    from objbench.clusterer import Clusterer
    from objbench_plugins.gmair import model as gmair
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
HELD = 32
"""Objects of a batch, those of highest presence, on which the cat-encoder is held to the clusterer."""


class Present(NamedTuple):
    """Objects with a presence of at least PRESENT."""

    glimpses: Tensor  # [m, pixels], as the encoders see them
    what_mean: Tensor  # [m, A]
    what_std: Tensor  # [m, A]
    presence: Tensor  # [m] in 0..1
    squares: Tensor  # [m, channels, size, size] as a clusterer wants them; size 0 without one


def objects_needed(clusters: int) -> int:
    """How many objects must be present for the mixture to be started."""
    return OBJECTS_A_CLUSTER * clusters


def was_started(model: Gmair) -> bool:
    """Whether there were enough objects when the mixture was to be started."""
    return int(model.start_objects) >= objects_needed(model.config.clusters)


def start_mixture(model: Gmair, images: Tensor) -> bool:
    """Sets the mixture prior and the cat-encoder from the objects that `model` finds in `images`.

    images: [n, channels, height, width]. The number of objects is kept in `model.start_objects`. Returns False, and
    changes nothing else, when there are fewer than `objects_needed`.
    """
    objects = present_objects(model, images)
    glimpses, mean, std = objects.glimpses, objects.what_mean, objects.what_std
    model.start_objects.fill_(len(mean))
    if not was_started(model):
        return False
    share = mixture_shares(model, objects) if model.clusterer is None else clusterer_shares(model, objects)

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


def mixture_shares(model: Gmair, objects: Present) -> Tensor:
    """[m, C]: the clusters of objects by a Gaussian mixture of their what-latents."""
    from sklearn.mixture import GaussianMixture

    mean, std, clusters = objects.what_mean, objects.what_std, model.config.clusters
    used = std.mean(0) < USED  # the rest of the latent is noise around the prior
    known = (mean[:, used] if used.any() else mean).double().cpu().numpy()
    mixture = GaussianMixture(clusters, n_init=RESTARTS, reg_covar=1e-4, random_state=0).fit(known)
    return torch.from_numpy(mixture.predict_proba(known)).to(mean)


def clusterer_shares(model: Gmair, objects: Present) -> Tensor:
    """[m, C]: the clusters of objects by `model.clusterer`, which is fitted on them; noise belongs to all alike."""
    clusterer = model.clusterer
    assert clusterer is not None
    given = Objects(objects.squares, objects.presence, objects.what_mean)
    threads = torch.get_num_threads()
    clusterer.requires_grad_(True).train()
    clusterer.fit(given)
    clusterer.requires_grad_(False)
    torch.set_num_threads(
        threads
    )  # libraries set it for the whole process, and a second thread can slow steps tenfold
    clusters = assigned(clusterer, given)
    share = torch.full((len(clusters), model.config.clusters), 1 / model.config.clusters).to(
        objects.what_mean
    )
    known = clusters != NOISE
    share[known] = F.one_hot(clusters[known], model.config.clusters).to(share)
    return share


@torch.no_grad()
def assigned(clusterer: Clusterer, objects: Objects) -> Tensor:
    """The clusters [m] of objects; the model's training mode is not the clusterer's."""
    return clusterer.eval().assign(objects)


def hold_loss(model: Gmair, images: Tensor, objects: gmair.Objects, prob: Tensor) -> Tensor:
    """[n]: the cross-entropy of the cat-encoder to the clusters that the clusterer gives objects of a batch.

    images: [n, channels, height, width]; prob: presence [n, k] of the chosen cells. Of the HELD objects of highest
    presence those count that are present.
    """
    assert model.clusterer is not None
    n, k = prob.shape
    best = prob.detach().flatten().topk(min(HELD, n * k)).indices
    image, slot = best // k, best % k
    with torch.no_grad():
        presence, what = prob[image, slot], objects.what_mean[image, slot]
        boxes = model.cut_boxes(objects.boxes[image, slot][None], presence[None], what[None])[0]
        glimpses = squares(model, images[image], boxes[:, None])[:, 0]
        clusters = assigned(model.clusterer, Objects(glimpses, presence, what))
        clusters = clusters.where(presence >= PRESENT, NOISE)
    each = F.cross_entropy(objects.cat_logits[image, slot], clusters, ignore_index=NOISE, reduction="none")
    return torch.zeros(n, dtype=each.dtype, device=each.device).index_add(0, image, each)


def squares(model: Gmair, images: Tensor, boxes: Tensor) -> Tensor:
    """The glimpses that the clusterer wants of boxes [n, k, 4] in images: [n, k, channels, size, size]."""
    cut = None if model.clusterer is None else model.clusterer.cut(model.clusterer.config)
    if cut is None:
        return images.new_zeros(*boxes.shape[:2], images.shape[1], 0, 0)
    return crop(images, cut.squares(boxes), cut.size).clamp(0, 1)


@torch.no_grad()
def present_objects(model: Gmair, images: Tensor) -> Present:
    """All objects with a presence of at least PRESENT in images [n, channels, height, width].

    Objects whose latents are not finite are left out: the loss reports what is wrong with them.
    """
    found: list[Present] = []
    training = model.training
    model.eval()
    for batch in images.split(100):
        objects = model.infer_modes(batch)
        present = (objects.presence >= PRESENT) & objects.what_mean.isfinite().all(-1)
        boxes = model.cut_boxes(objects.boxes, objects.presence, objects.what)
        parts = (
            model.glimpses(batch, objects.boxes),
            objects.what_mean,
            objects.what_std,
            objects.presence,
            squares(model, batch, boxes),
        )
        found.append(Present(*(part[present] for part in parts)))
    model.train(training)
    return Present(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def inverse_softplus(x: Tensor) -> Tensor:
    """y such that softplus(y) = x > 0."""
    return x + torch.log(-torch.expm1(-x))
