"""Checks of a detector's detections."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from objbench.conformance.kit import Check, DoesNotApply, Wrong, collector
from objbench.conformance.models import (
    STANDS_OUT,
    TEN,
    ModelSubject,
    differing,
    fields,
    look,
    part,
    some,
    stepped,
    ten,
)
from objbench.conformance.shapes import SIDE
from objbench.detector import Detections, trains_by_steps
from objbench.masks import boxes_of, mask_fault
from objbench.scenes import GroundTruth, Scenes
from objbench.score.random_state import seed_everything, undisturbed

CHECKS: list[Check] = []
check = collector(CHECKS)


@check(
    "detections",
    "detections",
    "image int64 in 0..n-1; boxes float32, finite, x1 > x0 and y1 > y0; scores float32 in 0..1; clusters "
    "int64 from 0, or -1 for noise, if the spec has clusters=True; what-latents finite float32, where it has some",
)
def _detections(subject: ModelSubject) -> str:
    scenes = ten()
    for detector in (subject.learned[0], subject.trained()):
        found = look(detector, scenes)
        if found.images != len(scenes):
            raise Wrong(f"detections for {found.images} images from a batch of {len(scenes)}")
        for name, tensor, dtype in (
            ("image", found.image, torch.int64),
            ("boxes", found.boxes, torch.float32),
            ("scores", found.scores, torch.float32),
            ("clusters", found.clusters, torch.int64),
            ("what", found.what, torch.float32),
        ):
            if tensor is not None and tensor.dtype != dtype:
                raise Wrong(f"{name} of type {str(tensor.dtype).removeprefix('torch.')}")
        if fault := found.fault():
            raise Wrong(fault)
        if subject.spec.clusters and found.clusters is None:
            raise Wrong("no clusters, but the spec does not have clusters=False")
    found = look(subject.finding, scenes)
    known = f"{len(found.scores)} in {len(scenes)} images, {int((found.scores >= 0.5).sum())} of them >= 0.5"
    if not subject.spec.clusters and found.what is None:
        known += "; no what-latents, so only clusterers of glimpses can cluster them (not gmm, the default)"
    return known


@check("inside", "detections", f"boxes are inside the image, here 0..{SIDE}")
def _inside(subject: ModelSubject) -> str:
    for detector in (subject.learned[0], subject.trained()):
        found = look(detector, ten())
        outside = ((found.boxes < -1e-3) | (found.boxes > SIDE + 1e-3)).any(1)
        if outside.any():
            raise Wrong(
                f"{int(outside.sum())} of {len(outside)} outside, such as {rounded(found.boxes[outside][0])}"
            )
    return "all boxes are"


@check(
    "masks", "detections", "masks are uint8, of the image's size in packed bits, and boxes fit them exactly"
)
def _masks(subject: ModelSubject) -> str:
    count = 0
    for detector in (subject.learned[0], subject.trained()):
        found = look(detector, ten())
        if found.masks is None:
            raise DoesNotApply("it returns no masks")
        count = len(found.masks)
        if fault := mask_fault(found.masks, SIDE, SIDE):
            raise Wrong(fault)
        apart = (boxes_of(found.masks) != found.boxes).any(1)
        if apart.any():
            box, mask = (rounded(b[apart][0]) for b in (found.boxes, boxes_of(found.masks)))
            raise Wrong(f"box {box} of a mask whose pixels are in {mask}")
    return f"{count} masks"


@check("eval", "detections", "detect returns the same twice, and does not change the detector's state")
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
    return "the same twice; the state did not change"


@check(
    "batch",
    "detections",
    "the detections in an image depend neither on other images in the batch nor on its size",
)
def _batch(subject: ModelSubject) -> str:
    detector, scenes = subject.finding, ten()
    together = look(detector, scenes)
    for i in (0, TEN - 1):
        alone = look(detector, part(scenes, [i]))
        if reason := disagreement(of_image(together, i), of_image(alone, 0)):
            raise Wrong(f"image {i}, in a batch of {TEN} and then alone: {reason}")
    return f"the same alone and in a batch of {TEN}"


@check(
    "channels",
    "detections",
    "training works on images of one and of three channels, and on a batch of one image",
)
def _channels(subject: ModelSubject) -> str:
    for channels in (1, 3):
        detector = subject.trained(channels)
        if trains_by_steps(subject.cls):
            loss = stepped(detector, detector.optimizers(), ten(channels).images[:1], 1)
            if not math.isfinite(loss):
                raise Wrong(f"with {channels} channels and one image the loss is {loss}")
        look(detector, part(ten(channels), [0]))
        picture = detector.reconstruct(ten(channels).images)
        if picture is not None and picture.shape != ten(channels).images.shape:
            raise Wrong(
                f"reconstruct returned {list(picture.shape)}",
                f"the shape of the images, {list(ten(channels).images.shape)}",
            )
    return "one and three channels"


@check("empty", "detections", "images without objects raise no error, neither in training nor in detection")
def _empty(subject: ModelSubject) -> str:
    nothing = GroundTruth.of([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2)
    scenes = Scenes(torch.zeros(2, 1, SIDE, SIDE), nothing)
    detector = subject.trained()
    if trains_by_steps(subject.cls):
        loss = stepped(detector, detector.optimizers(), scenes.images, 1)
        if not math.isfinite(loss):
            raise Wrong(f"the loss is {loss}")
    return f"{len(look(detector, scenes).scores)} detections in two black images"


def of_image(found: Detections, image: int) -> Detections:
    """The detections of one image with a score >= STANDS_OUT."""
    keep = (found.image == image) & (found.scores >= STANDS_OUT)
    kept: dict[str, Any] = {name: value[keep] for name, value in fields(found).items()}
    return replace(found, **kept)


def disagreement(one: Detections, other: Detections, pixels: float = 0.05) -> str:
    """How two lists of detections of one image differ, in any order; "" if they agree within `pixels`."""
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
    """The values with two decimals, for messages."""
    return [round(value, 2) for value in values.tolist()]
