"""What a detector promises, held against what it does."""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objbench.conformance import registration
from objbench.conformance.kit import Check, DoesNotApply, Wrong, collector
from objbench.conformance.scenes import SIDE, Shapes, ShapesConfig
from objbench.detector import NOISE, Detections, Detector, trains_by_steps
from objbench.evaluation import shown, undisturbed
from objbench.hookspecs import ModelSpec
from objbench.options import build
from objbench.overrides import build_model_config
from objbench.plugins import Registry, load_target
from objbench.protocols import PROTOCOLS
from objbench.scenes import GroundTruth, Scenes
from objbench.store import load_tensors, save_tensors
from objbench.training import Interrupted, seed_everything, terms_of, train

TEN = 10
"""Images that a detector must be able to learn by heart."""
FALL = 0.5
"""How far their loss must fall, as a share of its size at the start."""
PATIENCE = 200
"""Steps that it may take to do so."""
FIT_SCENES = 32
"""What milestones and `fit` are shown."""
STANDS_OUT = 0.05
"""Detections of a lower score may differ by rounding: whether they are told at all is decided there."""
NO_DATA = "conformance"
"""The name of the kit's own scenes, which `settings` is told."""

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
    checks = CHECKS

    def __init__(self, registry: Registry, spec: ModelSpec, options: Mapping[str, str]) -> None:
        """options: as `-o` sets them."""
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
        """One pass forward and back at the start, the quarters and the end of its schedule."""
        detector, images = self.built(), ten().images
        last = self.config.steps - 1
        milestones = list(detector.milestones())
        passes = []
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

        All steps are told that they are step 0: where a schedule anneals the loss, losses of different steps
        are of different things.
        """
        detector, images = self.built(), ten().images
        if not trains_by_steps(self.cls):
            self.fit(detector)
            return detector, []
        optimizers, losses = detector.optimizers(), list[float]()
        for _ in range(PATIENCE):
            losses.append(take_step(detector, optimizers, images, 0))
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
            take_step(detector, detector.optimizers(), ten(channels).images, 0)
        else:
            self.fit(detector)
        return detector


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


def take_step(
    detector: Detector, optimizers: list[torch.optim.Optimizer], images: Tensor, step: int
) -> float:
    """One step as the training loop takes it; the loss before it."""
    loss = terms_of(detector.training_step(images, step))[1].sum()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if detector.config.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(detector.parameters(), detector.config.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


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


@check("settings", "config", "`settings` answers for every protocol and data set, with options that exist")
def _settings(subject: ModelSubject) -> str:
    for protocol in PROTOCOLS:
        for data in (*subject.registry.data, NO_DATA):
            build_model_config(subject.registry, subject.name, protocol, data, {})
    return f"{len(PROTOCOLS)} protocols, {len(subject.registry.data)} data sets and one that is unknown"


@check("loss", "training", "every term of the loss is a scalar and finite, and so are the gradients")
def _loss(subject: ModelSubject) -> str:
    subject.needs_steps()
    for done in subject.schedule:
        if bad := [name for name, value in done.terms.items() if not math.isfinite(value)]:
            raise Wrong(f"at step {done.step} the term '{bad[0]}' is {done.terms[bad[0]]}")
        if bad := [n for n, g in done.gradients.items() if g is not None and not g.isfinite().all()]:
            raise Wrong(f"at step {done.step} not finite: the gradients of {some(bad)}")
    return f"finite at steps {', '.join(str(done.step) for done in subject.schedule)}"


@check(
    "gradients",
    "training",
    "every parameter gets a gradient at some time of the schedule, or has requires_grad=False",
)
def _gradients(subject: ModelSubject) -> str:
    subject.needs_steps()
    names = list(subject.schedule[0].gradients)
    of = {name: [g for done in subject.schedule if (g := done.gradients[name]) is not None] for name in names}
    if without := [name for name in names if not of[name]]:
        raise Wrong(f"none for {some(without)}")
    still = [
        name for name in names if not any(g.any() for g in of[name])
    ]  # may be right: a gate that is shut
    return f"{len(names)} parameters" + (f"; only zeros for {some(still)}" if still else "")


@check("optimizers", "training", "every parameter that needs a gradient is given to exactly one optimiser")
def _optimizers(subject: ModelSubject) -> str:
    subject.needs_steps()
    detector = subject.built()
    names = {id(p): name for name, p in detector.named_parameters() if p.requires_grad}
    held = [id(p) for o in detector.optimizers() for group in o.param_groups for p in group["params"]]
    if left := [name for key, name in names.items() if key not in held]:
        raise Wrong(f"no optimiser has {some(left)}")
    if twice := [names[key] for key in names if held.count(key) > 1]:
        raise Wrong(f"several optimisers have {some(twice)}")
    return f"{len(names)} parameters in {len(detector.optimizers())}"


@check("repeatable", "training", "the same seed gives the same weights, losses and training, bit for bit")
def _repeatable(subject: ModelSubject) -> str:
    runs = []
    for _ in range(2):
        detector = subject.built(seed=3)
        if not trains_by_steps(subject.cls):
            subject.fit(detector)
            runs.append(([0.0], detector.state_dict()))
            continue
        optimizers = detector.optimizers()
        losses = [take_step(detector, optimizers, ten().images[:4], step) for step in range(3)]
        runs.append((losses, detector.state_dict()))
    (first, state), (second, again) = runs
    if first != second:
        step = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        raise Wrong(f"the loss of step {step} is {first[step]!r}, then {second[step]!r}")
    if other := differing(state, again):
        raise Wrong(f"different after the same training: {some(other)}")
    return "two trainings alike" if trains_by_steps(subject.cls) else "two fits alike"


@check(
    "learns", "training", f"ten images are learnt by heart: in {PATIENCE} steps the loss falls by {FALL:.0%}"
)
def _learns(subject: ModelSubject) -> str:
    subject.needs_steps()
    _, losses = subject.learned
    first, last = statistics.median(losses[:3]), statistics.median(losses[-5:])
    course = f"from {first:.4g} to {last:.4g} in {len(losses)} steps, by {fallen(losses):.0%}"
    if not fallen(losses) >= FALL:
        raise Wrong(course)
    return course


@check(
    "detections",
    "detections",
    "image int64 in 0..n-1; boxes float32, finite, x1 > x0 and y1 > y0; scores float32 in 0..1; clusters "
    "int64 from 0, or -1 for noise, where the spec says clusters=True, else finite float32 what-latents",
)
def _detections(subject: ModelSubject) -> str:
    scenes = ten()
    for detector in (subject.learned[0], subject.trained()):
        found = look(detector, scenes)
        if found.images != len(scenes):
            raise Wrong(f"an answer for {found.images} images, when shown {len(scenes)}")
        for name, tensor, dtype in (
            ("image", found.image, torch.int64),
            ("boxes", found.boxes, torch.float32),
            ("scores", found.scores, torch.float32),
            ("clusters", found.clusters, torch.int64),
            ("what", found.what, torch.float32),
        ):
            if tensor is not None and tensor.dtype != dtype:
                raise Wrong(f"{name} of type {str(tensor.dtype).removeprefix('torch.')}")
        if not ((found.image >= 0) & (found.image < len(scenes))).all():
            raise Wrong(f"image from {int(found.image.min())} to {int(found.image.max())}")
        if not found.boxes.isfinite().all():
            raise Wrong(f"{int((~found.boxes.isfinite()).any(1).sum())} boxes not finite")
        if not (found.boxes[:, 2:] > found.boxes[:, :2]).all():
            bad = found.boxes[~(found.boxes[:, 2:] > found.boxes[:, :2]).all(1)][0]
            raise Wrong(f"a box without size: {rounded(bad)} (boxes are x0, y0, x1, y1)")
        if not ((found.scores >= 0) & (found.scores <= 1)).all():
            raise Wrong(f"scores from {found.scores.min():.4g} to {found.scores.max():.4g}")
        if subject.spec.clusters and found.clusters is None:
            raise Wrong("no clusters, and the spec does not say clusters=False")
        if not subject.spec.clusters and found.what is None:
            raise Wrong("no what-latents, which are to be clustered as the spec says clusters=False")
        if found.clusters is not None and (found.clusters < NOISE).any():
            raise Wrong("a negative cluster other than -1, which is noise")
        if found.what is not None and not found.what.isfinite().all():
            raise Wrong("what-latents not finite")
    found = look(subject.finding, scenes)
    return f"{len(found.scores)} in {len(scenes)} images, {int((found.scores >= 0.5).sum())} of them >= 0.5"


@check("inside", "detections", f"boxes lie inside the image, here 0..{SIDE}")
def _inside(subject: ModelSubject) -> str:
    for detector in (subject.learned[0], subject.trained()):
        found = look(detector, ten())
        outside = ((found.boxes < -1e-3) | (found.boxes > SIDE + 1e-3)).any(1)
        if outside.any():
            raise Wrong(
                f"{int(outside.sum())} of {len(outside)} outside, such as {rounded(found.boxes[outside][0])}"
            )
    return "all do"


@check("eval", "detections", "detect gives the same answer twice, and changes no state of the detector")
def _eval(subject: ModelSubject) -> str:
    detector = subject.finding
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    first, second = look(detector, ten()), None
    seed_everything(9)
    with undisturbed(detector):
        detector.reconstruct(ten().images)
    if changed := differing(before, detector.state_dict()):
        raise Wrong(f"changed: {some(changed)}")
    second = look(detector, ten())
    if other := differing(fields(first), fields(second)):
        raise Wrong(f"different the second time: {some(other)}")
    return "the same twice, nothing changed"


@check(
    "batch", "detections", "an image's detections do not depend on the others in its batch, nor on its size"
)
def _batch(subject: ModelSubject) -> str:
    detector, scenes = subject.finding, ten()
    together = look(detector, scenes)
    for i in (0, TEN - 1):
        alone = look(detector, part(scenes, [i]))
        if reason := disagreement(of_image(together, i), of_image(alone, 0)):
            raise Wrong(f"image {i}, among {TEN} and then alone: {reason}")
    return f"alike alone and among {TEN}"


@check("channels", "detections", "images of one and of three channels, and a batch of one, can be trained on")
def _channels(subject: ModelSubject) -> str:
    for channels in (1, 3):
        detector = subject.trained(channels)
        if trains_by_steps(subject.cls):
            loss = take_step(detector, detector.optimizers(), ten(channels).images[:1], 1)
            if not math.isfinite(loss):
                raise Wrong(f"with {channels} channels and one image the loss is {loss}")
        look(detector, part(ten(channels), [0]))
        picture = detector.reconstruct(ten(channels).images)
        if picture is not None and picture.shape != ten(channels).images.shape:
            raise Wrong(
                f"reconstruct returned {list(picture.shape)}",
                f"as the images, {list(ten(channels).images.shape)}",
            )
    return "one and three"


@check("empty", "detections", "images with nothing in them are no error, in training nor in detection")
def _empty(subject: ModelSubject) -> str:
    nothing = GroundTruth.of([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2)
    scenes = Scenes(torch.zeros(2, 1, SIDE, SIDE), nothing)
    detector = subject.trained()
    if trains_by_steps(subject.cls):
        loss = take_step(detector, detector.optimizers(), scenes.images, 1)
        if not math.isfinite(loss):
            raise Wrong(f"the loss is {loss}")
    return f"{len(look(detector, scenes).scores)} detections in two black images"


@check(
    "state",
    "state",
    "the state_dict holds all that detection needs: saved and loaded, the answers are the same",
)
def _state(subject: ModelSubject) -> str:
    detector = subject.finding
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder, "weights.safetensors"), detector.state_dict())
        again = subject.built(seed=1)
        again.load_state_dict(load_tensors(Path(folder, "weights.safetensors")))
    if other := differing(fields(look(detector, ten())), fields(look(again, ten()))):
        raise Wrong(f"different when loaded into a new detector: {some(other)} of its detections")
    return f"{sum(v.numel() for v in detector.state_dict().values()):,} values"


@check("resume", "state", "training that is stopped and resumed ends bit for bit as training that is not")
def _resume(subject: ModelSubject) -> str:
    subject.needs_steps()
    ends = []
    for stop_at in (None, 2):
        with tempfile.TemporaryDirectory() as folder:
            try:
                detector = _trained_to_end(subject, Path(folder), stop_at)
            except Interrupted:
                detector = _trained_to_end(subject, Path(folder), None)
            ends.append(detector.state_dict())
    if other := differing(*ends):
        raise Wrong(f"different in the end: {some(other)}")
    return "4 steps, and 2 and 2"


def _trained_to_end(subject: ModelSubject, folder: Path, stop_at: int | None) -> Detector:
    """Four steps of the harness's own loop on small batches; raises Interrupted when told to stop before."""
    detector = subject.built(steps=4, batch_size=2)
    asked = iter(range(1, 5))
    train(
        detector,
        source(),
        0,
        folder,
        evaluate=dict,
        tell=lambda event: None,
        stopping=lambda: next(asked) == stop_at,
        checkpoint_s=math.inf,
        fit_scenes=FIT_SCENES,
    )
    return detector


@check(
    "capture",
    "device",
    "with capturable = True, a step is told by its `schedule` and `phase` alone, so that one may stand for another",
)
def _capture(subject: ModelSubject) -> str:
    subject.needs_steps()
    if not subject.cls.capturable:
        raise DoesNotApply("it does not say capturable = True")
    detector, last, pairs = subject.built(), subject.config.steps - 1, 0
    milestones = list(detector.milestones())
    for step in (0, last // 4, last // 2, 3 * last // 4):
        while milestones and milestones[0] <= step:
            detector.at_milestone(many().images, milestones.pop(0))
        later = [s for s in range(step + 1, last + 1) if detector.phase(s) == detector.phase(step)]
        if not later:
            continue
        values = detector.schedule(step)
        detector.held = {name: torch.tensor(value).double() for name, value in values.items()}
        losses = []
        for told in (step, later[-1]):
            seed_everything(5)
            losses.append(float(terms_of(detector.training_step(ten().images, told))[1].sum().detach()))
        detector.held = None
        if losses[0] != losses[1]:
            raise Wrong(
                f"given what holds at step {step}, the loss is {losses[0]!r}, at {later[-1]} {losses[1]!r}"
            )
        pairs += 1
    return f"{pairs} pairs of steps alike"


@check("gpu", "device", "on a GPU it detects what it detects on a CPU")
def _gpu(subject: ModelSubject) -> str:
    if not torch.cuda.is_available():
        raise DoesNotApply("there is no GPU here")
    detector = subject.finding
    on_cpu = look(detector, ten())
    there = subject.built()
    there.load_state_dict(detector.state_dict())
    on_gpu = look(there.to("cuda"), ten())
    for i in range(TEN):
        if reason := disagreement(of_image(on_cpu, i), of_image(on_gpu, i), pixels=0.5):
            raise Wrong(f"image {i}: {reason}")
    if trains_by_steps(subject.cls):
        take_step(there.train(), there.optimizers(), ten().images.to("cuda"), 1)
    return torch.cuda.get_device_name()


@check("cost", "cost", "time and memory of a step, beside the built-in detectors; nothing to pass")
def _cost(subject: ModelSubject) -> str:
    subject.needs_steps()
    registry = subject.registry
    others = [
        ModelSubject(registry, registry.model(name), {})
        for (kind, name), owners in registry.owners.items()
        if kind == "model" and name != subject.name and owners[0].startswith("objbench ")
    ]
    lines = [f"{s.name} {cost(s)}" for s in [subject, *others] if trains_by_steps(s.cls)]
    return f"a step of {TEN} images halfway: {'; '.join(lines)}"


def cost(subject: ModelSubject) -> str:
    """Seconds of a step, the fastest of two after a first, and what it keeps for the way back."""
    detector, images = subject.built(), ten().images
    optimizers, step, kept, taken = (
        detector.optimizers(),
        subject.config.steps // 2,
        dict[int, int](),
        list[float](),
    )

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        take_step(detector, optimizers, images, step)
    for _ in range(2):
        began = time.perf_counter()
        take_step(detector, optimizers, images, step)
        taken.append(time.perf_counter() - began)
    return f"{min(taken):.3f} s, {sum(kept.values()) / 1e6:.0f} MB"


def fields(found: Detections) -> dict[str, Tensor]:
    """The tensors of detections, by name."""
    return {name: value for name, value in vars(found).items() if isinstance(value, Tensor)}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not the same, bit for bit."""
    names = [*one, *(name for name in other if name not in one)]
    return [n for n in names if n not in one or n not in other or not torch.equal(one[n], other[n])]


def of_image(found: Detections, image: int) -> Detections:
    """The detections of one image that stand out."""
    keep = (found.image == image) & (found.scores >= STANDS_OUT)
    kept: dict[str, Any] = {name: value[keep] for name, value in fields(found).items()}
    return replace(found, **kept)


def disagreement(one: Detections, other: Detections, pixels: float = 0.05) -> str:
    """What sets the detections of an image apart from those of the same image, in any order; "" if little."""
    if len(one.scores) != len(other.scores):
        return f"{len(one.scores)} detections, then {len(other.scores)}"
    if not len(one.scores):
        return ""
    mine, theirs = (torch.cat([d.boxes, 100 * d.scores[:, None]], 1) for d in (one, other))  # 1 % is 1 pixel
    apart, match = torch.cdist(mine, theirs, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    if apart.max() > pixels:
        i = int(apart.argmax())
        return f"box and percent {rounded(mine[i])}, then {rounded(theirs[match[i]])}"
    if one.clusters is None or other.clusters is None:
        return ""
    return "" if torch.equal(one.clusters, other.clusters[match]) else "other clusters"


def rounded(values: Tensor) -> list[float]:
    """As a person reads them."""
    return [round(value, 2) for value in values.tolist()]
