"""A neighbour embedding and a Gaussian mixture on it, several times, and how far the results agree."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from objbench.errors import UsageError
from objbench_plugins.glimpses.base import fresh_seed

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Clustering:
    """Soft clusters of n objects."""

    shares: Floats
    """[n, clusters], rows sum to 1."""
    agreement: float
    """Mean normalised mutual information between the several clusterings, 0..1; 1 for a single one."""


def cluster(
    features: Floats, clusters: int, *, neighbours: int, dimensions: int, starts: int, embeddings: int
) -> Clustering:
    """Embeds [n, d] features `embeddings` times, fits a mixture to each, and joins them.

    The clustering that agrees best with the others decides what the clusters are; the others are matched to it
    one to one, and the mean of all is returned. So an object that the clusterings disagree on has no sure cluster.
    """
    from sklearn.metrics import normalized_mutual_info_score as nmi

    each = [mixture(embed(features, neighbours, dimensions), clusters, starts) for _ in range(embeddings)]
    hard = [shares.argmax(1) for shares in each]
    agree = np.array([[nmi(a, b) for b in hard] for a in hard])
    middle = int(agree.sum(1).argmax())
    matched = []
    for shares in each:
        together = each[middle].T @ shares  # objects that two clusters share
        matched.append(shares[:, linear_sum_assignment(-together)[1]])
    off = ~np.eye(embeddings, dtype=bool)
    return Clustering(np.mean(matched, axis=0), float(agree[off].mean()) if embeddings > 1 else 1.0)


def embed(features: Floats, neighbours: int, dimensions: int) -> Floats:
    """UMAP (McInnes et al. 2018) of [n, d] features: [n, dimensions]. Deterministic: one thread, seeded."""
    if len(features) < 4 * dimensions:  # nothing to embed: a mixture on principal components will do
        from sklearn.decomposition import PCA

        return np.asarray(PCA(min(dimensions, *features.shape), random_state=0).fit_transform(features))
    try:
        import umap
    except ImportError:
        raise UsageError("the neighbour embedding needs umap-learn: run 'pip install umap-learn'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one thread where a seed is set, of duplicates, of numba
        model = umap.UMAP(
            n_neighbors=min(neighbours, len(features) - 1), n_components=dimensions, min_dist=0.0,
            random_state=fresh_seed(), n_jobs=1,
        )  # fmt: skip
        found = np.asarray(model.fit_transform(features))
    return np.nan_to_num(found)  # an object without any neighbour has no place: it goes to the middle


def mixture(points: Floats, clusters: int, starts: int) -> Floats:
    """Shares [n, clusters] by the Gaussian mixture of full covariance and highest likelihood of `starts`."""
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: the likelihood decides
        for least in (1e-6, 1e-3, 1e-1):  # of the variance along an axis: more where points coincide
            try:
                fits = [
                    GaussianMixture(clusters, reg_covar=least, random_state=fresh_seed()).fit(points)
                    for _ in range(starts)
                ]
                break
            except ValueError:
                continue
        else:
            return np.eye(clusters)[np.zeros(len(points), dtype=int)]
    return np.asarray(max(fits, key=lambda fit: fit.lower_bound_).predict_proba(points))
