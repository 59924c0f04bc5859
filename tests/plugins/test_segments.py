"""Metrics of masks, against scikit-learn, pycocotools and plain loops."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import adjusted_rand_score

from objbench.detector import Detections
from objbench.masks import boxes_of, from_masks, pack, unpack
from objbench.scenes import GroundTruth
from objbench_plugins.metrics.segments import NAMES, segments

HEIGHT, WIDTH = 13, 21


def truth_of(labels: np.ndarray) -> GroundTruth:
    """From maps of objects [n, height, width]; 0 is the background."""
    masks = [torch.from_numpy(np.stack([m == j for j in np.unique(m[m > 0])] or [m > 99])) for m in labels]
    packed = [pack(m[m.flatten(1).any(1)]) for m in masks]
    return GroundTruth.of([boxes_of(p) for p in packed], [torch.zeros(len(p)) for p in packed], packed)


def found_of(labels: np.ndarray, scores: list[list[float]]) -> Detections:
    """From maps of segments [n, height, width], 0 is none; `scores` of segments 1, 2 ... in each image."""
    most = max(len(s) for s in scores)
    masks = np.stack([[m == j for j in range(1, most + 1)] for m in labels])
    padded = torch.tensor([s + [0.0] * (most - len(s)) for s in scores])
    return from_masks(torch.from_numpy(masks), padded)


def random_case(seed: int, images: int = 6) -> tuple[Detections, GroundTruth, np.ndarray, np.ndarray]:
    """Coarse blocks as objects; as segments the same with errors."""
    rng = np.random.default_rng(seed)
    real = np.kron(rng.integers(0, 5, (images, 3, 4)), np.ones((1, 5, 6), int))[:, :HEIGHT, :WIDTH]
    found = np.where(
        rng.random(real.shape) < rng.random((images, 1, 1)) / 2, rng.integers(0, 6, real.shape), real
    )
    scores = (rng.integers(5, 60, (images, 5)) / 60).tolist()
    return found_of(found, scores), truth_of(real), real, found


@pytest.mark.parametrize("seed", range(8))
def test_agreement_is_that_of_scikit_learn(seed: int) -> None:
    found, truth, real, segment = random_case(seed)
    found = Detections(
        found.images, found.image, found.boxes, torch.ones(len(found.image)), masks=found.masks
    )
    expected = [
        adjusted_rand_score(r[r > 0], s[r > 0]) for r, s in zip(real, segment, strict=True) if (r > 0).any()
    ]
    assert segments(found, truth)["fg_ari"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_agreement_where_it_is_degenerate() -> None:
    one, two = np.ones((1, 4, 4), int), np.repeat([[1, 2]], 8).reshape(1, 4, 4)
    nothing, pixel = np.zeros((1, 4, 4), int), np.zeros((1, 4, 4), int)
    pixel[0, 0, 0] = 1
    for name, real, segment, expected in (
        ("one object in one segment", one, one, 1.0),
        ("one object in two segments", one, two, 0.0),
        ("two objects in one segment", two, one, 0.0),
        ("the same two", two, two[:, :, ::-1] % 2 + 1, 1.0),
        ("one pixel", pixel, one, 1.0),
        ("nothing found", two, nothing, 0.0),
        ("one object and nothing found", one, nothing, 0.0),
        ("no foreground", nothing, one, math.nan),
    ):
        values = segments(found_of(segment, [[0.9, 0.8]]), truth_of(real))
        assert values["fg_ari"] == pytest.approx(expected, nan_ok=True), name
        if segment.any() and real.any():
            assert adjusted_rand_score(real[real > 0], segment[real > 0]) == pytest.approx(expected), name


def test_pixels_of_two_objects_are_no_foreground_and_the_higher_score_covers() -> None:
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, :, :5] = masks[1, :, 3:] = True  # columns 3 and 4 are of both
    truth = GroundTruth.of([boxes_of(pack(masks))], [torch.zeros(2)], [pack(masks)])
    segment = torch.zeros(2, 4, 8, dtype=torch.bool)
    segment[0], segment[1, :, :3] = True, True  # one covers all, the other the first object's own columns
    for scores, expected in (([0.6, 0.9], 1.0), ([0.9, 0.6], 0.0), ([0.9, 0.4], 0.0)):
        assert segments(from_masks(segment[None], torch.tensor([scores])), truth)["fg_ari"] == expected


@pytest.mark.parametrize("seed", range(4))
def test_mean_best_overlap_is_that_of_a_loop(seed: int) -> None:
    found, truth, _, _ = random_case(seed)
    assert found.masks is not None
    assert truth.masks is not None
    best = []
    for i, mask in zip(truth.image, unpack(truth.masks), strict=True):
        stands = (found.image == i) & (found.scores >= 0.5)
        ious = [float((m & mask).sum() / (m | mask).sum()) for m in unpack(found.masks)[stands]]
        best.append(max(ious, default=0.0))
    assert segments(found, truth)["mbo"] == pytest.approx(np.mean(best))


def coco_of(found: Detections, truth: GroundTruth) -> dict[str, float]:
    """What pycocotools itself says."""

    def encoded(masks: Any) -> list[Any]:
        return [rle.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in unpack(masks, WIDTH)]

    real = [
        {"id": j + 1, "image_id": int(i), "category_id": 1, "segmentation": m, "area": float(rle.area(m)), "iscrowd": 0}
        for j, (i, m) in enumerate(zip(truth.image, encoded(truth.masks), strict=True))
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},  # pycocotools 2.0.9 and 2.0.10 need it
            "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(truth.images)],
            "annotations": real,
            "categories": [{"id": 1, "name": "object"}],
        }
        coco.createIndex()
        results = coco.loadRes([
            {"image_id": int(i), "category_id": 1, "segmentation": m, "score": float(s)}
            for i, m, s in zip(found.image, encoded(found.masks), found.scores, strict=True)
        ])  # fmt: skip
        evaluation = COCOeval(coco, results, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"mask_ap": evaluation.stats[0], "mask_ap50": evaluation.stats[1]}


@pytest.mark.parametrize("seed", range(8))
def test_mask_ap_is_that_of_pycocotools(seed: int) -> None:
    found, truth, _, _ = random_case(seed, images=12)
    distinct = torch.randperm(len(found.image), generator=torch.Generator().manual_seed(seed))
    found = Detections(12, found.image, found.boxes, (distinct + 1) / (len(distinct) + 1), masks=found.masks)
    values, expected = segments(found, truth), coco_of(found, truth)
    assert 0.01 < values["mask_ap"] < 1
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-9), name


def test_without_masks_or_objects_there_is_nothing_to_measure() -> None:
    found, truth, _, _ = random_case(0)
    no_masks = Detections(found.images, found.image, found.boxes, found.scores)
    unknown = GroundTruth(truth.images, truth.image, truth.boxes, truth.labels)
    nothing = truth_of(np.zeros((6, HEIGHT, WIDTH), int))
    for case in ((no_masks, truth), (found, unknown), (found, nothing)):
        assert all(math.isnan(segments(*case)[name]) for name in NAMES)


def test_nothing_found_is_zero() -> None:
    _, truth, _, _ = random_case(0)
    none = from_masks(torch.zeros(6, 2, HEIGHT, WIDTH).bool(), torch.zeros(6, 2))
    assert segments(none, truth) == dict.fromkeys(NAMES, 0.0)


def test_masks_of_another_size_are_an_error() -> None:
    _, truth, _, _ = random_case(0)
    other = from_masks(torch.ones(6, 1, HEIGHT + 1, WIDTH).bool(), torch.ones(6, 1))
    with pytest.raises(ValueError, match="masks of"):
        segments(other, truth)
