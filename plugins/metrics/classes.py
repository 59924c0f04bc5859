"""Where and what in one score, and what kinds of errors a detector makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from objbench.matching import as_numpy
from objbench.metric import NOISE, Detections, GroundTruth, Weights
from objbench.mistakes import (
    BACKGROUND,
    BADLY_PLACED,
    DUPLICATE,
    ClassCurves,
    assigned,
    many_to_one,
    one_to_one,
    placed,
)


def ap_class(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """COCO's AP at IoU 0.5 of each class, averaged over the classes that have objects, once clusters stand for classes.

    Which class a cluster stands for is decided by its matches: detections of score >= PRESENT (0.5) that take an
    object by COCO's rule at IoU >= 0.5, whatever its class, each object at most once. After that the figure is
    pycocotools' AP50 (Lin et al. 2014) with the class in place of the cluster; it differs in what `coco_ap` says:
    all detections of an image count, and equal scores enter the curve together.

    ap_class: clusters stand for classes one to one, so that as many matches as possible are in the cluster of their
        class (Hungarian method); among equal assignments, the one of the highest ap_class. A class without a cluster
        has an AP of 0. Detections in clusters that stand for no class count nowhere, neither do those in cluster -1
        (NOISE): a detector with more clusters than classes loses what is in the others.
    ap_class_many: each cluster stands for the class that most of its matches are of (of equally frequent ones, the
        first), so several may stand for one. It grows with the number of clusters. U2Seg's published code (Niu et al.,
        CVPR 2024) maps clusters so; it takes its matches at other thresholds (score > 0.6, IoU > 0.7).

    Both are NaN when the detector does not cluster or no image has an object; 0 when nothing is found.
    """
    if detections.clusters is None or not len(truth.labels):
        return dict.fromkeys(("ap_class", "ap_class_many"), math.nan)
    curves = ClassCurves(detections, truth)
    one, many = (curves.mean_precision(of(curves)) for of in (one_to_one, many_to_one))
    return {"ap_class": one, "ap_class_many": many}


def ap_class_weighted(
    detections: Detections, truth: GroundTruth
) -> Callable[[Weights], Mapping[str, NDArray[np.float64]]]:
    """`ap_class` for many draws of the scenes at once: matches once, assigns clusters anew in each draw."""
    names = ("ap_class", "ap_class_many")
    if detections.clusters is None or not len(truth.labels):
        return lambda weights: dict.fromkeys(names, np.full(len(weights), np.nan))
    curves = ClassCurves(detections, truth)
    shape = curves.table.shape
    row, column = curves.cell
    of_image = np.zeros((truth.images, curves.table.size), dtype=np.int64)  # [images, c x g]
    np.add.at(of_image, (curves.scene, row * shape[1] + column), 1)
    objects = np.zeros((truth.images, shape[0]), dtype=np.int64)  # [images, c]
    np.add.at(objects, (as_numpy(truth.image), np.searchsorted(curves.classes, curves.labels)), 1)
    pairs = [
        (i, j, curves.weighted(int(curves.classes[i]), [int(curves.names[j])]))
        for i, j in zip(*curves.table.nonzero(), strict=True)
    ]
    pooled: dict[tuple[int, tuple[int, ...]], Callable[..., NDArray[np.float64]]] = {}

    def values(weights: Weights) -> dict[str, NDArray[np.float64]]:
        tables = (weights @ of_image).reshape(len(weights), *shape)
        there = weights @ objects  # [draws, c]
        classes = (there > 0).sum(1)
        precisions = np.zeros(tables.shape)
        for i, j, of_pair in pairs:
            precisions[:, i, j] = np.nan_to_num(of_pair(weights, there[:, i]))
        one = np.zeros(len(weights))
        for draw, (table, of_draw) in enumerate(zip(tables, precisions * (tables > 0), strict=True)):
            one[draw] = of_draw[assigned(table, of_draw)].sum()
        many = np.zeros(len(weights))
        stands_for = np.where(tables.any(1), tables.argmax(1), -1) if tables.size else tables.sum(1)
        for i, label in enumerate(curves.classes.tolist()):
            mine, which = np.unique(stands_for == i, axis=0, return_inverse=True)
            for k, clusters in enumerate(mine):
                key = (label, tuple(curves.names[clusters].tolist()))
                if not key[1]:
                    continue
                if key not in pooled:
                    pooled[key] = curves.weighted(*key)
                draws = np.flatnonzero(which.ravel() == k)
                many[draws] += np.nan_to_num(pooled[key](weights[draws], there[draws, i]))
        per_class = np.where(classes > 0, np.maximum(classes, 1), np.nan)
        return dict(zip(names, (one / per_class, many / per_class), strict=True))

    return values


OF_BOXES = {"duplicate": DUPLICATE, "badly_placed": BADLY_PLACED, "background": BACKGROUND}
"""Value -> kind of the detections that it counts."""
SHARES = ("right", "wrong_cluster", *OF_BOXES, "missed")
"""What is given as a share: the last of the objects, the others of the detections; each with its count."""


def errors(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """What the detections of score >= PRESENT (0.5) are, and how many objects are missed.

    After TIDE (Bolya et al. 2020).

    A match is a detection that takes an object by COCO's rule at IoU >= 0.5, whatever its cluster.

    right: matches whose cluster stands for the object's class, one to one as in `ap_class`.
    wrong_cluster: the other matches; also those in a cluster that stands for no class.
    duplicate: no match, but IoU >= 0.5 with some object (another detection took it).
    badly_placed: 0.1 <= IoU < 0.5 with the object it overlaps most.
    background: IoU < 0.1 with every object.
    missed: objects without a match.

    The first five are shares of the detections and add up to 1; `missed` is a share of the objects. `right_count` to
    `missed_count` are how many: the first five add up to `boxes_count`; right, wrong_cluster and missed to
    `objects_count`. A detector that does not cluster has no wrong clusters. Shares are NaN of nothing; all are NaN
    when there is no object in any image.
    """
    if not len(truth.labels):
        return dict.fromkeys(_names(), math.nan)
    of_scene, tables = _counted(detections, truth)
    return {k: float(v[0]) for k, v in _figures(of_scene.sum(0)[None], tables.sum(0)[None]).items()}


def errors_weighted(
    detections: Detections, truth: GroundTruth
) -> Callable[[Weights], Mapping[str, NDArray[np.float64]]]:
    """`errors` for many draws of the scenes at once: counts of each scene, weighted."""
    if not len(truth.labels):
        return lambda weights: dict.fromkeys(_names(), np.full(len(weights), np.nan))
    of_scene, tables = _counted(detections, truth)
    return lambda weights: _figures(weights @ of_scene, np.tensordot(weights, tables, 1))


def _names() -> list[str]:
    return [*SHARES, *(f"{name}_count" for name in SHARES), "boxes_count", "objects_count"]


def _counted(detections: Detections, truth: GroundTruth) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each scene: matches, duplicates, badly placed ones, background and objects, [images, 5]; and its matches by
    class and cluster, [images, c, g], or [images, 0] where the detector does not cluster."""
    image = as_numpy(detections.image)
    found, _, kinds, _ = placed(detections, truth)
    parts = [image[found.detection]] + [image[kinds == kind] for kind in OF_BOXES.values()]
    parts.append(as_numpy(truth.image))
    of_scene = np.stack([np.bincount(part, minlength=truth.images) for part in parts], axis=1)
    if detections.clusters is None:
        return of_scene, np.zeros((truth.images, 0), dtype=np.int64)
    clusters = as_numpy(detections.clusters)[found.detection]
    named = clusters != NOISE
    labels, row = np.unique(as_numpy(truth.labels)[found.object[named]], return_inverse=True)
    groups, column = np.unique(clusters[named], return_inverse=True)
    tables = np.zeros((truth.images, len(labels), len(groups)), dtype=np.int64)
    np.add.at(tables, (image[found.detection[named]], row, column), 1)
    return of_scene, tables


def _figures(of_scene: NDArray[np.int64], tables: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """The values of draws: counts [draws, 5] and tables [draws, c, g], as `_counted` has them, summed over scenes."""
    matched, *others, objects = of_scene.T.astype(np.float64)
    right = matched
    if tables.ndim == 3:  # it clusters
        right = np.array(
            [table[linear_sum_assignment(table, maximize=True)].sum() for table in tables], float
        )
    counts = dict(zip(SHARES, (right, matched - right, *others, objects - matched), strict=True))
    boxes = matched + sum(others)
    wholes = {name: objects if name == "missed" else boxes for name in SHARES}
    shares = {
        name: np.divide(count, wholes[name], out=np.full(len(boxes), np.nan), where=wholes[name] > 0)
        for name, count in counts.items()
    }
    known = shares | {f"{name}_count": count for name, count in counts.items()}
    known |= {"boxes_count": boxes, "objects_count": objects}
    return {name: np.where(objects > 0, value, np.nan) for name, value in known.items()}
