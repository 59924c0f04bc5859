"""Computes all registered metrics for one set of detections."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from objbench.cells.about import plugin_of
from objbench.cells.code import code_of, digest
from objbench.cells.result import CellResult
from objbench.detector import Detections
from objbench.errors import error_line
from objbench.guarded import Ask, PluginFailed, ask_here, calling
from objbench.hookspecs import MetricSpec
from objbench.plugins import Registry, load_target
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_truth

Listed = TypeVar("Listed", Detections, GroundTruth)


def to_stderr(text: str) -> None:
    """Prints a warning to stderr."""
    print(f"objbench: {text}", file=sys.stderr, flush=True)


def score(
    registry: Registry,
    detections: Detections,
    truth: GroundTruth,
    complain: Callable[[str], None] = to_stderr,
) -> dict[str, float]:
    """All values of all registered metrics, by the value's name. See `score_each`."""
    found = score_each(registry, detections, truth, complain)
    return {name: value for _, values in found for name, value in values.items()}


def score_each(
    registry: Registry,
    detections: Detections,
    truth: GroundTruth,
    complain: Callable[[str], None],
    ask: Ask = ask_here,
) -> Iterator[tuple[MetricSpec, dict[str, float]]]:
    """Each registered metric with its values, in the order of registration.

    A metric that raises an error or returns invalid values is left out, and `complain` is called with one line that
    names it. Each metric gets its own copy of the detections, so that no metric can change the input of another.
    What a metric prints goes to stderr. ask: how metrics are called. Raises ValueError when the detections break
    their contract.
    """
    check(detections, truth)
    owner: dict[str, str] = {}
    for name, spec in registry.metrics.items():
        try:
            values = ask(f"metric '{name}'", _values, spec, detections, truth)
            if twice := sorted(values.keys() & owner.keys()):
                raise ValueError(
                    f"it returns '{twice[0]}', which metric '{owner[twice[0]]}' has returned already"
                )
        except Exception as error:
            what = error.what if isinstance(error, PluginFailed) else error_line(error)
            complain(f"metric '{name}' failed: {what}")
            continue
        owner.update(dict.fromkeys(values, name))
        yield spec, values


def _values(spec: MetricSpec, detections: Detections, truth: GroundTruth) -> dict[str, float]:
    with calling(f"metric '{spec.name}'", "its function"):
        found = load_target(spec.target)(copied(detections), copied(truth))
        return {str(key): float(value) for key, value in found.items()}


def copied(listed: Listed) -> Listed:
    """A copy whose tensors can be changed."""
    copies: dict[str, Any] = {k: v.clone() for k, v in vars(listed).items() if isinstance(v, torch.Tensor)}
    return replace(listed, **copies)


def check(detections: Detections, truth: GroundTruth) -> None:
    """Raises ValueError when the detections break their contract, or their number of images is not the truth's."""
    if detections.images != truth.images:
        raise ValueError(f"detections of {detections.images} images, but the truth of {truth.images}")
    if fault := detections.fault():
        raise ValueError(fault)


def by_these_metrics(registry: Registry, specs: Iterable[MetricSpec]) -> dict[str, dict[str, Any]]:
    """What a record contains about the metrics that computed its figures, by name: versions, digests of their code,
    columns, and plugins."""
    names = {spec.name for spec in specs}
    return {
        "metric_versions": {name: v for name, v in registry.metric_versions.items() if name in names},
        "metric_code": {
            name: digest(code_of(spec.target)) for name, spec in registry.metrics.items() if name in names
        },
        "metric_columns": {
            name: dict(spec.columns) for name, spec in registry.metrics.items() if name in names
        },
        "metric_plugins": {name: plugin_of(registry, "metric", name) for name in sorted(names)},
    }


def rescore(
    registry: Registry,
    result: CellResult,
    complain: Callable[[str], None] = to_stderr,
    ask: Ask = ask_here,
    anew: bool = False,
) -> CellResult:
    """The result with metrics recomputed from raw detections; unchanged if the metrics are up to date.

    A metric that failed last time is not in the result's versions, so it is computed again.
    complain, ask: as in `score_each`. anew: recompute even if the metrics are up to date.
    """
    then = result.provenance["metric_versions"]
    if result.status != "done" or (registry.up_to_date(then) and not anew):
        return result
    folder = Path(result.path)
    scored = list(score_each(registry, load_detections(folder), load_truth(folder), complain, ask))
    metrics = {name: value for _, values in scored for name, value in values.items()}
    by = by_these_metrics(registry, [spec for spec, _ in scored])
    for name in then:
        if registry.is_gone("metric", name):  # its old values cannot be computed again, so they are kept
            by = {part: of | _only(result.provenance.get(part, {}), name) for part, of in by.items()}
            columns = result.provenance.get("metric_columns", {}).get(name, {})
            metrics = {v: result.metrics[v] for v in columns if v in result.metrics} | metrics
    if not anew and metrics.keys() == result.metrics.keys() and by["metric_versions"] == then:
        return result  # the metrics that had failed have failed again
    return replace(result, metrics=metrics, provenance=result.provenance | by)


def _only(of: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: of[name]} if name in of else {}
