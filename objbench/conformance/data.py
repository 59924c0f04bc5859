"""Checks of data sets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from objbench.cells.overrides import build_source_config
from objbench.cells.protocols import PROTOCOLS
from objbench.conformance import registration
from objbench.conformance.kit import Check, DoesNotApply, Wrong, collector
from objbench.hookspecs import DataSpec
from objbench.options import build
from objbench.plugins import Registry, load_target
from objbench.scenes import Scenes, SceneSource, Split
from objbench.score.scene_checks import SPLITS, described, faults

SCENES = 48
"""How many scenes of each split are checked."""

CHECKS: list[Check] = []
check = collector(CHECKS)


class DataSubject:
    """A registered data set."""

    kind = "data set"
    checks = CHECKS

    def __init__(self, registry: Registry, spec: DataSpec, options: Mapping[str, str]) -> None:
        """options: set by `-o`."""
        self.registry, self.spec, self.name, self.options = registry, spec, spec.name, options

    @cached_property
    def cls(self) -> type[SceneSource]:
        """The class that the spec names."""
        cls: type[SceneSource] = load_target(self.spec.target)
        return cls

    def built(self, seed: int = 0) -> SceneSource:
        """A source with its settings for `demo`."""
        return self.cls(build(self.cls.Config, self.name, self.cls.settings("demo"), self.options), seed)

    @cached_property
    def source(self) -> SceneSource:
        """The source of seed 0."""
        return self.built()

    @cached_property
    def first(self) -> dict[Split, Scenes]:
        """The first scenes of each split."""
        return {split: self.source.scenes(split, self.indices(split)) for split in SPLITS}

    def indices(self, split: Split) -> torch.Tensor:
        """The indices [n] of the first scenes of a split."""
        size = self.source.size(split)
        return torch.arange(SCENES if size is None else min(size, SCENES))


def same(one: Scenes, other: Scenes) -> bool:
    """True if images and truth are equal, bit for bit."""
    there, again = one.truth, other.truth
    return (
        torch.equal(one.images, other.images)
        and torch.equal(there.image, again.image)
        and torch.equal(there.boxes, again.boxes)
        and torch.equal(there.labels, again.labels)
    )


@check("registration", "registering", registration.EXPECTED)
def _registration(subject: DataSubject) -> str:
    return registration.light(subject.registry, "data set", subject.name)


@check("code", "keys", registration.CODE)
def _code(subject: DataSubject) -> str:
    return registration.code(subject.registry, "data set", subject.name)


@check("settings", "config", "`settings` returns existing options for every protocol")
def _settings(subject: DataSubject) -> str:
    for protocol in PROTOCOLS:
        build_source_config(subject.registry, subject.name, protocol, {})
    return ", ".join(PROTOCOLS)


@check("images", "data", "images [n, channels, height, width] with the source's `shape`, float32 in 0..1")
def _images(subject: DataSubject) -> str:
    _nothing_wrong(subject, "images")
    return " x ".join(map(str, subject.source.shape))


@check(
    "truth",
    "data",
    "`truth` is for the same n images; image ascending in 0..n-1; boxes of positive size inside the image; "
    "labels in 0..len(classes)-1",
)
def _truth(subject: DataSubject) -> str:
    _nothing_wrong(subject, "truth")
    objects = sum(len(scenes.truth.boxes) for scenes in subject.first.values())
    if not objects:
        raise Wrong("no object in any scene of any split", "some objects")
    return f"{objects} objects in {sum(map(len, subject.first.values()))} scenes"


def _nothing_wrong(subject: DataSubject, part: str) -> None:
    """Raises Wrong with the first fault that the harness would find in the images or the truth."""
    for split, scenes in subject.first.items():
        indices = subject.indices(split)
        for fault in faults(scenes, subject.source.shape, len(subject.source.classes), len(indices)):
            if fault.part == part:
                raise Wrong(described(subject.name, subject.source, split, indices, fault))


@check("repeatable", "data", "the same config and seed give the same scenes, bit for bit")
def _repeatable(subject: DataSubject) -> str:
    again = subject.built()
    for split, scenes in subject.first.items():
        if not same(scenes, again.scenes(split, subject.indices(split))):
            raise Wrong(f"{split} scenes differ between two sources of seed 0")
    return "two sources are equal"


@check(
    "batch",
    "data",
    "a scene depends only on its index, not on the other scenes of the request or their order",
)
def _batch(subject: DataSubject) -> str:
    for split, scenes in subject.first.items():
        order = subject.indices(split).flip(0)
        backwards = subject.source.scenes(split, order)
        if not torch.equal(scenes.images.flip(0), backwards.images):
            raise Wrong(f"{split} images differ when requested in the opposite order")
        alone = subject.source.scenes(split, order[:1])
        theirs = backwards.truth.image == 0
        if not (
            torch.equal(alone.images[0], scenes.images[-1])
            and torch.equal(alone.truth.boxes, backwards.truth.boxes[theirs])
            and torch.equal(alone.truth.labels, backwards.truth.labels[theirs])
        ):
            raise Wrong(f"{split} scene {int(order[0])} differs when requested alone")
    return "the same forwards, backwards and alone"


@check("seed", "data", "if training scenes are generated without end, another seed gives other scenes")
def _seed(subject: DataSubject) -> str:
    if subject.source.size("train") is not None:
        raise DoesNotApply(
            f"its {subject.source.size('train'):,} training scenes may be the same for every seed"
        )
    other = subject.built(seed=1).scenes("train", subject.indices("train"))
    if torch.equal(subject.first["train"].images, other.images):
        raise Wrong("the same training scenes for seeds 0 and 1")
    return "seeds 0 and 1 differ"


@check(
    "splits", "data", f"no image among the first {SCENES} of each split occurs twice, in one split or in two"
)
def _splits(subject: DataSubject) -> str:
    seen: dict[bytes, str] = {}
    for split, scenes in subject.first.items():
        for i, image in enumerate(scenes.images):
            digest = hashlib.sha256(image.numpy().tobytes()).digest()
            if digest in seen and image.any():
                raise Wrong(f"{split} scene {i} is also {seen[digest]}")
            seen[digest] = f"{split} scene {i}"
    return f"{len(seen)} different images"


@check("size", "data", "size(split) is None or the number of scenes, and all these scenes can be made")
def _size(subject: DataSubject) -> str:
    sizes = {split: subject.source.size(split) for split in SPLITS}
    for split, size in sizes.items():
        if size is not None and not (type(size) is int and size > 0):
            raise Wrong(f"the size of {split} is {size!r}")
        subject.source.scenes(split, torch.tensor([(size or 1_000_000) - 1]))
    return ", ".join(f"{split} {'without end' if size is None else size}" for split, size in sizes.items())


@check(
    "fingerprint",
    "data",
    "the fingerprint is JSON, the same for every source of the same config, and contains no path",
)
def _fingerprint(subject: DataSubject) -> str:
    fingerprint = subject.source.fingerprint()
    text = json.dumps(fingerprint, sort_keys=True)
    if not fingerprint:
        raise Wrong("an empty fingerprint")
    for value in _texts(fingerprint):
        if os.path.isabs(value) or (os.sep in value and Path(value).exists()):
            raise Wrong(f"a path: {value}")
    if json.dumps(subject.built(seed=1).fingerprint(), sort_keys=True) != text:
        raise Wrong("another fingerprint for seed 1")
    return text if len(text) <= 70 else f"{len(text)} characters"


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    for part in (
        [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _texts(part)
