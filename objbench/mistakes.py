"""Where and what in one: which class each cluster stands for, average precision by class, and kinds of errors.

For metrics, tables of objects and pictures, so that all of them call the same box right. Lengths as in
`objbench.matching`: m detections, n objects.

A detection of score >= PRESENT that takes an object by COCO's matching rule at IoU >= 0.5, whatever its cluster, is a
match. Which class a cluster stands for is decided by the matches: each object counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from objbench.detector import NOISE, PRESENT, Detections
from objbench.matching import (
    Bools,
    Floats,
    Ints,
    Pairs,
    as_numpy,
    average_precision_coco,
    best_truth,
    close_pairs,
    coco_matches,
    coco_ranks,
    match_coco,
    weighted_precision_coco,
)
from objbench.scenes import GroundTruth

PLACED, NEAR = 0.5, 0.1
"""IoU from which a box is on an object, and from which it is near one."""
KINDS = ("right", "wrong cluster", "duplicate", "badly placed", "background", "below threshold")
"""What a detection is: exactly one of these."""
RIGHT, WRONG_CLUSTER, DUPLICATE, BADLY_PLACED, BACKGROUND, BELOW = range(len(KINDS))
"""Places in KINDS."""
MISSED = "missed"
"""What an object is that no detection takes."""


class Verdicts(NamedTuple):
    """What each detection is, and which objects are missed."""

    kind: Ints
    """`[m]` index into KINDS. "right": a match whose cluster stands for the object's class (any match, where the
    detector does not cluster); "wrong cluster": any other match; "duplicate": no match, but its best IoU is >= 0.5;
    "badly placed": its best IoU is in 0.1..0.5; "background": below 0.1; "below threshold": its score is under
    PRESENT, so it is none of these."""
    object: Ints
    """`[m]` index into the truth: the object that it takes, else the one that it overlaps most; -1 without overlap."""
    iou: Floats
    """`[m]` with that object; 0 without one."""
    missed: Bools
    """`[n]` whether no detection takes the object."""
    class_of: dict[int, int]
    """Cluster -> the class that it stands for, one to one; see `one_to_one`. Empty where the detector does not
    cluster."""


class Matches(NamedTuple):
    """The detections that take an object, in any order."""

    detection: Ints
    """`[k]` index into the detections."""
    object: Ints
    """`[k]` index into the truth; each at most once."""


def matches(detections: Detections, truth: GroundTruth) -> Matches:
    """Detections of score >= PRESENT with the objects that they take, by COCO's rule at IoU >= 0.5."""
    pairs = close_pairs(detections, truth, PLACED)
    kept = (as_numpy(detections.scores) >= PRESENT)[pairs.detection]
    taken = coco_matches(_ranks(detections, pairs), _those(pairs, kept), PLACED)
    which = np.flatnonzero(taken >= 0)
    return Matches(which, taken[which])


def verdicts(detections: Detections, truth: GroundTruth) -> Verdicts:
    """What each detection is. The order of detections, objects and images changes nothing, nor do cluster numbers."""
    found = matches(detections, truth)
    best = best_truth(detections, truth)
    object_ = np.where(best.iou > 0, best.truth, -1)
    object_[found.detection] = found.object
    iou = best.iou.copy()
    if len(found.detection):
        pairs = close_pairs(detections, truth, PLACED)
        own = object_[pairs.detection] == pairs.truth
        iou[pairs.detection[own]] = pairs.iou[own]
    kind = np.select([best.iou >= PLACED, best.iou >= NEAR], [DUPLICATE, BADLY_PLACED], BACKGROUND)
    class_of: dict[int, int] = {}
    if detections.clusters is None:
        kind[found.detection] = RIGHT
    else:
        class_of = one_to_one(ClassCurves(detections, truth))
        means = [class_of.get(c) for c in as_numpy(detections.clusters)[found.detection].tolist()]
        labels = as_numpy(truth.labels)[found.object].tolist()
        kind[found.detection] = [
            RIGHT if mine == label else WRONG_CLUSTER for mine, label in zip(means, labels, strict=True)
        ]
    kind[as_numpy(detections.scores) < PRESENT] = BELOW
    missed = np.ones(len(truth.labels), dtype=np.bool_)
    missed[found.object] = False
    return Verdicts(kind.astype(np.int64), object_, iou, missed, class_of)


class ClassCurves:
    """Average precision of clusters for a class: detections and truth, matched and counted once."""

    def __init__(self, detections: Detections, truth: GroundTruth) -> None:
        """The detections must have clusters."""
        assert detections.clusters is not None
        self.detections, self.truth = detections, truth
        self.clusters, self.labels = as_numpy(detections.clusters), as_numpy(truth.labels)
        self.found = matches(detections, truth)
        self.classes = np.unique(self.labels)
        """`[c]` the classes that have objects."""
        self.names = np.unique(self.clusters[self.found.detection])
        self.names = self.names[self.names != NOISE]
        """`[g]` the clusters with a match; noise is none."""
        named = self.clusters[self.found.detection] != NOISE
        self.cell = (
            np.searchsorted(self.classes, self.labels[self.found.object[named]]),
            np.searchsorted(self.names, self.clusters[self.found.detection[named]]),
        )
        """Row and column in `table` of each match that is in a cluster, and the scene of each in `scene`."""
        self.scene = as_numpy(truth.image)[self.found.object[named]]
        self.table = np.zeros((len(self.classes), len(self.names)), dtype=np.int64)
        """`[c, g]` how many matches of each cluster are of each class."""
        np.add.at(self.table, self.cell, 1)
        self._pairs = close_pairs(detections, truth, PLACED)
        self._ranks = _ranks(detections, self._pairs)

    def hits(self, label: int, clusters: Collection[int]) -> tuple[Ints, Bools]:
        """Which detections are in one of the clusters, [k], and which of these are hits on objects of the class, [k].

        COCO's rule at IoU >= 0.5, as if no other cluster or class were there; detections of any score take part.
        """
        mine = np.isin(self.clusters, list(clusters))
        ours = mine[self._pairs.detection] & (self.labels[self._pairs.truth] == label)
        which = np.flatnonzero(mine)
        return which, match_coco(self._ranks, _those(self._pairs, ours), PLACED)[which]

    def precision(self, label: int, clusters: Collection[int]) -> float:
        """Average precision (COCO's, at 101 recalls) of the clusters' detections for a class that has objects."""
        which, hits = self.hits(label, clusters)
        scores = as_numpy(self.detections.scores)[which]
        return average_precision_coco(scores, hits, int((self.labels == label).sum()))

    def weighted(
        self, label: int, clusters: Collection[int]
    ) -> Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]:
        """`precision` for many draws of the scenes; see `weighted_precision_coco`."""
        which, hits = self.hits(label, clusters)
        scores, image = (as_numpy(t)[which] for t in (self.detections.scores, self.detections.image))
        return weighted_precision_coco(scores, hits, image)


def assigned(table: NDArray[np.int64], precisions: NDArray[Any]) -> tuple[Ints, Ints]:
    """The best one-to-one assignment of clusters to classes: rows and columns, without pairs that share no match.

    It has the most matches in the cluster of their class (Hungarian method); among equal assignments, the highest sum
    of average precisions, so that it does not depend on how clusters are numbered.

    table: [c, g] matches. precisions: [c, g] in 0..1, of the pairs that share a match.
    """
    rows, columns = linear_sum_assignment(table + precisions / (len(table) + 1), maximize=True)
    kept = table[rows, columns] > 0
    return rows[kept], columns[kept]


def one_to_one(curves: ClassCurves) -> dict[int, int]:
    """Cluster -> the class that it stands for: at most one cluster a class; see `assigned`."""
    rows, columns = assigned(curves.table, precisions_of_pairs(curves))
    return dict(zip(curves.names[columns].tolist(), curves.classes[rows].tolist(), strict=True))


def precisions_of_pairs(curves: ClassCurves) -> NDArray[np.float64]:
    """[c, g] the average precision of each cluster for each class that it shares a match with; 0 elsewhere."""
    precisions = np.zeros(curves.table.shape)
    for row, column in zip(*curves.table.nonzero(), strict=True):
        precisions[row, column] = curves.precision(int(curves.classes[row]), [int(curves.names[column])])
    return precisions


def many_to_one(curves: ClassCurves) -> dict[int, int]:
    """Cluster -> the class that most of its matches are of; of equally frequent ones, the first label."""
    if not curves.table.size:
        return {}
    return dict(zip(curves.names.tolist(), curves.classes[curves.table.argmax(0)].tolist(), strict=True))


def _ranks(detections: Detections, pairs: Pairs) -> Ints:
    """`coco_ranks`; of detections that only their clusters tell apart, that of the larger cluster comes first."""
    if detections.clusters is None:
        return coco_ranks(detections, pairs)
    clusters, which, sizes = np.unique(as_numpy(detections.clusters), return_inverse=True, return_counts=True)
    return coco_ranks(detections, pairs, (-sizes[which], clusters[which]))


def _those(pairs: Pairs, keep: Bools) -> Pairs:
    return Pairs(pairs.detection[keep], pairs.truth[keep], pairs.iou[keep])
