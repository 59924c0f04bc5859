"""The metrics against plain loops, hand-worked figures, other libraries, and what must hold of any input."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from objbench import matching
from objbench.matching import (
    average_precision,
    best_truth,
    close_pairs,
    coco_ranks,
    match,
    match_coco,
    overlaps,
)
from objbench.metric import Detections, GroundTruth
from objbench.plugins import load_target
from objbench_plugins.metrics import objbench_metrics
from objbench_plugins.metrics.clustering import clustering
from objbench_plugins.metrics.detection import ap50, ap50_gmair, coco_ap, count_error, f1

SEEDS = st.integers(0, 2**32 - 1)
METRICS = (ap50, clustering, count_error, ap50_gmair, coco_ap, f1)


def scene(*boxes: tuple[float, ...], labels: list[int] | None = None) -> GroundTruth:
    """One image with these boxes."""
    numbers = torch.tensor(labels if labels is not None else [0] * len(boxes), dtype=torch.int64)
    return GroundTruth.of([torch.tensor(boxes).reshape(-1, 4)], [numbers])


def found(
    boxes: list[tuple[float, ...]],
    scores: list[float],
    clusters: list[int] | None = None,
    image: int = 0,
    n: int = 1,
) -> Detections:
    """Detections that all lie in one image of n."""
    return Detections(
        images=n,
        image=torch.full((len(boxes),), image),
        boxes=torch.tensor(boxes).float().reshape(-1, 4),
        scores=torch.tensor(scores),
        clusters=torch.tensor(clusters if clusters is not None else [0] * len(boxes)),
    )


def crowded(seed: int) -> tuple[Detections, GroundTruth]:
    """A few images on a coarse grid of coordinates and scores, so that equals of every kind are common."""
    draw = np.random.default_rng(seed)
    images = int(draw.integers(1, 6))

    def boxes(count: int) -> torch.Tensor:
        corner = draw.integers(0, 5, (count, 2))
        return torch.tensor(np.concatenate([corner, corner + draw.integers(1, 5, (count, 2))], 1)).float()

    m, n = int(draw.integers(0, 25)), int(draw.integers(0, 15))
    truth_image = torch.tensor(np.sort(draw.integers(0, images, n)))
    truth = GroundTruth(images, truth_image, boxes(n), torch.tensor(draw.integers(0, 4, n)))
    near = boxes(m)
    if n:  # every other detection starts from a true box, in its image or not
        near[::2] = truth.boxes[draw.integers(0, n, len(near[::2]))]
    scores = torch.tensor(draw.choice([0.1, 0.3, 0.5, 0.5004, 0.7, 0.7, 0.9, 1.0], m)).float()
    clusters = torch.tensor(draw.integers(0, 4, m))
    return Detections(images, torch.tensor(draw.integers(0, images, m)), near, scores, clusters), truth


def apart(seed: int) -> tuple[Detections, GroundTruth]:
    """Objects that do not touch, every one of them found exactly, with its class for its cluster."""
    draw = np.random.default_rng(seed)
    images = int(draw.integers(1, 6))
    cells = np.flatnonzero(draw.random(images * 9) < 0.6)
    cells = cells if len(cells) else np.array([0])
    image, cell = torch.tensor(cells // 9), cells % 9
    corner = np.stack([cell % 3, cell // 3], 1) * 20 + draw.random((len(cells), 2)) * 4
    boxes = torch.tensor(np.concatenate([corner, corner + 4 + draw.random((len(cells), 2)) * 10], 1)).float()
    labels = torch.tensor(draw.integers(0, 3, len(cells)))
    truth = GroundTruth(images, image, boxes, labels)
    return Detections(
        images, image, boxes, torch.tensor(draw.uniform(0.5, 1, len(cells))).float(), labels + 7
    ), truth


def everything(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """All values of all metrics."""
    return {name: value for metric in METRICS for name, value in metric(detections, truth).items()}


def same(first: dict[str, float], second: dict[str, float]) -> bool:
    """Equal to the last bit, NaN equal to NaN."""
    return all(np.array_equal(first[name], second[name], equal_nan=True) for name in first | second)


# Plain loops that say the same more slowly


def loop_iou(a: list[float], b: list[float], pixel: float = 0.0) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + pixel, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + pixel, 0)
    area_a, area_b = ((max(c[2] - c[0] + pixel, 0) * max(c[3] - c[1] + pixel, 0)) for c in (a, b))
    return width * height / (area_a + area_b - width * height) if width * height else 0.0


def loop_best(detections: Detections, truth: GroundTruth, pixel: float = 0.0) -> list[tuple[float, int]]:
    """(IoU, object) of every detection's best object, or (0, -1)."""
    answer = []
    for box, image in zip(detections.boxes.tolist(), detections.image.tolist(), strict=True):
        best = (0.0, [math.inf], -1)
        for j in range(len(truth.labels)):
            if truth.image[j] == image:
                other = truth.boxes[j].tolist()
                iou = loop_iou(box, other, pixel)
                key = [*other, int(truth.labels[j])]
                if iou > best[0] or (iou == best[0] and key < best[1]):
                    best = (iou, key, j)
        answer.append((best[0], best[2]))
    return answer


def loop_ap50(detections: Detections, truth: GroundTruth) -> float:
    if not len(truth.labels):
        return math.nan
    best, scores = loop_best(detections, truth), detections.scores.tolist()
    curve, taken, right, seen = [], set(), 0, 0
    for score in sorted(set(scores), reverse=True):
        for i in range(len(scores)):
            if scores[i] == score:
                iou, j = best[i]
                seen += 1
                if iou > 0.5 and j not in taken:
                    taken.add(j)
                    right += 1
        curve.append((right / len(truth.labels), right / seen))
    area, before = 0.0, 0.0
    for recall, _ in curve:
        area += (recall - before) * max(p for r, p in curve if r >= recall)
        before = recall
    return area


def loop_ap50_gmair(detections: Detections, truth: GroundTruth) -> float:
    if not len(truth.labels):
        return math.nan
    best, scores = loop_best(detections, truth, pixel=1.0), detections.scores.double().tolist()
    shown, lowest, hit = defaultdict(int), defaultdict(lambda: math.inf), defaultdict(set)
    for (iou, j), score, image in zip(best, scores, detections.image.tolist(), strict=True):
        if score >= 0.5 and image in truth.image.tolist():
            shown[image] += 1
            lowest[image] = min(lowest[image], score)
            if iou >= 0.5:
                hit[image].add(j)
    curve = []
    for t in range(1000):
        admitted = [image for image in shown if lowest[image] >= 1 - (t + 1) / 1000]
        right, seen = sum(len(hit[i]) for i in admitted), sum(shown[i] for i in admitted)
        curve.append((right / len(truth.labels), right / seen if right else 0.0))
    area, before, ahead = 0.0, 0.0, np.maximum.accumulate([p for _, p in curve][::-1])[::-1]
    for (recall, _), precision in zip(curve, ahead, strict=True):
        area += (recall - before) * precision
        before = recall
    return float(area)


def loop_clustering(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    pairs, objects = [], {}
    for (iou, j), score, box, cluster in zip(
        loop_best(detections, truth),
        detections.scores.tolist(),
        detections.boxes.tolist(),
        detections.clusters.tolist(),
        strict=True,
    ):
        if score >= 0.5 and iou > 0.5:
            pairs.append((int(truth.labels[j]), cluster))
            claim = (-score, -iou, box, cluster)
            objects[j] = min(claim, objects.get(j, claim))
    represented = [(int(truth.labels[j]), claim[-1]) for j, claim in objects.items()]
    clusters = [p for _, p in pairs]

    def one_to_one(pairs: list[tuple[int, int]]) -> int:
        """Of every way to name the clusters 0..3 after the classes 0..3, the best."""
        ways = itertools.permutations(range(4))
        return max(sum(names[cluster] == label for label, cluster in pairs) for names in ways)

    majorities = [max(pairs.count((label, c)) for label in range(4)) for c in set(clusters)]
    shares = [clusters.count(c) / len(pairs) for c in set(clusters)]
    trivial = len(set(pairs)) == 1
    return {
        "acc": one_to_one(pairs) / len(pairs),
        "acc_all": one_to_one(represented) / len(truth.labels),
        "acc_many_to_one": sum(majorities) / len(pairs),
        "nmi": 0.0 if trivial else normalized_mutual_info_score([g for g, _ in pairs], clusters),
        "clusters_used": math.exp(-sum(s * math.log(s) for s in shares)),
        "largest_cluster": max(shares),
        "objects_found": len(objects) / len(truth.labels),
    }


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_equal_to_plain_loops(seed: int) -> None:
    detections, truth = crowded(seed)
    pairs = overlaps(detections, truth)
    for i, j, iou in zip(*pairs, strict=True):
        assert detections.image[i] == truth.image[j]
        assert iou == loop_iou(detections.boxes[i].tolist(), truth.boxes[j].tolist())
    assert len(set(zip(pairs.detection, pairs.truth, strict=True))) == len(pairs.iou)
    assert len(pairs.iou) == int((detections.image[:, None] == truth.image[None]).sum())

    best = best_truth(detections, truth)
    expected = loop_best(detections, truth)
    assert best.iou.tolist() == [iou for iou, _ in expected]
    for mine, (iou, j) in zip(best.truth, expected, strict=True):  # of identical objects either will do
        assert mine == j or (iou and truth.boxes[mine].equal(truth.boxes[j])) or not iou

    assert ap50(detections, truth)["ap50"] == pytest.approx(
        loop_ap50(detections, truth), abs=1e-12, nan_ok=True
    )
    assert ap50_gmair(detections, truth)["ap50_gmair"] == pytest.approx(
        loop_ap50_gmair(detections, truth), abs=1e-12, nan_ok=True
    )
    counts = [
        abs(int(((detections.image == i) & (detections.scores >= 0.5)).sum()) - int((truth.image == i).sum()))
        for i in range(truth.images)
    ]
    expected_error = np.mean(counts) if len(truth.labels) else math.nan
    counted = count_error(detections, truth)
    assert counted["count_error"] == pytest.approx(expected_error, nan_ok=True)
    assert counted["count"] == pytest.approx(int((detections.scores >= 0.5).sum()) / truth.images)
    if any(iou > 0.5 and s >= 0.5 for (iou, _), s in zip(expected, detections.scores.tolist(), strict=True)):
        assert clustering(detections, truth) == pytest.approx(loop_clustering(detections, truth), abs=1e-9)


# What must hold of any input


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_no_order_matters(seed: int) -> None:
    """Not of detections, not of objects, not of images; to the last bit."""
    detections, truth = crowded(seed)
    torch.manual_seed(seed)
    rename = torch.randperm(truth.images)
    shuffle, objects = torch.randperm(len(detections.scores)), torch.randperm(len(truth.labels))
    objects = objects[torch.argsort(rename[truth.image[objects]], stable=True)]
    moved = Detections(
        truth.images,
        rename[detections.image[shuffle]],
        detections.boxes[shuffle],
        detections.scores[shuffle],
        detections.clusters[shuffle],
    )
    there = GroundTruth(
        truth.images, rename[truth.image[objects]], truth.boxes[objects], truth.labels[objects]
    )
    assert same(everything(detections, truth), everything(moved, there))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_ranges_and_bounds(seed: int) -> None:
    values = everything(*crowded(seed))
    for name in values.keys() - {"count_error", "count", "clusters_used"}:
        assert math.isnan(values[name]) or 0 <= values[name] <= 1, name
    if not math.isnan(values["acc"]):
        assert values["acc"] <= values["acc_many_to_one"]


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_perfect_detections_score_one(seed: int) -> None:
    detections, truth = apart(seed)
    values = everything(detections, truth)
    several = len(set(truth.labels.tolist())) > 1
    expected = dict.fromkeys(
        ("ap50", "ap50_gmair", "acc", "acc_many_to_one", "objects_found", "coco_ap"), 1.0
    )
    expected |= {"count_error": 0.0, "nmi": 1.0 if several else 0.0}
    assert {name: values[name] for name in expected} == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.05, 1))
def test_shrunk_boxes_stand_until_half_their_area(seed: int, factor: float) -> None:
    """Boxes shrunk about their centre to `factor` of each side have an IoU of factor squared."""
    detections, truth = apart(seed)
    centre = (detections.boxes[:, :2] + detections.boxes[:, 2:]).repeat(1, 2) / 2
    smaller = Detections(
        truth.images,
        detections.image,
        centre + (detections.boxes - centre) * factor,
        detections.scores,
        detections.clusters,
    )
    if abs(factor**2 - 0.5) > 1e-4:
        expected = float(factor**2 > 0.5)
        assert ap50(smaller, truth)["ap50"] == pytest.approx(expected)
        assert clustering(smaller, truth)["acc"] == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_ap_and_what_is_added(seed: int) -> None:
    detections, truth = crowded(seed)
    if not len(truth.labels):
        return
    value = ap50(detections, truth)["ap50"]
    nowhere = found([(50.0, 50.0, 60.0, 60.0)], [0.0], n=truth.images)

    def joined(other: Detections) -> float:
        both = [torch.cat([getattr(detections, k), getattr(other, k)]) for k in ("image", "boxes", "scores")]
        return ap50(Detections(truth.images, *both), truth)["ap50"]

    assert joined(nowhere) == pytest.approx(value)  # false, but ranked below everything
    top = Detections(truth.images, nowhere.image, nowhere.boxes, torch.ones(1))
    assert joined(top) < value or value == 0
    assert joined(detections) <= value + 1e-12  # a second copy of everything is false
    squared = Detections(truth.images, detections.image, detections.boxes, detections.scores**2)
    assert ap50(squared, truth)["ap50"] == value  # the order of scores is all that counts


def test_nothing_found_cannot_look_good() -> None:
    truth, nothing = scene((0, 0, 4, 4), (8, 8, 12, 12)), found([], [])
    values = everything(nothing, truth)
    assert values.pop("count_error") == 2
    assert values.pop("largest_cluster") == 1
    assert set(values.values()) == {0.0}
    astray = found([(20.0, 20.0, 24.0, 24.0)], [0.9])
    assert clustering(astray, truth) == clustering(nothing, truth)


def test_undefined_without_objects() -> None:
    empty = found([(0.0, 0.0, 4.0, 4.0)], [0.9])
    values = everything(empty, scene())
    assert values.pop("count") == 1
    assert all(map(math.isnan, values.values()))
    no_images = Detections(0, torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert all(map(math.isnan, everything(no_images, GroundTruth.of([], [])).values()))


def test_undefined_without_clusters() -> None:
    truth = scene((0, 0, 4, 4))
    plain = Detections(1, torch.zeros(1).long(), truth.boxes, torch.ones(1))
    assert all(map(math.isnan, clustering(plain, truth).values()))
    assert ap50(plain, truth) == {"ap50": 1.0}


# Worked by hand


def test_ap_of_three_objects() -> None:
    """Right at .9, wrong at .8, right at .7, one object missed: 1/3 at precision 1, 1/3 at 2/3."""
    truth = scene((0, 0, 4, 4), (10, 0, 14, 4), (20, 0, 24, 4))
    detections = found([(0, 0, 4, 4), (30, 0, 34, 4), (10, 0, 14, 4)], [0.9, 0.8, 0.7])
    assert ap50(detections, truth)["ap50"] == pytest.approx(5 / 9)


def test_precision_is_raised_to_what_comes_later() -> None:
    """Wrong, right, right: precisions 0, 1/2, 2/3; both recalls count at 2/3."""
    truth = scene((0, 0, 4, 4), (10, 0, 14, 4))
    detections = found([(30, 0, 34, 4), (0, 0, 4, 4), (10, 0, 14, 4)], [0.9, 0.8, 0.7])
    assert ap50(detections, truth)["ap50"] == pytest.approx(2 / 3)


def test_equal_scores_enter_together() -> None:
    """One right and one wrong of equal score: precision 1/2 whichever is listed first."""
    truth = scene((0, 0, 4, 4))
    boxes = [(0, 0, 4, 4), (30, 0, 34, 4)]
    assert (
        ap50(found(boxes, [0.9, 0.9]), truth) == ap50(found(boxes[::-1], [0.9, 0.9]), truth) == {"ap50": 0.5}
    )


def test_ranking_is_over_all_images() -> None:
    """A confident mistake in one image comes before a hit in another."""
    truth = GroundTruth.of([torch.tensor([[0.0, 0, 4, 4]])] * 2, [torch.zeros(1)] * 2)
    boxes = torch.tensor([[0.0, 0, 4, 4], [30, 0, 34, 4]])
    detections = Detections(2, torch.tensor([0, 1]), boxes, torch.tensor([0.6, 0.9]))
    assert ap50(detections, truth)["ap50"] == pytest.approx(0.25)


def test_a_box_counts_only_in_its_own_image() -> None:
    truth = GroundTruth.of(
        [torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(0, 4)], [torch.zeros(1), torch.zeros(0)]
    )
    assert ap50(found([(0, 0, 4, 4)], [0.9], image=1, n=2), truth)["ap50"] == 0
    assert ap50(found([(0, 0, 4, 4)], [0.9], image=0, n=2), truth)["ap50"] == 1


def test_the_threshold_is_strict() -> None:
    """A box over exactly half of an object has an IoU of exactly 0.5: not enough, save for GMAIR's script."""
    truth = scene((0, 0, 4, 4))
    half = found([(0, 0, 4, 2)], [0.9])
    assert overlaps(half, truth).iou.tolist() == [0.5]
    assert ap50(half, truth)["ap50"] == 0
    assert clustering(half, truth)["acc"] == 0
    script_half = found([(0, 0, 4, 1.5)], [0.9])  # with the pixel that it adds: 5 x 2.5 of 5 x 5
    assert overlaps(script_half, truth, pixel=1.0).iou.tolist() == [0.5]
    assert ap50_gmair(script_half, truth)["ap50_gmair"] == 1


def test_second_detection_of_an_object_is_false() -> None:
    """Even when another object, not its best, is free."""
    truth = scene((0, 0, 10, 10), (0, 0, 10, 12))
    detections = found([(0, 0, 10, 10), (0, 0, 10, 10.5)], [0.9, 0.8])
    best = best_truth(detections, truth)
    assert best.truth.tolist() == [0, 0]
    assert match(detections, best, 0.5).tolist() == [True, False]
    assert ap50(detections, truth)["ap50"] == 0.5


def test_boxes_turned_inside_out_overlap_nothing() -> None:
    """Trimming an empty glimpse gives such a box; two negative sides must not make an area."""
    truth = scene((0, 0, 4, 4))
    assert overlaps(found([(4, 4, 0, 0), (2, 2, 2, 2), (4, 0, 0, 4)], [0.9] * 3), truth).iou.tolist() == [
        0,
        0,
        0,
    ]


def test_average_precision_of_nothing_is_zero() -> None:
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 3) == 0


def test_clustering_by_hand() -> None:
    """Classes 0 0 0 1 1 2 in clusters 5 5 6 6 6 6: each stands for a class, with 2 of 6 boxes each."""
    boxes = [(10.0 * i, 0.0, 10.0 * i + 4, 4.0) for i in range(6)]
    truth = scene(*boxes, labels=[0, 0, 0, 1, 1, 2])
    values = clustering(found(boxes, [0.9] * 6, [5, 5, 6, 6, 6, 6]), truth)
    assert values["acc"] == values["acc_many_to_one"] == pytest.approx(4 / 6)
    assert values["largest_cluster"] == pytest.approx(4 / 6)
    split = clustering(found(boxes, [0.9] * 6, [0, 1, 2, 3, 4, 5]), truth)
    assert split["acc"] == pytest.approx(3 / 6)
    assert split["acc_many_to_one"] == 1
    assert split["clusters_used"] == pytest.approx(6)


def test_acc_of_all_objects_counts_what_is_missed() -> None:
    """Four objects, three found, one of them twice: the box of the higher score speaks for it."""
    boxes = [
        (0.0, 0.0, 10.0, 10.0),
        (20.0, 0.0, 30.0, 10.0),
        (40.0, 0.0, 50.0, 10.0),
        (60.0, 0.0, 70.0, 10.0),
    ]
    truth = scene(*boxes, labels=[0, 0, 1, 1])
    seen = [boxes[0], boxes[1], boxes[2], (40.0, 0.0, 50.0, 11.0)]
    for scores, right in (([0.9, 0.9, 0.8, 0.7], 3), ([0.9, 0.9, 0.7, 0.8], 2)):
        values = clustering(found(seen, scores, [3, 3, 5, 3]), truth)
        assert values["acc_all"] == right / 4
        assert values["objects_found"] == 3 / 4
        assert values["acc"] == 3 / 4


def test_f1_by_hand() -> None:
    """Three objects; one found, one found twice, one missed, a box on nothing, and one that does not count."""
    boxes = [(0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)]
    seen = [boxes[0], boxes[1], (20.0, 0.0, 30.0, 11.0), (60.0, 0.0, 70.0, 10.0), boxes[2]]
    values = f1(found(seen, [0.9, 0.9, 0.8, 0.5, 0.49]), scene(*boxes))
    assert values == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7})
    assert f1(found([], []), scene(*boxes)) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_which_boxes_are_clustered() -> None:
    """Score 0.5 counts, 0.49 does not; a second box on an object counts; the class is the best object's."""
    truth = scene((0, 0, 10, 10), (0, 0, 10, 12), labels=[0, 1])
    exact, taller = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 11.9)
    detections = found([exact, exact, taller, exact], [0.9, 0.5, 0.6, 0.49], [0, 0, 1, 1])
    assert clustering(detections, truth)["acc"] == 1
    assert clustering(detections, truth)["objects_found"] == 1
    assert clustering(detections, truth)["largest_cluster"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", range(2, 8))
def test_clusters_that_say_nothing_of_the_classes_have_no_information(classes: int) -> None:
    """One box of every class in each of six clusters: 0, never a little less by rounding."""
    boxes = [(10.0 * i, 0.0, 10.0 * i + 4, 4.0) for i in range(6 * classes)]
    labels, clusters = zip(*itertools.product(range(classes), range(6)), strict=True)
    nmi = clustering(found(boxes, [0.9] * len(boxes), list(clusters)), scene(*boxes, labels=list(labels)))[
        "nmi"
    ]
    assert 0 <= nmi < 1e-12


def test_cluster_ids_are_names_only() -> None:
    detections, truth = apart(3)
    huge = Detections(
        truth.images, detections.image, detections.boxes, detections.scores, detections.clusters + 2**62
    )
    assert clustering(huge, truth) == clustering(detections, truth)


def test_gmair_admits_an_image_at_its_lowest_score() -> None:
    """Image 0: right at .9, wrong at .6. Image 1: right at .7. The script admits 1 first, then all of 0.

    So its curve is (1/2, 1), (1, 2/3) and its AP 5/6, where the standard's is 1.
    """
    truth = GroundTruth.of([torch.tensor([[0.0, 0, 10, 10]])] * 2, [torch.zeros(1)] * 2)
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [0, 0, 10, 10]])
    detections = Detections(2, torch.tensor([0, 0, 1]), boxes, torch.tensor([0.9, 0.6, 0.7]))
    assert ap50(detections, truth)["ap50"] == 1
    assert ap50_gmair(detections, truth)["ap50_gmair"] == pytest.approx(5 / 6)


def test_gmair_forgives_images_without_objects() -> None:
    truth = GroundTruth.of(
        [torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4)], [torch.zeros(1), torch.zeros(0)]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    detections = Detections(2, torch.tensor([0, 1]), boxes, torch.tensor([0.6, 0.9]))
    assert ap50_gmair(detections, truth)["ap50_gmair"] == 1
    assert ap50(detections, truth)["ap50"] == 0.5


def test_noise_is_of_no_class() -> None:
    """Classes 0 0 1 1 in clusters 5 -1 -1 -1: one of four is right, though three of them share a number."""
    boxes = [(10.0 * i, 0.0, 10.0 * i + 4, 4.0) for i in range(4)]
    truth = scene(*boxes, labels=[0, 0, 1, 1])
    values = clustering(found(boxes, [0.9] * 4, [5, -1, -1, -1]), truth)
    assert values["acc"] == values["acc_many_to_one"] == 0.25
    assert values["largest_cluster"] == 0.75
    same_but_a_cluster = clustering(found(boxes, [0.9] * 4, [5, 6, 6, 6]), truth)
    assert values["nmi"] == same_but_a_cluster["nmi"] > 0
    assert same_but_a_cluster["acc"] == 0.75


def test_all_noise_is_worth_nothing_and_found_all_the_same() -> None:
    detections, truth = apart(5)
    noise = Detections(
        truth.images,
        detections.image,
        detections.boxes,
        detections.scores,
        torch.full_like(detections.clusters, -1),
    )
    values = everything(noise, truth)
    assert [values[n] for n in ("acc", "acc_many_to_one", "nmi", "largest_cluster")] == [0, 0, 0, 1]
    assert values["ap50"] == values["objects_found"] == values["coco_ap"] == 1


def test_overlaps_computed_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(30):
        detections, truth = crowded(seed)
        whole, values = overlaps(detections, truth), everything(detections, truth)
        monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 3)
        assert all(map(np.array_equal, whole, overlaps(detections, truth)))
        assert same(values, everything(detections, truth))
        monkeypatch.undo()


# COCO


def by_pycocotools(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """coco_ap's values as pycocotools has them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(boxes: torch.Tensor) -> list[list[float]]:
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().tolist()

    annotated = COCO()
    annotated.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(truth.images)],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": 1.0, "iscrowd": 0}
            for i, (image, box) in enumerate(zip(truth.image.tolist(), xywh(truth.boxes), strict=True), 1)
        ],
    }
    results = [
        {"image_id": image, "category_id": 1, "bbox": box, "score": score}
        for image, box, score in zip(
            detections.image.tolist(), xywh(detections.boxes), detections.scores.tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.createIndex()
        evaluation = COCOeval(annotated, annotated.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("coco_ap", "coco_ap75", "coco_ar"), evaluation.stats[[0, 2, 8]].tolist(), strict=True))


def scattered(seed: int) -> tuple[Detections, GroundTruth]:
    """Overlapping objects, most of them found more than once, not exactly; no two IoUs or scores are equal."""
    draw = np.random.default_rng(seed)
    images, n, m = int(draw.integers(1, 6)), int(draw.integers(1, 40)), int(draw.integers(1, 100))

    def boxes(count: int) -> torch.Tensor:
        corner = draw.uniform(0, 30, (count, 2))
        return torch.tensor(np.concatenate([corner, corner + draw.uniform(3, 20, (count, 2))], 1))

    truth_image = torch.tensor(np.sort(draw.integers(0, images, n)))
    truth = GroundTruth(images, truth_image, boxes(n), torch.zeros(n).long())
    near, picked = torch.tensor(draw.random(m) < 0.7), draw.integers(0, n, m)
    moved = truth.boxes[picked] + torch.tensor(draw.normal(0, 1, (m, 4)))
    where = torch.where(near[:, None], moved, boxes(m))
    where[:, 2:] = torch.maximum(where[:, 2:], where[:, :2] + 0.5)
    image = torch.where(near, truth_image[picked], torch.tensor(draw.integers(0, images, m)))
    return Detections(images, image, where, torch.tensor(draw.permutation(m) / m)), truth


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_coco_ap_is_that_of_pycocotools(seed: int) -> None:
    """Where no score occurs twice, and no image has more than 100 detections."""
    detections, truth = scattered(seed)
    assert coco_ap(detections, truth) == pytest.approx(by_pycocotools(detections, truth), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([0.3, 0.5, 0.75, 1.0]))
def test_coco_matching_is_taking_turns(seed: int, threshold: float) -> None:
    """Also where scores, IoUs and boxes are equal."""
    detections, truth = crowded(seed)
    pairs = close_pairs(detections, truth, 0.3)
    ranks = coco_ranks(detections, pairs)
    taken, hits = set(), set()
    for i in np.argsort(ranks):
        mine = [k for k in np.flatnonzero(pairs.detection == i) if pairs.truth[k] not in taken]
        mine = [k for k in mine if pairs.iou[k] >= min(threshold, 1 - 1e-10)]
        if mine:
            taken.add(pairs.truth[max(mine, key=lambda k: (pairs.iou[k], k))])
            hits.add(int(i))
    assert set(np.flatnonzero(match_coco(ranks, pairs, threshold)).tolist()) == hits
    assert (np.diff(detections.scores.numpy()[np.argsort(ranks)]) <= 0).all()


def test_coco_ap_averages_ten_thresholds() -> None:
    """An IoU of .72 passes .50, .55, .60, .65 and .70: five of ten. Clusters do not matter."""
    boxes = [(30.0 * i, 0.0, 30.0 * i + 10, 10.0) for i in range(3)]
    shorter = [(30.0 * i, 0.0, 30.0 * i + 10, 7.2) for i in range(3)]
    detections = found(shorter, [0.9, 0.2, 0.4], [1, 2, 3])
    values = coco_ap(detections, scene(*boxes, labels=[0, 1, 2]))
    assert values == pytest.approx({"coco_ap": 0.5, "coco_ap75": 0.0, "coco_ar": 0.5})


def test_coco_ap_of_equal_scores_is_one_value() -> None:
    """Two right and two wrong of one score: precision 1/2, in whatever order they are listed."""
    boxes = [(0.0, 0, 20, 20), (30.0, 30, 50, 50), (70.0, 70, 90, 90), (100.0, 100, 120, 120)]
    for order in itertools.permutations(boxes):
        assert coco_ap(found(list(order), [0.6] * 4), scene(*boxes[:2]))["coco_ap"] == pytest.approx(0.5)


def test_coco_ap_has_no_cut_at_a_hundred() -> None:
    boxes = [
        (20.0 * (i % 15), 20.0 * (i // 15), 20.0 * (i % 15) + 9, 20.0 * (i // 15) + 9) for i in range(150)
    ]
    detections = found(boxes, [1 - i / 1000 for i in range(150)])
    assert set(coco_ap(detections, scene(*boxes)).values()) == {1.0}


def test_coco_ap_of_one_object() -> None:
    assert set(coco_ap(found([(1, 2, 5, 9)], [0.3]), scene((1, 2, 5, 9))).values()) == {1.0}


# What is registered


def test_every_metric_is_documented_and_complete() -> None:
    detections, truth = apart(1)
    names: list[str] = []
    for spec in objbench_metrics():
        metric = load_target(spec.target)
        values = metric(detections, truth)
        assert all(type(value) is float for value in values.values()), spec.name
        assert {*spec.columns, *spec.healthy} <= values.keys()
        assert all(
            low <= values[name] <= high for name, (low, high) in spec.healthy.items() if name == "ap50"
        )
        assert "NaN" in metric.__doc__
        names += values
    assert len(names) == len(set(names))
    assert {"ap50", "acc", "acc_many_to_one", "nmi", "count_error", "coco_ap", "ap50_gmair"} <= set(names)
    headings = [heading for spec in objbench_metrics() for heading in spec.columns.values()]
    assert headings == ["AP (%, IoU=0.5)", "ACC (%)", "NMI (%)"]


def test_listing_metrics_imports_nothing_heavy() -> None:
    code = "import sys, objbench_plugins.metrics as m; m.objbench_metrics(); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "scipy", "pycocotools"} & set(modules)
