"""What a clusterer promises, held against what it does."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from objbench.cells.matrix import check_clusterer
from objbench.cells.overrides import build_clusterer_config
from objbench.cells.protocols import PROTOCOLS
from objbench.clusterer import Clusterer, Objects
from objbench.conformance import registration
from objbench.conformance.kit import Check, Wrong, collector
from objbench.conformance.shapes import Shapes, ShapesConfig
from objbench.detector import Detections
from objbench.hookspecs import ClustererSpec
from objbench.options import build
from objbench.plugins import Registry, load_target
from objbench.scenes import Split
from objbench.score import clustering
from objbench.score.random_state import rng_states, seed_everything, set_rng_states

SCENES = 60
"""Scenes whose true objects are clustered, about 150."""
LATENTS = 6
"""Values of a what-latent."""
NO_DATA = "conformance"
"""The name of the kit's own scenes, which `settings` is given."""

CHECKS: list[Check] = []
check = collector(CHECKS)


class ClustererSubject:
    """A registered clusterer. What several checks need is made once."""

    kind = "clusterer"
    checks = CHECKS

    def __init__(self, registry: Registry, spec: ClustererSpec, options: Mapping[str, str]) -> None:
        """options: as `-o` sets them."""
        self.registry, self.spec, self.name, self.options = registry, spec, spec.name, options

    @cached_property
    def cls(self) -> type[Clusterer]:
        """The class that the spec names."""
        cls: type[Clusterer] = load_target(self.spec.target)
        return cls

    @cached_property
    def config(self) -> Any:
        """Its settings for `demo` on objects that it knows nothing of, overlaid by the options."""
        return build(self.cls.Config, self.name, self.cls.settings("demo", NO_DATA), self.options)

    def objects(self, split: Split = "train", channels: int = 1, what: bool = True) -> Objects:
        """The kit's objects as it is given them; labels only to fit an oracle."""
        found = objects_of(split, channels, what or self.cls.needs_what)
        return found.objects(self.cls, self.config, with_labels=self.cls.oracle and split == "train")

    def fitted(self, objects: Objects | None = None, seed: int = 0) -> tuple[Clusterer, list[str]]:
        """One that was fitted on a copy of these, or on the kit's objects; and its warnings."""
        given = self.objects() if objects is None else copied(objects)
        return clustering.fit(self.name, self.cls, self.config, given, seed)

    @cached_property
    def one(self) -> Clusterer:
        """A fitted one. Checks leave it as it is."""
        return self.fitted()[0]

    def assign(self, clusterer: Clusterer, objects: Objects) -> Tensor:
        """The clusters of objects, checked."""
        return clustering.assign(self.name, clusterer, copied(objects), self.config.clusters)


@functools.cache
def objects_of(split: Split, channels: int, what: bool) -> clustering.Found:
    """The true objects of the kit's scenes, with what-latents that differ by class."""
    source = Shapes(ShapesConfig(), seed=0, channels=channels)
    truth = source.scenes(split, torch.arange(SCENES)).truth
    generator = torch.Generator().manual_seed(len(split))
    latents = torch.randn(len(truth.labels), LATENTS, generator=generator)
    latents[:, 0] += 6.0 * truth.labels
    scores = 0.5 + 0.5 * torch.rand(len(truth.labels), generator=generator)
    found = Detections(SCENES, truth.image, truth.boxes, scores, what=latents if what else None)
    return clustering.Found(source, split, found, truth)


def copied(objects: Objects) -> Objects:
    """The same objects in tensors of their own."""
    return Objects(**{name: tensor.clone() for name, tensor in clustering.tensors_of(objects).items()})


def differ(one: Tensor, other: Tensor) -> str:
    """How many clusters differ; "" when none does."""
    count = int((one != other).sum())
    return f"{count} of {len(one)} objects are in another cluster" if count else ""


@check("registration", "registering", registration.EXPECTED)
def _registration(subject: ClustererSubject) -> str:
    return registration.light(subject.registry, "clusterer", subject.name)


@check("code", "keys", registration.CODE)
def _code(subject: ClustererSubject) -> str:
    return registration.code(subject.registry, "clusterer", subject.name)


@check(
    "settings", "clusterers", "`settings` answers for every protocol and data set, with options that exist"
)
def _settings(subject: ClustererSubject) -> str:
    for protocol in PROTOCOLS:
        for data in (*subject.registry.data, NO_DATA):
            build_clusterer_config(subject.registry, subject.name, protocol, data, {})
    return f"{len(PROTOCOLS)} protocols, {len(subject.registry.data)} data sets and one that is unknown"


@check("cut", "clusterers", "`cut` gives a Cut of size >= 1 and margin > -1, or None")
def _cut(subject: ClustererSubject) -> str:
    check_clusterer(subject.cls, subject.config, 1, subject.name, NO_DATA)
    cut = clustering.cut_of(subject.name, subject.cls, subject.config)
    return "no glimpses" if cut is None else f"{cut.size} pixels, margin {cut.margin:g}"


@check(
    "clusters", "clusterers", "clusters [m] int64, from 0 to below config.clusters, or -1; input not changed"
)
def _clusters(subject: ClustererSubject) -> str:
    objects = subject.objects("test")
    clusters = subject.assign(subject.one, objects)
    return f"{len(objects)} objects in {len(set(clusters.tolist()))} clusters"


@check("channels", "clusterers", "objects of one and of three channels, with and without what-latents")
def _channels(subject: ClustererSubject) -> str:
    kinds = [(3, True)] if subject.cls.needs_what else [(1, False), (3, True), (3, False)]
    for channels, what in kinds:
        made, _ = subject.fitted(subject.objects("train", channels, what))
        subject.assign(made, subject.objects("test", channels, what))
    return "needs what-latents" if subject.cls.needs_what else "all"


@check("deterministic", "clusterers", "the same seed gives the same clusters, with one and with two threads")
def _deterministic(subject: ClustererSubject) -> str:
    objects, before = subject.objects("test"), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with threadpool_limits(threads):
                first, second = (subject.assign(subject.fitted()[0], objects) for _ in range(2))
            if reason := differ(first, second):
                raise Wrong(f"fitted again with {threads} threads: {reason}")
    finally:
        torch.set_num_threads(before)
    return "fitted twice with each"


@check("assign", "clusterers", "`assign` gives the same answer twice, and changes no state")
def _assign(subject: ClustererSubject) -> str:
    objects, one = subject.objects("test"), subject.one
    before = clustering.state_of(subject.name, one)
    states = rng_states()
    try:
        seed_everything(1)
        first = subject.assign(one, objects)
        seed_everything(2)  # what it draws must not matter
        second = subject.assign(one, objects)
    finally:
        set_rng_states(states)
    if changed := [k for k, v in clustering.state_of(subject.name, one).items() if not equal(v, before[k])]:
        raise Wrong(f"changed: {', '.join(changed[:4])}")
    if reason := differ(first, second):
        raise Wrong(f"the second time {reason}")
    return "the same twice, nothing changed"


@check("others", "clusterers", "an object's cluster does not depend on the other objects, nor on their order")
def _others(subject: ClustererSubject) -> str:
    objects, one = subject.objects("test"), subject.one
    together = subject.assign(one, objects)
    order = torch.randperm(len(objects), generator=torch.Generator().manual_seed(1))
    if reason := differ(together[order], subject.assign(one, objects[order])):
        raise Wrong(f"in another order {reason}")
    alone = torch.cat([subject.assign(one, objects[i : i + 1]) for i in range(min(20, len(objects)))])
    if reason := differ(together[: len(alone)], alone):
        raise Wrong(f"alone {reason}")
    if len(subject.assign(one, objects[:0])):
        raise Wrong("clusters for no objects")
    return "alike in another order and alone"


@check(
    "state",
    "clusterers",
    "one with the state of another assigns as that one does: all that it learns is in it",
)
def _state(subject: ClustererSubject) -> str:
    objects = subject.objects("test")
    state = clustering.state_of(subject.name, subject.one)
    shape = clustering.shape_of(objects)
    again = clustering.restored(subject.name, subject.cls, subject.config, shape, state)
    if reason := differ(subject.assign(subject.one, objects), subject.assign(again, objects)):
        raise Wrong(f"restored, {reason}")
    return f"{sum(tensor.nbytes for tensor in state.values()) / 1e6:.2f} MB"


@check(
    "few",
    "clusterers",
    "fewer objects than clusters, one or none are no error; with none, it warns, and all are 0",
)
def _few(subject: ClustererSubject) -> str:
    objects, test = subject.objects(), subject.objects("test")
    for count in (max(1, subject.config.clusters - 1), 1, 0):
        made, warnings = subject.fitted(objects[:count])
        clusters = subject.assign(made, test)
        state = clustering.state_of(subject.name, made)
        shape = clustering.shape_of(test)
        again = clustering.restored(subject.name, subject.cls, subject.config, shape, state)
        if reason := differ(clusters, subject.assign(again, test)):
            raise Wrong(f"fitted on {count} and restored, {reason}")
        if not count and (clusters.any() or not warnings):
            raise Wrong(
                f"fitted on none: {len(warnings)} warnings, clusters {sorted(set(clusters.tolist()))}"
            )
    return "no error"


@check("duplicates", "clusterers", "objects that are all alike are no error, and are in one cluster")
def _duplicates(subject: ClustererSubject) -> str:
    same = subject.objects()[torch.zeros(100, dtype=torch.int64)]
    made, _ = subject.fitted(same)
    for clusterer in (made, subject.one):
        if (found := len(set(subject.assign(clusterer, same).tolist()))) > 1:
            raise Wrong(f"100 that are alike are in {found} clusters")
    return "in one cluster"


@check("cost", "cost", "time to fit and to assign; nothing to pass")
def _cost(subject: ClustererSubject) -> str:
    objects, test = subject.objects(), subject.objects("test")
    began = time.perf_counter()
    made, _ = subject.fitted(objects)
    fitted = time.perf_counter()
    subject.assign(made, test)
    ended = time.perf_counter()
    return f"{fitted - began:.2f} s to fit on {len(objects)} objects, {ended - fitted:.3f} s to assign {len(test)}"


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit; NaN is as NaN."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
