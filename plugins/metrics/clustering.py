"""Metrics that compare the clusters of boxes with the classes of the objects in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import xlogy

from objbench.matching import Best, Bools, as_numpy, best_truth, contingency, present
from objbench.metric import NOISE, Detections, GroundTruth, Weights

WORST = {
    "acc": 0.0,
    "acc_all": 0.0,
    "acc_many_to_one": 0.0,
    "nmi": 0.0,
    "clusters_used": 0.0,
    "largest_cluster": 1.0,
    "objects_found": 0.0,
}
"""The values if no box is correct."""


def clustering(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """Agreement of clusters with classes over correct boxes, as in Appendix C of GMAIR (arXiv 2106.01722).

    Only boxes with a score >= PRESENT (0.5) are used. A box is correct when its IoU with a true box of its image
    is > 0.5; its class is then the class of the true box with the highest IoU. If several correct boxes are on one
    object, all of them count.

    acc: share of correct boxes whose cluster is assigned to their class, with the best one-to-one assignment
        of clusters to classes (Hungarian method). This is the stricter and more common definition.
    acc_all: the same over all true objects: an object without a correct box is wrong. If several correct
        boxes are on one object, the one with the highest score counts (of equal scores, the highest IoU).
        Never above objects_found.
    acc_many_to_one: as acc, if several clusters may be assigned to one class: Eq. 16, the paper's ACC.
        Never below acc; it grows with the number of clusters, and is 1 when every box is its own cluster.
    nmi: normalised mutual information 2 I(G; P) / (H(G) + H(P)): Eq. 17, the arithmetic mean.
    clusters_used: exp(H(P)), the effective number of clusters; 1 when all correct boxes are in one cluster.
    largest_cluster: share of the correct boxes in the largest cluster; 1 when all are in one cluster.
    objects_found: share of the true objects that are the best match of some correct box. The other figures are
        computed on these objects: a detector that finds few objects can cluster these few well.

    Cluster -1 (NOISE) contains the boxes that belong to no cluster. It is assigned to no class, so these boxes are
    wrong in acc and acc_many_to_one; in the other figures it is a normal cluster.

    All are NaN when the detector does not cluster, or when there are no objects. When no box is correct, all
    have their worst value (0; largest_cluster 1): with NaN, such a run would be left out of the mean over seeds, so
    that a detector that finds nothing would look good. For the same reason nmi is 0, not 0/0, when all correct boxes
    have one class and one cluster.
    """
    if detections.clusters is None or not len(truth.labels):
        return dict.fromkeys(WORST, math.nan)
    stood_by = present(detections)
    assert stood_by.clusters is not None
    best = best_truth(stood_by, truth)
    correct = best.iou > 0.5
    if not correct.any():
        return dict(WORST)
    hit = best.truth[correct]
    table, _, clusters = contingency(as_numpy(truth.labels)[hit], as_numpy(stood_by.clusters)[correct])
    boxes = table.sum()
    named = table[:, clusters != NOISE]
    one = _one_an_object(stood_by, best, correct)
    of_objects, _, groups = contingency(
        as_numpy(truth.labels)[best.truth[one]], as_numpy(stood_by.clusters)[one]
    )
    of_classes, of_clusters = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0))
    both = of_classes + of_clusters
    nmi = 2 * (both - _entropy(table.ravel())) / both if both else 0.0
    return {
        "acc": float(_assigned(named) / boxes),
        "acc_all": float(_assigned(of_objects[:, groups != NOISE]) / len(truth.labels)),
        "acc_many_to_one": float(named.max(axis=0).sum() / boxes),
        "nmi": min(max(nmi, 0.0), 1.0),  # because of rounding errors
        "clusters_used": math.exp(of_clusters),
        "largest_cluster": float(table.sum(axis=0).max() / boxes),
        "objects_found": len(np.unique(hit)) / len(truth.labels),
    }


def weighted(
    detections: Detections, truth: GroundTruth
) -> Callable[[Weights], Mapping[str, NDArray[np.float64]]]:
    """`clustering` for many draws of the scenes at once: counts per scene are multiplied by the weights."""
    objects = np.bincount(as_numpy(truth.image), minlength=truth.images)  # [images]
    if detections.clusters is None or not len(truth.labels):
        return lambda weights: dict.fromkeys(WORST, np.full(len(weights), np.nan))
    stood_by = present(detections)
    assert stood_by.clusters is not None
    best = best_truth(stood_by, truth)
    correct = best.iou > 0.5
    hit, image = best.truth[correct], as_numpy(stood_by.image)[correct]
    classes, row = np.unique(as_numpy(truth.labels)[hit], return_inverse=True)
    groups, column = np.unique(as_numpy(stood_by.clusters)[correct], return_inverse=True)
    named = groups != NOISE
    size = len(classes) * len(groups)
    of_image = np.zeros((truth.images, size), dtype=np.int64)  # [images, classes x groups]
    np.add.at(of_image, (image, row * len(groups) + column), 1)
    once = _one_an_object(stood_by, best, correct)[np.flatnonzero(correct)]
    of_objects = np.zeros_like(of_image)
    np.add.at(of_objects, (image[once], (row * len(groups) + column)[once]), 1)
    found = of_objects.sum(1)

    def values(weights: Weights) -> dict[str, NDArray[np.float64]]:
        draws = len(weights)
        tables = (weights @ of_image).reshape(draws, len(classes), len(groups))
        boxes = tables.sum((1, 2))
        of_named = tables[:, :, named]
        one_each = (weights @ of_objects).reshape(draws, len(classes), len(groups))[:, :, named]
        of_classes, of_clusters = _entropies(tables.sum(2)), _entropies(tables.sum(1))
        both = of_classes + of_clusters
        shared = 2 * (both - _entropies(tables.reshape(draws, -1)))
        there = weights @ objects
        per_box = np.maximum(boxes, 1)
        known = {
            "acc": np.array([_assigned(table) for table in of_named]) / per_box,
            "acc_all": np.array([_assigned(table) for table in one_each]) / np.maximum(there, 1),
            "acc_many_to_one": of_named.max(1, initial=0).sum(1) / per_box,
            "nmi": np.divide(shared, both, out=np.zeros(draws), where=both > 0).clip(0, 1),
            "clusters_used": np.exp(of_clusters),
            "largest_cluster": tables.sum(1).max(1, initial=0) / per_box,
            "objects_found": weights @ found / np.maximum(there, 1),
        }
        known = {name: np.where(boxes > 0, value, WORST[name]) for name, value in known.items()}
        return {name: np.where(there > 0, value, np.nan) for name, value in known.items()}

    return values


def _one_an_object(stood_by: Detections, best: Best, correct: Bools) -> Bools:
    """Which boxes [m] represent an object: of the correct ones on it, that of the highest score."""
    where = np.flatnonzero(correct)
    assert stood_by.clusters is not None
    clusters, boxes = as_numpy(stood_by.clusters)[where], as_numpy(stood_by.boxes)[where]
    # Boxes and clusters last, so that no order of equal ones matters.
    keys = (clusters, *boxes.T[::-1], -best.iou[where], -as_numpy(stood_by.scores)[where], best.truth[where])
    ranked = where[np.lexsort(keys)]
    one = np.zeros(len(correct), dtype=np.bool_)
    one[ranked[np.diff(best.truth[ranked], prepend=-1) > 0]] = True
    return one


def _assigned(table: NDArray[np.int64]) -> int:
    """How many of a table [classes, clusters] are right under the best one-to-one assignment."""
    return int(table[linear_sum_assignment(table, maximize=True)].sum())


def _entropies(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Entropies [draws] in nats of the distributions given by counts [draws, k]; 0 if all counts are 0."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    entropies: NDArray[np.float64] = -xlogy(share, share).sum(1)
    return entropies


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution given by counts [k]."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
