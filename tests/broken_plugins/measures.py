"""A sound metric, and one for each check of the kit that breaks what the check looks for."""

import torch

from objbench import MetricSpec, hookimpl


def sound(detections, truth):
    return {"boxes": len(detections.boxes) / max(1, truth.images)}


def values(detections, truth):
    return {"boxes": torch.tensor(1.0)}


def columns(detections, truth):
    return {"boxen": 1.0}


def pure(detections, truth):
    detections.scores.mul_(0.5)
    return sound(detections, truth)


def order(detections, truth):
    return {"boxes": float(detections.scores[0]) if len(detections.scores) else 0.0}


def ties(detections, truth):
    """Depends on the order of detections of one score alone, as a stable sort keeps it."""
    order = detections.scores.argsort(descending=True, stable=True)
    return {"boxes": float((detections.boxes[order, 0] * torch.arange(len(order))).sum())}


def clusters(detections, truth):
    same = detections.clusters is not None and len(detections.clusters)
    return {"boxes": float((detections.clusters == 1).float().mean()) if same else 0.0}


def edges(detections, truth):
    return {"boxes": 1 / len(detections.boxes)}


def weighted(detections, truth):
    """Weighs scenes by whether a draw holds them, not by how often."""
    counts = torch.bincount(detections.image, minlength=truth.images).numpy()
    return lambda weights: {"boxes": (weights > 0) @ counts / truth.images}


BROKEN = {
    "values": values,
    "columns": columns,
    "pure": pure,
    "order": order,
    "clusters": clusters,
    "edges": edges,
    "weighted": sound,
}
"""The check that each breaks."""


@hookimpl
def objbench_metrics():
    broken = [
        MetricSpec(
            f"bad-{name}",
            "broken",
            f"measures:{function.__name__}",
            columns={"boxes": "BOXES"},
            weighted="measures:weighted" if name == "weighted" else "",
        )
        for name, function in BROKEN.items()
    ]
    broken.append(
        MetricSpec("ties", "hangs on the order of ties", "measures:ties", columns={"boxes": "BOXES"})
    )
    return [MetricSpec("sound", "breaks nothing", "measures:sound", columns={"boxes": "BOXES"}), *broken]
