"""Runs every registered metric on one set of detections."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from objbench.cells.result import CellResult
from objbench.detector import Detections
from objbench.errors import told
from objbench.hookspecs import MetricSpec
from objbench.plugins import Registry, load_target
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_truth


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
        bad["a negative cluster"] = detections.clusters < 0
    for what, where in bad.items():
        if count := int(where.sum()):
            raise ValueError(f"{count} of {len(where)} detections have {what}")


def rescored(registry: Registry, result: CellResult) -> CellResult:
    """A done cell's result by the metrics as they are now; the record is brought up to date."""

    from objbench.cells.store import update_record

    fresh = rescore(registry, result)
    if fresh is not result:
        update_record(fresh)
    return fresh


def rescore(registry: Registry, result: CellResult) -> CellResult:
    """The result by the metrics as they are now, from raw detections; itself if it is by these already."""
    versions = registry.metric_versions
    if result.status != "done" or result.provenance["metric_versions"] == versions:
        return result
    folder = Path(result.path)
    metrics = score(registry, load_detections(folder), load_truth(folder))
    return replace(result, metrics=metrics, provenance=result.provenance | {"metric_versions": versions})
