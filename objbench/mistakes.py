"""Where and what in one: which class each cluster stands for, average precision by class, and kinds of errors.

For metrics, tables of objects and pictures, so that all of them call the same box right. Lengths as in
`objbench.matching`: m detections, n objects.

A detection of score >= PRESENT that takes an object by COCO's matching rule at IoU >= 0.5, whatever its cluster, is a
match. Which class a cluster stands for is decided by the matches: each object counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from objbench.detector import NOISE, PRESENT, Detections
from objbench.matching import (
    Best,
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
    interpolated_coco,
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


def matches(detections: Detections, truth: GroundTruth, pairs: Pairs | None = None) -> Matches:
    """Detections of score >= PRESENT with the objects that they take, by COCO's rule at IoU >= 0.5.

    pairs: from `close_pairs` at PLACED, if they are known already.
    """
    pairs = close_pairs(detections, truth, PLACED) if pairs is None else pairs
    kept = (as_numpy(detections.scores) >= PRESENT)[pairs.detection]
    taken = coco_matches(_ranks(detections, pairs), _those(pairs, kept), PLACED)
    which = np.flatnonzero(taken >= 0)
    return Matches(which, taken[which])


class Placed(NamedTuple):
    """What each detection is, whatever its cluster."""

    found: Matches
    """Which detection is on which object."""
    pairs: Pairs
    """From `close_pairs` at PLACED."""
    kind: Ints
    """`[m]` DUPLICATE, BADLY_PLACED, BACKGROUND or BELOW; RIGHT for every match."""
    best: Best
    """The true box of the highest IoU of each detection."""


def placed(detections: Detections, truth: GroundTruth) -> Placed:
    """What each detection is without a look at clusters: which are matches, and what kind of error the others are."""
    pairs, best = close_pairs(detections, truth, PLACED), best_truth(detections, truth)
    found = matches(detections, truth, pairs)
    kind = np.select([best.iou >= PLACED, best.iou >= NEAR], [DUPLICATE, BADLY_PLACED], BACKGROUND)
    kind[found.detection] = RIGHT
    kind[as_numpy(detections.scores) < PRESENT] = BELOW
    return Placed(found, pairs, kind.astype(np.int64), best)


def verdicts(detections: Detections, truth: GroundTruth) -> Verdicts:
    """What each detection is. The order of detections, objects and images changes nothing, nor do cluster numbers."""
    found, pairs, kind, best = placed(detections, truth)
    object_ = np.where(best.iou > 0, best.truth, -1)
    object_[found.detection] = found.object
    iou = best.iou.copy()
    if len(found.detection):
        own = object_[pairs.detection] == pairs.truth
        iou[pairs.detection[own]] = pairs.iou[own]
    class_of: dict[int, int] = {}
    if detections.clusters is not None:
        class_of = one_to_one(ClassCurves(detections, truth, pairs))
        means = [class_of.get(c) for c in as_numpy(detections.clusters)[found.detection].tolist()]
        labels = as_numpy(truth.labels)[found.object].tolist()
        kind[found.detection] = [
            RIGHT if mine == label else WRONG_CLUSTER for mine, label in zip(means, labels, strict=True)
        ]
    missed = np.ones(len(truth.labels), dtype=np.bool_)
    missed[found.object] = False
    return Verdicts(kind, object_, iou, missed, class_of)


class ClassCurves:
    """Average precision of clusters for a class: detections and truth, matched and counted once."""

    def __init__(self, detections: Detections, truth: GroundTruth, pairs: Pairs | None = None) -> None:
        """The detections must have clusters. pairs: from `close_pairs` at PLACED, if they are known already."""
        assert detections.clusters is not None
        self.detections, self.truth = detections, truth
        self.clusters, self.labels = as_numpy(detections.clusters), as_numpy(truth.labels)
        self._pairs = close_pairs(detections, truth, PLACED) if pairs is None else pairs
        self.found = matches(detections, truth, self._pairs)
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

    def precisions(self) -> NDArray[np.float64]:
        """[c, g] `precision` of each cluster alone for each class that it shares a match with; 0 elsewhere.

        All of them are matched together: each detection takes part once for each class, and each object once for
        each cluster.
        """
        precisions = np.zeros(self.table.shape)
        if not precisions.size:
            return precisions
        classes, clusters = self.table.shape
        row = np.searchsorted(self.classes, self.labels)[self._pairs.truth]
        near = np.searchsorted(self.names, self.clusters).clip(max=clusters - 1)
        column = near[self._pairs.detection]
        ours = self.names[column] == self.clusters[self._pairs.detection]
        ours[ours] = self.table[row[ours], column[ours]] > 0
        row, column, pairs = row[ours], column[ours], _those(self._pairs, ours)
        asker, detection = np.unique(pairs.detection * classes + row, return_inverse=True)
        _, wish = np.unique(pairs.truth * clusters + column, return_inverse=True)
        who, row = np.divmod(asker, classes)
        hits = match_coco(self._ranks[who] * classes + row, Pairs(detection, wish, pairs.iou), PLACED)
        who, row = who[hits], row[hits]
        column, scores = near[who], as_numpy(self.detections.scores)
        ranked = _ranked(self.clusters, scores)[who]
        order = np.lexsort((ranked, column, row))
        cell = (row * clusters + column)[order]
        for part in np.split(order, np.flatnonzero(np.diff(cell)) + 1) if len(order) else []:
            objects = int((self.labels == self.classes[row[part[0]]]).sum())
            last = np.flatnonzero(np.diff(ranked[part], append=-1))
            value = interpolated_coco(last + 1, ranked[part][last], objects)
            precisions[row[part[0]], column[part[0]]] = value
        return precisions

    def mean_precision(self, class_of: Mapping[int, int]) -> float:
        """The mean over classes with objects of `precision` of the clusters that stand for the class."""
        names, place = np.unique(self.clusters, return_inverse=True)
        stands_for = np.array([class_of.get(name, -1) for name in names.tolist()], dtype=np.int64)[place]
        ours = stands_for[self._pairs.detection] == self.labels[self._pairs.truth]
        hits = match_coco(self._ranks, _those(self._pairs, ours), PLACED)
        scores, total = as_numpy(self.detections.scores), 0.0
        order = np.argsort(stands_for, kind="stable")
        starts = np.searchsorted(stands_for[order], self.classes)
        ends = np.searchsorted(stands_for[order], self.classes, side="right")
        for label, start, end in zip(self.classes.tolist(), starts, ends, strict=True):
            which = order[start:end]
            total += average_precision_coco(scores[which], hits[which], int((self.labels == label).sum()))
        return total / len(self.classes)

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
    rows, columns = assigned(curves.table, curves.precisions())
    return dict(zip(curves.names[columns].tolist(), curves.classes[rows].tolist(), strict=True))


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


def _ranked(clusters: Ints, scores: NDArray[Any]) -> Ints:
    """[m] how many detections of the same cluster have at least the score of each."""
    order = np.lexsort((-scores, clusters))
    start = np.diff(clusters[order], prepend=np.nan) != 0
    last = np.flatnonzero(np.append(start[1:] | (np.diff(scores[order]) != 0), True))
    first = np.flatnonzero(start)
    begins = np.repeat(first, np.diff(first, append=len(order)))
    ends = np.repeat(last, np.diff(last, prepend=-1))
    ranked = np.empty(len(order), dtype=np.int64)
    ranked[order] = ends - begins + 1
    return ranked


def _those(pairs: Pairs, keep: Bools) -> Pairs:
    return Pairs(pairs.detection[keep], pairs.truth[keep], pairs.iou[keep])
