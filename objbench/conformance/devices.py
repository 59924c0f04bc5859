"""Checks of a detector on other devices (captured steps, a GPU), and the cost of a step."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from objbench.cells.code import code_of, digest
from objbench.cells.pace import keep_pace
from objbench.conformance.detections import disagreement, of_image
from objbench.conformance.kit import Check, DoesNotApply, Wrong, collector
from objbench.conformance.models import TEN, ModelSubject, look, many, stepped, ten
from objbench.detector import trains_by_steps
from objbench.score.random_state import seed_everything
from objbench.train.steps import terms_of

CHECKS: list[Check] = []
check = collector(CHECKS)


@check(
    "capture",
    "device",
    "if capturable, a step uses `step` only through `schedule` and `phase`, so that steps of a phase can be replayed",
)
def _capture(subject: ModelSubject) -> str:
    subject.needs_steps()
    if not subject.cls.capturable:
        raise DoesNotApply("its class does not have capturable = True")
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
        for claimed in (step, later[-1]):
            seed_everything(5)
            losses.append(float(terms_of(detector.training_step(ten().images, claimed))[1].sum().detach()))
        detector.held = None
        if losses[0] != losses[1]:
            raise Wrong(
                f"with the schedule of step {step}, the loss is {losses[0]!r} for step={step}, "
                f"but {losses[1]!r} for step={later[-1]}"
            )
        pairs += 1
    return f"{pairs} pairs of steps are equal"


@check("gpu", "device", "the detections on a GPU are the same as on a CPU")
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
        stepped(there.train(), there.optimizers(), ten().images.to("cuda"), 1)
    return torch.cuda.get_device_name()


@check("cost", "cost", "measures time and memory of a step, and of the built-in detectors; never fails")
def _cost(subject: ModelSubject) -> str:
    subject.needs_steps()
    registry = subject.registry
    others = [
        ModelSubject(registry, registry.model(name), {}, [])
        for (kind, name), owners in registry.owners.items()
        if kind == "model" and name != subject.name and owners[0].startswith("objbench ")
    ]
    lines = []
    for each in [subject, *others]:
        if trains_by_steps(each.cls):
            seconds, megabytes = cost(each)
            keep_pace(each.name, digest(code_of(each.spec.target)), seconds / TEN)
            lines.append(f"{each.name} {seconds:.3f} s, {megabytes:.0f} MB")
    return f"a step of {TEN} images in the middle of training: {'; '.join(lines)}"


def cost(subject: ModelSubject) -> tuple[float, float]:
    """The seconds of a step (the faster of two, after a first step), and the megabytes kept for the backward pass."""
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
        stepped(detector, optimizers, images, step)
    for _ in range(2):
        began = time.perf_counter()
        stepped(detector, optimizers, images, step)
        taken.append(time.perf_counter() - began)
    return min(taken), sum(kept.values()) / 1e6
