"""Checks of metrics."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objbench.conformance import registration
from objbench.conformance.kit import Check, DoesNotApply, Wrong, collector
from objbench.conformance.shapes import SIDE, Shapes, ShapesConfig
from objbench.detector import Detections
from objbench.hookspecs import MetricSpec
from objbench.masks import pack
from objbench.metric import Metric
from objbench.plugins import Registry, load_target
from objbench.scenes import GroundTruth
from objbench.score.arrays import select_scenes
from objbench.score.random_state import rng_states

IMAGES = 24
LATENT = 3
DRAWS = 8

CHECKS: list[Check] = []
check = collector(CHECKS)


class MetricSubject:
    """A registered metric."""

    kind = "metric"
    checks = CHECKS

    def __init__(self, registry: Registry, spec: MetricSpec) -> None:
        self.registry, self.spec, self.name = registry, spec, spec.name

    @cached_property
    def metric(self) -> Metric:
        """The function that the spec names."""
        metric: Metric = load_target(self.spec.target)
        return metric

    def values(self, found: Detections, truth: GroundTruth) -> dict[str, float]:
        """The values that it returns for these detections and truth."""
        return {name: float(value) for name, value in self.metric(found, truth).items()}


def truth_and_detections() -> tuple[Detections, GroundTruth]:
    """Scenes of the kit, with detections as of an average detector: most objects, slightly shifted, and false ones."""
    truth = Shapes(ShapesConfig(), seed=0).scenes("test", torch.arange(IMAGES)).truth
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(len(truth.boxes), generator=generator) < 0.8
    image = torch.cat([truth.image[kept], torch.arange(0, IMAGES, 2)])
    boxes = torch.cat([truth.boxes[kept], torch.tensor([[1.0, 2, 12, 14]]).repeat(IMAGES // 2, 1)])
    boxes = boxes + torch.rand(boxes.shape, generator=generator) * torch.tensor([-1.5, -1.5, 1.5, 1.5])
    m = len(image)
    clusters = torch.cat([truth.labels[kept], torch.zeros(IMAGES // 2).long()])
    clusters[::5] = 3
    scores = (torch.randperm(m, generator=generator) // 3 + 1) / (
        m // 3 + 2
    )  # ties: three detections per score
    latents = torch.randn(m, LATENT, generator=generator)
    found = Detections(IMAGES, image, boxes, scores, clusters, latents, _filled(boxes))
    return found, replace(truth, masks=_filled(truth.boxes))


def _filled(boxes: Tensor) -> Tensor:
    """The packed masks [m, SIDE, bytes] of all pixels whose middle is in a box."""
    place = torch.arange(SIDE) + 0.5
    rows, columns = ((boxes[:, axis, None] <= place) & (place < boxes[:, axis + 2, None]) for axis in (1, 0))
    return pack(rows[:, :, None] & columns[:, None])


def different(one: dict[str, float], other: dict[str, float]) -> str:
    """How two results differ beyond rounding; "" when they do not."""
    if one.keys() != other.keys():
        return f"returns {', '.join(one)}, then {', '.join(other)}"
    for name, value in one.items():
        alike = math.isclose(value, other[name], rel_tol=1e-6, abs_tol=1e-9)
        if not alike and not (math.isnan(value) and math.isnan(other[name])):
            return f"{name} is {value:.6g}, then {other[name]:.6g}"
    return ""


@check("registration", "registering", registration.EXPECTED)
def _registration(subject: MetricSubject) -> str:
    return registration.light(subject.registry, "metric", subject.name)


@check("code", "keys", registration.CODE)
def _code(subject: MetricSubject) -> str:
    return registration.code(subject.registry, "metric", subject.name)


@check(
    "values", "metrics", "a dict of named floats (not tensors), finite when there are objects and detections"
)
def _values(subject: MetricSubject) -> str:
    found = subject.metric(*truth_and_detections())
    if not isinstance(found, dict) or not found:
        raise Wrong(f"{found!r}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, float | int):
            raise Wrong(f"{name!r}: {value!r}")
    if undefined := [name for name, value in found.items() if not math.isfinite(value)]:
        raise Wrong(f"{undefined[0]} is {found[undefined[0]]} for boxes of an average detector")
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


@check(
    "columns", "metrics", "all names in the spec's columns and healthy ranges are among the returned values"
)
def _columns(subject: MetricSubject) -> str:
    found = subject.values(*truth_and_detections())
    for name in (*subject.spec.columns, *subject.spec.healthy):
        if name not in found:
            raise Wrong(f"'{name}' is not; it returns {', '.join(found)}")
    return ", ".join(subject.spec.columns) or "none"


@check(
    "pure", "metrics", "it returns the same twice, and changes neither its arguments nor a random generator"
)
def _pure(subject: MetricSubject) -> str:
    found, truth = truth_and_detections()
    states = rng_states()["torch"]
    first = subject.values(found, truth)
    if reason := different(first, subject.values(found, truth)):
        raise Wrong(reason)
    fresh, fresh_truth = truth_and_detections()
    for name, value in (vars(fresh) | {f"truth.{n}": v for n, v in vars(fresh_truth).items()}).items():
        mine = getattr(truth, name[6:]) if name.startswith("truth.") else getattr(found, name)
        if isinstance(value, Tensor) and not torch.equal(value, mine):
            raise Wrong(f"changed: {name}")
    if not torch.equal(states, rng_states()["torch"]):
        raise Wrong("it uses torch's global random generator")
    return "the same twice"


@check("order", "metrics", "the values do not depend on the order of detections, true objects and images")
def _order(subject: MetricSubject) -> str:
    found, truth = truth_and_detections()
    plain = subject.values(found, truth)
    order = torch.randperm(len(found.image), generator=torch.Generator().manual_seed(1))
    if reason := different(plain, subject.values(rearranged(found, order), truth)):
        raise Wrong(f"detections in another order: {reason}")
    place = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(2))  # where each image moves
    moved = place[truth.image].argsort(stable=True)
    assert truth.masks is not None
    other_truth = GroundTruth(
        IMAGES, place[truth.image][moved], truth.boxes[moved], truth.labels[moved], truth.masks[moved]
    )
    if reason := different(plain, subject.values(replace(found, image=place[found.image]), other_truth)):
        raise Wrong(f"images in another order: {reason}")
    return "the same after shuffling"


@check("weighted", "draws", "for draws of the scenes, `weighted` gives the same values as the metric")
def _weighted(subject: MetricSubject) -> str:
    if not subject.spec.weighted:
        raise DoesNotApply("the spec has no `weighted`, so intervals are slower and use fewer draws")
    found, truth = truth_and_detections()
    generator = np.random.default_rng(0)
    draws = generator.integers(IMAGES, size=(DRAWS, IMAGES))
    draws[0] = np.arange(IMAGES)
    weights = np.stack([np.bincount(draw, minlength=IMAGES) for draw in draws])
    for what, detections in (("", found), (" without detections", rearranged(found, torch.zeros(0).long()))):
        values = load_target(subject.spec.weighted)(detections, truth)(weights)
        for i, draw in enumerate(draws):
            expected = subject.values(*select_scenes(detections, truth, torch.from_numpy(draw)))
            if reason := different(expected, {name: float(value[i]) for name, value in values.items()}):
                raise Wrong(f"draw {i}{what}: {reason}")
    return f"{DRAWS} draws are equal"


@check("cost", "cost", "measures the time of a call; never fails")
def _cost(subject: MetricSubject) -> str:
    arguments = truth_and_detections()
    subject.values(*arguments)
    began = time.perf_counter()
    for _ in range(10):
        subject.values(*arguments)
    return f"{(time.perf_counter() - began) * 100:.3g} ms for {IMAGES} images"


@check("clusters", "metrics", "the values do not change when clusters are renumbered")
def _clusters(subject: MetricSubject) -> str:
    found, truth = truth_and_detections()
    assert found.clusters is not None
    renumbered = replace(found, clusters=7 - 2 * found.clusters)
    if reason := different(subject.values(found, truth), subject.values(renumbered, truth)):
        raise Wrong(reason)
    return "the same after renumbering"


@check(
    "edges",
    "metrics",
    "without detections, objects or clusters it returns floats (NaN if undefined), and no error",
)
def _edges(subject: MetricSubject) -> str:
    found, truth = truth_and_detections()
    none = torch.zeros(0, dtype=torch.int64)
    nothing = GroundTruth.of([torch.zeros(0, 4)] * IMAGES, [torch.zeros(0)] * IMAGES)
    for what, detections, there in (
        ("no detections", rearranged(found, none), truth),
        ("no objects", found, nothing),
        ("neither", rearranged(found, none), nothing),
        ("no clusters", replace(found, clusters=None), truth),
    ):
        try:
            values = subject.values(detections, there)
        except Exception as error:
            raise Wrong(f"with {what}: {type(error).__name__}: {error}") from None
        if bad := [name for name, value in values.items() if math.isinf(value)]:
            raise Wrong(f"with {what}: {bad[0]} is {values[bad[0]]}")
    return "four cases"


def rearranged(found: Detections, order: Tensor) -> Detections:
    """The detections at `order` [k]."""
    moved: dict[str, Any] = {
        name: value[order] for name, value in vars(found).items() if isinstance(value, Tensor)
    }
    return replace(found, **moved)
