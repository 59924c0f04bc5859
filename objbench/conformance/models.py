"""The detector that is checked, with what several checks need; and checks of its registration and settings."""

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
"""How many images a detector must be able to memorise."""

FALL = 0.5
"""How much the loss must fall, as a share of its value at the start."""

PATIENCE = 200
"""How many steps this may take."""

FIT_SCENES = 32
"""How many scenes milestones and `fit` receive."""

STANDS_OUT = 0.05
"""Detections with a lower score are not compared: rounding may decide whether they are returned."""

NO_DATA = "conformance"
"""The data set name that `settings` receives for the kit's own scenes."""

CHECKS: list[Check] = []

check = collector(CHECKS)


class Pass(NamedTuple):
    """The results of a forward and backward pass."""

    step: int
    terms: dict[str, float]
    gradients: dict[str, Tensor | None]


class ModelSubject:
    """A registered detector. Objects that several checks need are made only once."""

    kind = "model"

    def __init__(
        self, registry: Registry, spec: ModelSpec, options: Mapping[str, str], checks: list[Check]
    ) -> None:
        """options: set by `-o`. checks: in order."""
        self.checks = checks
        self.registry, self.spec, self.name, self.options = registry, spec, spec.name, options

    @cached_property
    def cls(self) -> type[Detector]:
        """The class that the spec names."""
        cls: type[Detector] = load_target(self.spec.target)
        return cls

    @cached_property
    def config(self) -> Any:
        """Its settings for `demo` and an unknown data set, overridden by the options."""
        return build(self.cls.Config, self.name, self.cls.settings("demo", NO_DATA), self.options)

    def built(self, channels: int = 1, seed: int = 0, **changes: Any) -> Detector:
        """Seeds every random generator, then makes a new detector, in training mode."""
        seed_everything(seed)
        shape = source(channels).shape
        return self.cls(replace(self.config, **changes) if changes else self.config, shape).train()

    def needs_steps(self) -> None:
        """Raises DoesNotApply if the detector does not train by gradient steps."""
        if not trains_by_steps(self.cls):
            raise DoesNotApply("it does not train by steps")

    @cached_property
    def schedule(self) -> list[Pass]:
        """The passes of a new detector."""
        return self.passes(self.built())

    def passes(self, detector: Detector) -> list[Pass]:
        """Forward and backward passes at the start, the quarters and the end of the schedule; weights do not change."""
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
        """A detector that was trained on ten images until its loss had fallen, or was fitted; and its losses.

        All steps use step=0: if a schedule changes the loss, losses of different steps cannot be compared. Pixels are
        made 0 or 1: of a grey one, the likelihood of a Bernoulli pixel is at most its entropy, so that a detector
        that draws such pictures perfectly may still have more than half of its first loss.
        """
        detector, images = self.built(), ten().images.ceil()
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
        """The learnt detector; or one after a single step, if the learnt one finds nothing after so few steps.

        Without detections, checks of detections would pass without checking anything.
        """
        learned = self.learned[0]
        return learned if (look(learned, ten()).scores >= STANDS_OUT).any() else self.trained()

    def fit(self, detector: Detector) -> None:
        """Fits the detector as the harness does: without the truth, unless it is an oracle."""
        detector.fit(shown(many(detector.shape.channels), detector))

    def trained(self, channels: int = 1) -> Detector:
        """A detector after one step, or after its fit, on images with this number of channels."""
        detector = self.built(channels)
        if trains_by_steps(self.cls):
            stepped(detector, detector.optimizers(), ten(channels).images, 0)
        else:
            self.fit(detector)
        return detector


def only_zeros(passes: list[Pass]) -> list[str]:
    """The parameters that have gradients in some passes, and only zeros in all of these."""
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
    """The ten images to memorise."""
    return source(channels).scenes("train", torch.arange(TEN))


@functools.cache
def many(channels: int = 1) -> Scenes:
    """The scenes that milestones and `fit` receive."""
    return source(channels).scenes("train", torch.arange(FIT_SCENES))


def stepped(detector: Detector, optimizers: list[torch.optim.Optimizer], images: Tensor, step: int) -> float:
    """Takes one step like the training loop; returns the loss before the step."""
    return float(take_step(detector, optimizers, images, step)[1].sum())


def fallen(losses: list[float]) -> float:
    """How much a loss has fallen, as a share of its value at the start; medians of a few steps are used."""
    if len(losses) < 10:
        return 0.0
    first, last = statistics.median(losses[:3]), statistics.median(losses[-5:])
    return (first - last) / max(abs(first), 1e-12)


def look(detector: Detector, scenes: Scenes) -> Detections:
    """The detections in the scenes, computed as the harness does."""
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


@check("settings", "config", "`settings` returns existing options for every protocol and data set")
def _settings(subject: ModelSubject) -> str:
    for protocol in PROTOCOLS:
        for data in (*subject.registry.data, NO_DATA):
            build_model_config(subject.registry, subject.name, protocol, data, {})
    return f"{len(PROTOCOLS)} protocols, {len(subject.registry.data)} data sets and one that is unknown"


def fields(found: Detections) -> dict[str, Tensor]:
    """The tensors of detections, by name."""
    return {name: value for name, value in vars(found).items() if isinstance(value, Tensor)}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not equal, bit for bit."""
    names = [*one, *(name for name in other if name not in one)]
    return [n for n in names if n not in one or n not in other or not torch.equal(one[n], other[n])]
