"""AP of classes and kinds of errors, held against pycocotools, plain loops, and what must not matter."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objbench.cells.store import Store
from objbench.detector import Detections
from objbench.mistakes import BELOW, KINDS, ClassCurves, many_to_one, one_to_one, verdicts
from objbench.plugins import load_plugins
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_truth, select_scenes
from objbench.score.metrics import rescore
from objbench_plugins.metrics.classes import ap_class, ap_class_weighted, errors, errors_weighted

DEMO = Path(__file__).parents[2] / "results" / "demo"
COUNTS = ("right_count", "wrong_cluster_count", "duplicate_count", "badly_placed_count", "background_count")


def clustered(seed: int, ties: bool = False) -> tuple[Detections, GroundTruth]:
    """Overlapping objects of four classes and detections of five clusters, most of them near an object."""
    draw = np.random.default_rng(seed)
    images, n, m = int(draw.integers(1, 6)), int(draw.integers(1, 40)), int(draw.integers(1, 100))

    def boxes(count: int) -> torch.Tensor:
        corner = draw.uniform(0, 30, (count, 2))
        return torch.tensor(np.concatenate([corner, corner + draw.uniform(3, 20, (count, 2))], 1))

    labels = torch.tensor(draw.integers(0, 4, n))
    truth_image = torch.tensor(np.sort(draw.integers(0, images, n)))
    truth = GroundTruth(images, truth_image, boxes(n), labels)
    near, picked = torch.tensor(draw.random(m) < 0.7), draw.integers(0, n, m)
    moved = truth.boxes[picked] + torch.tensor(draw.normal(0, 1, (m, 4)))
    where = torch.where(near[:, None], moved, boxes(m))
    where[:, 2:] = torch.maximum(where[:, 2:], where[:, :2] + 0.5)
    image = torch.where(near, truth_image[picked], torch.tensor(draw.integers(0, images, m)))
    scores = draw.choice([0.2, 0.5, 0.8], m) if ties else draw.permutation(m) / m
    follows = torch.tensor(draw.random(m) < 0.6) & near
    clusters = torch.where(follows, labels[picked] + 1, torch.tensor(draw.integers(-1, 5, m)))
    return Detections(images, image, where, torch.tensor(scores), clusters), truth


def by_pycocotools(detections: Detections, truth: GroundTruth, class_of: dict[int, int]) -> float:
    """Its AP at IoU .5 over classes, once each cluster is replaced by the class that it stands for."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(boxes: torch.Tensor) -> list[list[float]]:
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().tolist()

    assert detections.clusters is not None
    annotated = COCO()
    annotated.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(truth.images)],
        "categories": [{"id": c + 1} for c in sorted({*truth.labels.tolist()})],
        "annotations": [
            {"id": i, "image_id": image, "category_id": c + 1, "bbox": box, "area": 1.0, "iscrowd": 0}
            for i, (image, c, box) in enumerate(
                zip(truth.image.tolist(), truth.labels.tolist(), xywh(truth.boxes), strict=True), 1
            )
        ],
    }
    rows = zip(
        detections.image.tolist(), detections.clusters.tolist(), xywh(detections.boxes),
        detections.scores.tolist(), strict=True,
    )  # fmt: skip
    results = [
        {"image_id": image, "category_id": class_of[cluster] + 1, "bbox": box, "score": score}
        for image, cluster, box, score in rows
        if cluster in class_of
    ]
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.createIndex()
        evaluation = COCOeval(annotated, annotated.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


@pytest.mark.parametrize("seed", range(100))
def test_both_are_those_of_pycocotools_after_the_mapping(seed: int) -> None:
    detections, truth = clustered(seed)
    curves = ClassCurves(detections, truth)
    values = ap_class(detections, truth)
    for name, mapping in (("ap_class", one_to_one(curves)), ("ap_class_many", many_to_one(curves))):
        assert values[name] == pytest.approx(by_pycocotools(detections, truth, mapping), abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_the_mapping_is_the_best_of_all(seed: int) -> None:
    """By going through every assignment: the most matches, then the highest figure."""
    detections, truth = clustered(seed)
    curves = ClassCurves(detections, truth)
    classes, names = curves.classes.tolist(), curves.names.tolist()
    best = (-1, -1.0)
    for order in itertools.permutations([*names, *[None] * len(classes)], len(classes)):
        pairs = [(r, names.index(c)) for r, c in enumerate(order) if c is not None]
        pairs = [pair for pair in pairs if curves.table[pair]]
        total = sum(curves.precision(classes[r], [names[c]]) for r, c in pairs) / len(classes)
        best = max(best, (int(sum(curves.table[pair] for pair in pairs)), round(total, 12)))
    chosen = one_to_one(curves)
    right = sum(curves.table[classes.index(label), names.index(c)] for c, label in chosen.items())
    assert (right, pytest.approx(ap_class(detections, truth)["ap_class"])) == best
    assert len(set(chosen.values())) == len(chosen)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_neither_numbers_nor_orders_matter(seed: int, ties: bool) -> None:
    detections, truth = clustered(seed, ties)
    assert detections.clusters is not None
    plain = ap_class(detections, truth) | errors(detections, truth)
    draw = torch.Generator().manual_seed(seed % 2**31)
    rename = torch.cat([100 + torch.randperm(5, generator=draw), torch.tensor([-1])])  # the last is noise
    moved = torch.randperm(len(detections.image), generator=draw)
    place = torch.randperm(truth.images, generator=draw)
    objects = torch.randperm(len(truth.labels), generator=draw)
    other = Detections(
        truth.images, place[detections.image[moved]], detections.boxes[moved], detections.scores[moved],
        rename[detections.clusters[moved]],
    )  # fmt: skip
    there = GroundTruth(
        truth.images, place[truth.image[objects]], truth.boxes[objects], truth.labels[objects]
    )
    assert ap_class(other, there) | errors(other, there) == pytest.approx(plain, abs=1e-12, nan_ok=True)


def by_loops(detections: Detections, truth: GroundTruth) -> dict[str, int]:
    """Kinds of errors by their definition, one detection after another."""

    def iou(a: list[float], b: list[float]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = max(width, 0) * max(height, 0)
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

    assert detections.clusters is not None
    class_of = one_to_one(ClassCurves(detections, truth))
    taken: set[int] = set()
    counts = dict.fromkeys([*(k for k in KINDS), "missed"], 0)
    for i in sorted(range(len(detections.image)), key=lambda i: -detections.scores[i]):
        ours = {
            j: iou(detections.boxes[i].tolist(), truth.boxes[j].tolist())
            for j in range(len(truth.labels))
            if truth.image[j] == detections.image[i]
        }
        free = [j for j in ours if j not in taken and ours[j] >= 0.5]
        best = max(ours.values(), default=0.0)
        if detections.scores[i] < 0.5:
            counts["below threshold"] += 1
        elif free:
            mine = max(free, key=lambda j: ours[j])
            taken.add(mine)
            right = class_of.get(int(detections.clusters[i])) == int(truth.labels[mine])
            counts["right" if right else "wrong cluster"] += 1
        else:
            counts["duplicate" if best >= 0.5 else "badly placed" if best >= 0.1 else "background"] += 1
    return counts | {"missed": len(truth.labels) - len(taken)}


@pytest.mark.parametrize("seed", range(40))
def test_kinds_are_those_of_the_definition_and_add_up(seed: int) -> None:
    detections, truth = clustered(seed)
    said, values, expected = (
        verdicts(detections, truth),
        errors(detections, truth),
        by_loops(detections, truth),
    )
    counted = {kind: int((said.kind == i).sum()) for i, kind in enumerate(KINDS)} | {
        "missed": int(said.missed.sum())
    }
    assert counted == expected
    assert {k: values[f"{k.replace(' ', '_')}_count"] for k in expected if k != KINDS[BELOW]} == {
        k: v for k, v in expected.items() if k != KINDS[BELOW]
    }
    boxes = int((detections.scores >= 0.5).sum())
    assert sum(values[name] for name in COUNTS) == boxes == values["boxes_count"]
    assert sum(values[f"{n}_count"] for n in ("right", "wrong_cluster", "missed")) == len(truth.labels)
    assert sum(expected.values()) == len(detections.image) + expected["missed"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [False, True])
def test_the_weighted_forms_agree(seed: int, ties: bool) -> None:
    detections, truth = clustered(seed, ties)
    draw = np.random.default_rng(seed)
    draws = draw.integers(truth.images, size=(6, truth.images))
    weights = np.stack([np.bincount(d, minlength=truth.images) for d in draws])
    for metric, weighted in ((ap_class, ap_class_weighted), (errors, errors_weighted)):
        for found in (detections, replace(detections, clusters=None)):
            values = weighted(found, truth)(weights)
            for i, d in enumerate(draws):
                expected = metric(*select_scenes(found, truth, torch.from_numpy(d)))
                mine = {name: float(v[i]) for name, v in values.items()}
                assert mine == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_perfect_detector_and_one_that_names_nothing_right() -> None:
    _, truth = clustered(3)
    truth = replace(truth, boxes=truth.boxes + 60 * torch.arange(len(truth.boxes))[:, None])  # apart
    scores = torch.linspace(0.6, 0.9, len(truth.labels))
    perfect = Detections(truth.images, truth.image, truth.boxes, scores, truth.labels + 5)
    assert ap_class(perfect, truth) == {"ap_class": 1.0, "ap_class_many": 1.0}
    alone = replace(perfect, clusters=torch.full_like(truth.labels, -1))
    assert ap_class(alone, truth) == {"ap_class": 0.0, "ap_class_many": 0.0}
    assert errors(alone, truth)["wrong_cluster"] == 1
    assert math.isnan(ap_class(replace(perfect, clusters=None), truth)["ap_class"])
    assert errors(replace(perfect, clusters=None), truth)["right"] == 1
    one_each = replace(perfect, clusters=torch.arange(len(truth.labels)))
    assert ap_class(one_each, truth)["ap_class_many"] == 1 > ap_class(one_each, truth)["ap_class"]


@pytest.mark.slow
def test_the_demo_is_scored_anew_without_training_in_half_a_minute() -> None:
    registry = load_plugins(())
    results, _ = Store(DEMO).results()
    took, done = 0.0, [r for r in results if r.status == "done"]
    for result in done:
        began = time.process_time()
        found, truth = load_detections(Path(result.path)), load_truth(Path(result.path))
        values = ap_class(found, truth) | errors(found, truth)
        took += time.process_time() - began
        assert 0 < values["ap_class"] <= 1
        assert 0 < values["ap_class_many"] <= 1
        assert sum(values[name] for name in COUNTS) == values["boxes_count"]
    assert len(done) == 24
    assert took < 30
    assert {"ap_class", "missed"} <= rescore(registry, done[0]).metrics.keys()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [False, True])
def test_all_pairs_at_once_are_what_each_is_alone(seed: int, ties: bool) -> None:
    detections, truth = clustered(seed, ties)
    curves = ClassCurves(detections, truth)
    classes, names = curves.classes.tolist(), curves.names.tolist()
    alone = np.zeros(curves.table.shape)
    for row, column in zip(*curves.table.nonzero(), strict=True):
        alone[row, column] = curves.precision(classes[row], [names[column]])
    assert np.array_equal(curves.precisions(), alone)
    for mapping in (one_to_one(curves), many_to_one(curves)):
        total = 0.0
        for label in classes:
            total += curves.precision(label, [c for c, mine in mapping.items() if mine == label])
        assert curves.mean_precision(mapping) == total / len(classes)


def test_many_classes_and_clusters_take_no_time_for_each_pair_of_them() -> None:
    """30,000 detections in 80 clusters of 80 classes; a pass over all of them for each pair takes minutes."""
    draw = np.random.default_rng(0)
    images, objects, each = 300, 10, 10
    image = np.repeat(np.arange(images), objects)
    corner = draw.uniform(0, 400, (len(image), 2))
    boxes = np.concatenate([corner, corner + draw.uniform(10, 80, (len(image), 2))], 1)
    truth = GroundTruth(
        images,
        torch.from_numpy(image),
        torch.from_numpy(boxes),
        torch.from_numpy(draw.integers(0, 80, len(image))),
    )
    near = np.repeat(np.arange(len(image)), each)
    found = boxes[near] + draw.normal(0, 3, (len(near), 4))
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    detections = Detections(
        images,
        torch.from_numpy(image[near]),
        torch.from_numpy(found),
        torch.from_numpy(draw.random(len(near))),
        torch.from_numpy(draw.integers(0, 80, len(near))),
    )
    began = time.process_time()
    assert 0 < ap_class(detections, truth)["ap_class"] < 0.1
    assert errors(detections, truth)["boxes_count"] == (detections.scores >= 0.5).sum()
    assert time.process_time() - began < 4
