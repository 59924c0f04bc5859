"""How long the metrics take on 10,000 images with 20 detections each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from objbench.metric import Detections, GroundTruth
from objbench_plugins.metrics.clustering import clustering
from objbench_plugins.metrics.detection import ap50, ap50_gmair, coco_ap, count_error

IMAGES, DETECTIONS, OBJECTS = 10_000, 20, 10


def example(
    images: int = IMAGES, detections: int = DETECTIONS, most: int = OBJECTS
) -> tuple[Detections, GroundTruth]:
    """1 to `most` objects an image; half of the detections lie near one of them, half anywhere."""
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(1, most + 1, (images,), generator=draw)
    image = torch.repeat_interleave(torch.arange(images), counts)
    corner = torch.rand(len(image), 2, generator=draw) * 112
    size = 10 + 6 * torch.rand(len(image), 2, generator=draw)
    labels = torch.randint(0, 10, (len(image),), generator=draw)
    truth = GroundTruth(images, image, torch.cat([corner, corner + size], 1), labels)

    found_in = torch.repeat_interleave(torch.arange(images), detections)
    picked = (torch.rand(len(found_in), generator=draw) * counts[found_in]).long() + (
        counts.cumsum(0) - counts
    )[found_in]
    near = truth.boxes[picked] + torch.randn(len(found_in), 4, generator=draw)
    corner = torch.rand(len(found_in), 2, generator=draw) * 112
    anywhere = torch.cat([corner, corner + 14], 1)
    good = torch.rand(len(found_in), generator=draw) < 0.5
    scores = (torch.rand(len(found_in), generator=draw) + good) / 2
    clusters = torch.where(torch.rand(len(found_in), generator=draw) < 0.8, labels[picked], 0)
    return Detections(images, found_in, torch.where(good[:, None], near, anywhere), scores, clusters), truth


def rows() -> list[dict[str, Any]]:
    """One row a metric, the best of three runs in seconds; and the sum of all but COCO's."""
    detections, truth = example()
    size = f"{IMAGES:,} images, {DETECTIONS} detections each, {len(truth.labels):,} objects"
    ours = {m.__name__: _seconds(m, detections, truth) for m in (ap50, clustering, count_error, ap50_gmair)}
    found = [{"name": f"metrics: {name}", "value": s, "unit": "s", "note": size} for name, s in ours.items()]
    total = {
        "name": "metrics: all of these",
        "value": sum(ours.values()),
        "unit": "s",
        "note": "asked for: under 3 s",
    }
    coco = {
        "name": "metrics: coco_ap",
        "value": _seconds(coco_ap, detections, truth, runs=1),
        "unit": "s",
        "note": size,
    }
    return [*found, total, coco]


def _seconds(metric: Callable[..., object], *arguments: object, runs: int = 3) -> float:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        metric(*arguments)
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<24} {row['value']:8.3f} s  {row['note']}")
