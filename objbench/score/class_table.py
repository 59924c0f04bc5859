"""The results for each class, after clusters have been assigned to classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from objbench.detector import NOISE, Detections
from objbench.matching import as_numpy, average_precision, best_truth, chosen, contingency, match, present
from objbench.scenes import GroundTruth


class ClassRow(NamedTuple):
    """The results for one class. Shares are in 0..1, or None when there is nothing to count."""

    label: int
    objects: int
    """How many objects of this class there are."""
    found: float | None
    """The share of these objects that are the best match (IoU > 0.5) of some box with a score >= PRESENT."""
    cluster: int | None
    """The cluster assigned to the class; None when no cluster is left for it."""
    right: float | None
    """Of the correct boxes on objects of this class: the share that is in that cluster."""
    ap50: float | None
    """Average precision at IoU > 0.5 (as `ap50`) of all detections in that cluster, on objects of this class only."""


def class_table(detections: Detections, truth: GroundTruth, classes: int) -> list[ClassRow]:
    """A row for each of `classes` classes, by label.

    Clusters are assigned to classes one to one, so that as many correct boxes as possible are in the cluster of
    their class (Hungarian method), as for `acc`; noise is assigned to no class. Without clusters, only `label`,
    `objects` and `found` have values.
    """
    labels = as_numpy(truth.labels)
    stood_by = present(detections)
    best = best_truth(stood_by, truth)
    correct = best.iou > 0.5
    hit = best.truth[correct]
    seen = np.zeros(len(labels), dtype=np.bool_)
    seen[hit] = True
    cluster_of: dict[int, int] = {}
    right: dict[int, float] = {}
    if stood_by.clusters is not None:
        table, named, clusters = contingency(labels[hit], as_numpy(stood_by.clusters)[correct])
        boxes = table.sum(axis=1)
        table, clusters = table[:, clusters != NOISE], clusters[clusters != NOISE]
        right = dict.fromkeys(named.tolist(), 0.0)
        for row, column in zip(*linear_sum_assignment(table, maximize=True), strict=True):
            if table[row, column]:  # a cluster without a box on this class is not assigned to it
                cluster_of[int(named[row])] = int(clusters[column])
                right[int(named[row])] = float(table[row, column] / boxes[row])
    rows = []
    for label in range(classes):
        objects = int((labels == label).sum())
        cluster = cluster_of.get(label)
        ap50 = None
        if objects and detections.clusters is not None:
            ap50 = 0.0 if cluster is None else _ap50(detections, truth, label, cluster)
        found = float(seen[labels == label].mean()) if objects else None
        rows.append(ClassRow(label, objects, found, cluster, right.get(label), ap50))
    return rows


def _ap50(detections: Detections, truth: GroundTruth, label: int, cluster: int) -> float:
    """`ap50` of one cluster's detections for one class's objects."""
    assert detections.clusters is not None
    found, there = chosen(detections, detections.clusters == cluster), truth.labels == label
    objects = GroundTruth(truth.images, truth.image[there], truth.boxes[there], truth.labels[there])
    hits = match(found, best_truth(found, objects), 0.5)
    return average_precision(as_numpy(found.scores), hits, len(objects.labels))
