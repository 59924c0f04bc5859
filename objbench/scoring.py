"""Runs every registered metric on one set of detections."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch

from objbench.detector import NOISE, Detections
from objbench.errors import told
from objbench.hookspecs import MetricSpec
from objbench.plugins import Registry, load_target
from objbench.scenes import GroundTruth


def to_stderr(text: str) -> None:
    """Shows a warning to whoever runs the program."""
    print(f"objbench: {text}", file=sys.stderr)


def score(
    registry: Registry,
    detections: Detections,
    truth: GroundTruth,
    complain: Callable[[str], None] = to_stderr,
) -> dict[str, float]:
    """Every value of every registered metric, by the value's name. See `score_each`."""
    found = score_each(registry, detections, truth, complain)
    return {name: value for _, values in found for name, value in values.items()}


def score_each(
    registry: Registry, detections: Detections, truth: GroundTruth, complain: Callable[[str], None]
) -> Iterator[tuple[MetricSpec, dict[str, float]]]:
    """Each registered metric with its values, in the order of registration.

    A metric that raises, or returns what it should not, is left out, and `complain` is called with one line
    that names it; the others are not touched by it. What a metric prints goes to stderr. Raises
    ValueError when the detections break their contract.
    """
    check(detections, truth)
    owner: dict[str, str] = {}
    for name, spec in registry.metrics.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = load_target(spec.target)(detections, truth)
            values = {str(key): float(value) for key, value in found.items()}
            if twice := sorted(values.keys() & owner.keys()):
                raise ValueError(
                    f"it returns '{twice[0]}', which metric '{owner[twice[0]]}' has returned already"
                )
        except Exception as error:
            complain(f"metric '{name}' failed: {told(error)}")
            continue
        owner.update(dict.fromkeys(values, name))
        yield spec, values


def metric_versions(registry: Registry) -> dict[str, int]:
    """The version of each metric's definition, by the metric's name; figures of another are out of date."""
    return {name: spec.version for name, spec in registry.metrics.items()}


def check(detections: Detections, truth: GroundTruth) -> None:
    """Raises ValueError, saying how many and of what, when detections break their contract.

    A NaN would not stop a metric: it would be ranked somewhere, and the figure would look like any other.
    """
    if detections.images != truth.images:
        raise ValueError(f"detections of {detections.images} images, but the truth of {truth.images}")
    bad = {
        "an image index out of range": (detections.image < 0) | (detections.image >= detections.images),
        "a box that is not finite": ~torch.isfinite(detections.boxes).all(dim=1),
        "a score that is not in 0..1": ~((detections.scores >= 0) & (detections.scores <= 1)),
    }
    if detections.clusters is not None:
        bad["a negative cluster other than -1 (noise)"] = detections.clusters < NOISE
    for what, where in bad.items():
        if count := int(where.sum()):
            raise ValueError(f"{count} of {len(where)} detections have {what}")
