"""What a detector promises, held against what it does."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objbench.cells.overrides import build_model_config
from objbench.cells.protocols import PROTOCOLS
from objbench.conformance import registration
from objbench.conformance.kit import Check, DoesNotApply, collector
from objbench.conformance.shapes import Shapes, ShapesConfig
from objbench.detector import Detections, Detector, trains_by_steps
from objbench.hookspecs import ModelSpec
from objbench.options import build
from objbench.plugins import Registry, load_target
from objbench.scenes import GroundTruth, Scenes
from objbench.score.detect import shown
from objbench.score.random_state import seed_everything, undisturbed
from objbench.train.steps import take_step, terms_of

TEN = 10
"""Images that a detector must be able to learn by heart."""

FALL = 0.5
"""How far their loss must fall, as a share of its size at the start."""

PATIENCE = 200
"""Steps that it may take to do so."""

FIT_SCENES = 32
"""What milestones and `fit` are shown."""

STANDS_OUT = 0.05
"""Detections of a lower score may differ by rounding: whether they are returned at all may depend on it."""

NO_DATA = "conformance"
"""The name of the kit's own scenes, which `settings` is given."""

CHECKS: list[Check] = []

check = collector(CHECKS)


class Pass(NamedTuple):
    """What one training step gave."""

    step: int
    terms: dict[str, float]
    gradients: dict[str, Tensor | None]


class ModelSubject:
    """A registered detector. What several checks need is made once."""

    kind = "model"

    def __init__(
        self, registry: Registry, spec: ModelSpec, options: Mapping[str, str], checks: list[Check]
    ) -> None:
        """options: as `-o` sets them. checks: what there is to look at, in order."""
        self.checks = checks
        self.registry, self.spec, self.name, self.options = registry, spec, spec.name, options

    @cached_property
    def cls(self) -> type[Detector]:
        """The class that the spec names."""
        cls: type[Detector] = load_target(self.spec.target)
        return cls

    @cached_property
    def config(self) -> Any:
        """Its settings for `demo` on scenes that it knows nothing of, overlaid by the options."""
        return build(self.cls.Config, self.name, self.cls.settings("demo", NO_DATA), self.options)

    def built(self, channels: int = 1, seed: int = 0, **changes: Any) -> Detector:
        """A new detector in training mode, every random generator seeded before."""
        seed_everything(seed)
        shape = source(channels).shape
        return self.cls(replace(self.config, **changes) if changes else self.config, shape).train()

    def needs_steps(self) -> None:
        """Leaves a check that is about training by gradient steps."""
        if not trains_by_steps(self.cls):
            raise DoesNotApply("it does not train by steps")

    @cached_property
    def schedule(self) -> list[Pass]:
        """The passes of a new detector."""
        return self.passes(self.built())

    def passes(self, detector: Detector) -> list[Pass]:
        """One pass forward and back at the start, the quarters and the end of its schedule; no step is taken."""
        images, last, passes = ten().images, self.config.steps - 1, []
        milestones = list(detector.milestones())
        for step in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
            while milestones and milestones[0] <= step:
                detector.at_milestone(many().images, milestones.pop(0))
            detector.zero_grad(set_to_none=True)
            names, values = terms_of(detector.training_step(images, step))
            values.sum().backward()  # type: ignore[no-untyped-call]
            gradients = {
                n: None if p.grad is None else p.grad.clone()
                for n, p in detector.named_parameters()
                if p.requires_grad
            }
            passes.append(Pass(step, dict(zip(names, values.tolist(), strict=True)), gradients))
        return passes

    @cached_property
    def learned(self) -> tuple[Detector, list[float]]:
        """A detector trained on ten images until it knows them, or fitted; and its losses.

        All steps are taken as step 0: where a schedule anneals the loss, losses of different steps
        are of different things.
        """
        detector, images = self.built(), ten().images
        if not trains_by_steps(self.cls):
            self.fit(detector)
            return detector, []
        optimizers, losses = detector.optimizers(), list[float]()
        for _ in range(PATIENCE):
            losses.append(stepped(detector, optimizers, images, 0))
            if fallen(losses) >= FALL or not math.isfinite(losses[-1]):
                break
        return detector, losses

    @cached_property
    def finding(self) -> Detector:
        """The learnt detector, or one that has barely begun when the learnt one finds nothing (in so few steps).

        A check of what it finds would otherwise pass for having looked at nothing.
        """
        learned = self.learned[0]
        return learned if (look(learned, ten()).scores >= STANDS_OUT).any() else self.trained()

    def fit(self, detector: Detector) -> None:
        """Fits as the harness does: without the truth, unless it is an oracle."""
        detector.fit(shown(many(detector.shape.channels), detector))

    def trained(self, channels: int = 1) -> Detector:
        """One that has had a step, or has been fitted; on images of so many channels."""
        detector = self.built(channels)
        if trains_by_steps(self.cls):
            stepped(detector, detector.optimizers(), ten(channels).images, 0)
        else:
            self.fit(detector)
        return detector


def only_zeros(passes: list[Pass]) -> list[str]:
    """The parameters that have gradients in some of the passes, all of them zeros."""
    found = []
    for name in passes[0].gradients:
        of = [g for done in passes if (g := done.gradients[name]) is not None]
        if of and not any(g.any() for g in of):
            found.append(name)
    return found


def source(channels: int = 1) -> Shapes:
    """The kit's scenes."""
    return Shapes(ShapesConfig(), seed=0, channels=channels)


@functools.cache
def ten(channels: int = 1) -> Scenes:
    """The ten images to learn by heart."""
    return source(channels).scenes("train", torch.arange(TEN))


@functools.cache
def many(channels: int = 1) -> Scenes:
    """What milestones and `fit` are shown."""
    return source(channels).scenes("train", torch.arange(FIT_SCENES))


def stepped(detector: Detector, optimizers: list[torch.optim.Optimizer], images: Tensor, step: int) -> float:
    """One step as the training loop takes it; the loss before it."""
    return float(take_step(detector, optimizers, images, step)[1].sum())


def fallen(losses: list[float]) -> float:
    """How far a loss has fallen, as a share of its size at the start; of the medians of a few steps."""
    if len(losses) < 10:
        return 0.0
    first, last = statistics.median(losses[:3]), statistics.median(losses[-5:])
    return (first - last) / max(abs(first), 1e-12)


def look(detector: Detector, scenes: Scenes) -> Detections:
    """What it finds, as the harness asks."""
    with undisturbed(detector):
        return detector.detect_scenes(shown(scenes, detector)).to("cpu")


def part(scenes: Scenes, keep: list[int]) -> Scenes:
    """Some of the scenes, in that order."""
    truth = scenes.truth
    boxes = [truth.boxes[truth.image == i] for i in keep]
    labels = [truth.labels[truth.image == i] for i in keep]
    return Scenes(scenes.images[keep], GroundTruth.of(boxes, labels))


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


@check("registration", "registering", registration.EXPECTED)
def _registration(subject: ModelSubject) -> str:
    return registration.light(subject.registry, "model", subject.name)


@check("code", "keys", registration.CODE)
def _code(subject: ModelSubject) -> str:
    return registration.code(subject.registry, "model", subject.name)


@check("settings", "config", "`settings` answers for every protocol and data set, with options that exist")
def _settings(subject: ModelSubject) -> str:
    for protocol in PROTOCOLS:
        for data in (*subject.registry.data, NO_DATA):
            build_model_config(subject.registry, subject.name, protocol, data, {})
    return f"{len(PROTOCOLS)} protocols, {len(subject.registry.data)} data sets and one that is unknown"


def fields(found: Detections) -> dict[str, Tensor]:
    """The tensors of detections, by name."""
    return {name: value for name, value in vars(found).items() if isinstance(value, Tensor)}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not the same, bit for bit."""
    names = [*one, *(name for name in other if name not in one)]
    return [n for n in names if n not in one or n not in other or not torch.equal(one[n], other[n])]
