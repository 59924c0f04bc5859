"""What clusterers are given, and what is made of their answers: objects are found, cut out, fitted on and assigned.

A clusterer works on the CPU. What it is given is a copy, so that it cannot change what another is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from objbench.clusterer import Clusterer, Cut, Objects, ObjectShape, cut_fault
from objbench.detector import NOISE, PRESENT, Detections
from objbench.guarded import calling
from objbench.scenes import GroundTruth, SceneSource, Split, first_indices
from objbench.score.random_state import rng_states, seed_everything, set_rng_states
from objbench.spatial.glimpses import crop

SCENES = 32
"""Scenes that are made again at once to cut glimpses out of them."""
OBJECTS = 512
"""Objects that a clusterer assigns at once."""
MATCHED = 0.5
"""A detection is of an object, for an oracle, when their IoU is above this; so it is in the clustering metrics."""


class Found:
    """Detections in the first scenes of a split, and what clusterers may know of them. Glimpses are cut once a cut."""

    def __init__(
        self, source: SceneSource, split: Split, detections: Detections, truth: GroundTruth | None = None
    ) -> None:
        """detections: on the CPU, of the first `detections.images` scenes. truth: of these scenes, for oracles."""
        self.source, self.split, self.detections, self.truth = source, split, detections, truth
        self._glimpses: dict[Cut, Tensor] = {}

    def objects(self, clusterer: type[Clusterer], config: Any, with_labels: bool = False) -> Objects:
        """The detections as this clusterer is given them, a copy; labels only if asked for."""
        return Objects(
            glimpses=self.glimpses(clusterer.cut(config)).clone(),
            scores=self.detections.scores.float(),
            what=None if self.detections.what is None else self.detections.what.float().clone(),
            labels=self.labels.clone() if with_labels else None,
        )

    def glimpses(self, cut: Cut | None) -> Tensor:
        """[m, channels, size, size] in 0..1; of size 0 where no cut is asked for."""
        if cut is None:
            return torch.zeros(len(self.detections.image), self.source.shape.channels, 0, 0)
        if cut not in self._glimpses:
            parts = []
            indices = first_indices(self.source, self.split, self.detections.images)
            for start in range(0, len(indices), SCENES):
                batch = indices[start : start + SCENES]
                images = self.source.scenes(self.split, batch).images.cpu()
                mine = (self.detections.image >= start) & (self.detections.image < start + len(batch))
                parts.append(
                    cut_out(images, self.detections.image[mine] - start, self.detections.boxes[mine], cut)
                )
            glimpses = torch.cat(parts)
            as_listed = torch.argsort(self.detections.image // SCENES, stable=True)  # the parts are by batch
            self._glimpses[cut] = torch.empty_like(glimpses).index_copy_(0, as_listed, glimpses)
        return self._glimpses[cut]

    @cached_property
    def labels(self) -> Tensor:
        """[m] int64: the class of the object that a detection is of, -1 where it is of none."""
        from objbench.matching import best_truth

        assert self.truth is not None, "an oracle is fitted where the truth is known"
        best = best_truth(self.detections, self.truth)
        labels = torch.full((len(self.detections.image),), NOISE, dtype=torch.int64)
        of_object = torch.from_numpy(best.iou > MATCHED)
        labels[of_object] = self.truth.labels[torch.from_numpy(best.truth)[of_object]].cpu().long()
        return labels


def present(detections: Detections) -> Detections:
    """Those that the detector stands by: with a score of at least PRESENT."""
    return detections.select((detections.scores >= PRESENT).nonzero()[:, 0])


def cut_out(images: Tensor, image: Tensor, boxes: Tensor, cut: Cut) -> Tensor:
    """Square glimpses around boxes: [m, channels, size, size] in 0..1, black outside the image.

    images: [n, channels, height, width] in 0..1; image: [m] int64, 0..n-1; boxes: [m, 4] xyxy in pixels.
    """
    if not len(image):
        return torch.zeros(0, images.shape[1], cut.size, cut.size)
    squares = cut.squares(boxes.float())
    order = torch.argsort(image, stable=True)
    counts = torch.bincount(image, minlength=len(images))
    starts = counts.cumsum(0) - counts
    slot = torch.empty_like(image)  # its place among those of its image
    slot[order] = torch.arange(len(image)) - starts[image[order]]
    padded = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(images), int(counts.max()), 1)
    padded[image, slot] = squares
    return crop(images.float(), padded, cut.size)[image, slot].clamp(0, 1)


def shape_of(objects: Objects) -> ObjectShape:
    """What a clusterer knows about objects like these."""
    channels, size = objects.glimpses.shape[1:3]
    return ObjectShape(channels, size, 0 if objects.what is None else objects.what.shape[1])


def fault_of(objects: Objects) -> str:
    """What is wrong with objects before a clusterer sees them; "" when nothing is."""
    for name, tensor in (
        ("glimpses", objects.glimpses),
        ("scores", objects.scores),
        ("what-latents", objects.what),
    ):
        if tensor is not None and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor.reshape(len(tensor), -1))).any(1).sum())
            return f"the {name} of {bad} of {len(objects)} objects are NaN or infinite"
    return ""


def cut_of(name: str, clusterer: type[Clusterer], config: Any) -> Cut | None:
    """The cut that a clusterer asks for. ValueError when it is wrong."""
    with calling(f"'{name}'", "its cut"):
        cut = clusterer.cut(config)
    if fault := cut_fault(cut):
        raise ValueError(f"'{name}': its cut is wrong: {fault}")
    return cut


def build_clusterer(name: str, clusterer: type[Clusterer], config: Any, shape: ObjectShape) -> Clusterer:
    """A clusterer that is not fitted. ValueError when it needs what-latents and there are none."""
    if clusterer.needs_what and not shape.what:
        raise ValueError(no_what(name))
    with calling(f"'{name}'", "its constructor"):
        made = clusterer(config, shape)
    return made


def no_what(name: str, model: str = "the detector") -> str:
    """That a clusterer and a detector do not go together."""
    return (
        f"'{name}' clusters what-latents, and {model} gives none; choose a clusterer that looks at glimpses "
        "(objbench list clusterers)"
    )


def fit(
    name: str, clusterer: type[Clusterer], config: Any, objects: Objects, seed: int
) -> tuple[Clusterer, list[str]]:
    """A clusterer fitted on objects, in eval mode, and its warnings; every global random generator is left as it was.

    objects: may be changed by nobody else meanwhile. Raises PluginFailed or UsageError as the plugin does, and
    ValueError when the objects are wrong or the plugin changes them.
    """
    if fault := fault_of(objects):
        raise ValueError(fault)
    who, before = f"'{name}'", tensors_of(objects)
    kept = {field: tensor.clone() for field, tensor in before.items()}
    states, threads = rng_states(), torch.get_num_threads()
    try:
        seed_everything(seed)
        with torch.enable_grad():
            made = build_clusterer(name, clusterer, config, shape_of(objects)).train()
            with calling(who, "its fit"):
                made.fit(objects)
        with calling(who, "its warnings"):
            warnings = [str(warning) for warning in made.warnings()]
    finally:
        set_rng_states(states)
        torch.set_num_threads(threads)
    check_unchanged(name, "fit", kept, before)
    return made.eval(), warnings


def assign(name: str, clusterer: Clusterer, objects: Objects, clusters: int) -> Tensor:
    """The cluster of each object, [m] int64 from 0 to below `clusters` or NOISE. The random generators are left alone.

    Raises PluginFailed or UsageError as the plugin does, and ValueError when the objects or its answer are wrong.
    """
    if fault := fault_of(objects):
        raise ValueError(fault)
    before, states, threads = tensors_of(objects), rng_states(), torch.get_num_threads()
    kept = {field: tensor.clone() for field, tensor in before.items()}
    parts = [torch.zeros(0, dtype=torch.int64)]
    clusterer.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(objects), OBJECTS):
                part = objects[start : start + OBJECTS]
                with calling(f"'{name}'", "its assign"):
                    answer = clusterer.assign(part)
                if fault := answer_fault(answer, len(part), clusters):
                    raise ValueError(f"what assign of '{name}' returned is wrong: {fault}")
                parts.append(answer.detach().cpu())
    finally:
        set_rng_states(states)
        torch.set_num_threads(threads)
    check_unchanged(name, "assign", kept, before)
    return torch.cat(parts)


def answer_fault(answer: Any, count: int, clusters: int) -> str:
    """What is wrong with the answer of `Clusterer.assign` for so many objects; "" when nothing is."""
    if not isinstance(answer, Tensor):
        return f"{type(answer).__name__}, not a tensor"
    if list(answer.shape) != [count]:
        return f"a tensor of shape {list(answer.shape)} for {count} objects, not {[count]}"
    if answer.dtype != torch.int64:
        return f"clusters of type {str(answer.dtype).removeprefix('torch.')}, not int64"
    wrong = (answer < NOISE) | (answer >= clusters)
    if bad := int(wrong.sum()):
        return (
            f"{bad} of {count} objects are in a cluster such as {int(answer[wrong][0])}; "
            f"it must be in 0..{clusters - 1}, or -1 (noise)"
        )
    return ""


def restored(
    name: str, clusterer: type[Clusterer], config: Any, shape: ObjectShape, state: Mapping[str, Tensor]
) -> Clusterer:
    """A clusterer with the state of a fitted one, in eval mode. ValueError when the state does not fit it.

    Leaves every global random generator as it was.
    """
    states = rng_states()
    try:
        made = build_clusterer(name, clusterer, config, shape)
    finally:
        set_rng_states(states)
    try:
        made.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[-40:])
        raise ValueError(f"the saved state of '{name}' does not fit the plugin: {reason}") from None
    return made.eval()


def state_of(name: str, clusterer: Clusterer) -> dict[str, Tensor]:
    """The tensors of a fitted clusterer, copies. ValueError when its state holds anything else."""
    state = clusterer.state_dict()
    if strange := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"the state_dict of '{name}' holds '{strange[0]}', which is not a tensor")
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def tensors_of(objects: Objects) -> dict[str, Tensor]:
    """The tensors of objects by their field."""
    return {name: value for name, value in vars(objects).items() if isinstance(value, Tensor)}


def check_unchanged(name: str, part: str, kept: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """ValueError when a clusterer changed what it was given."""
    if changed := [field for field, tensor in kept.items() if not torch.equal(tensor, now[field])]:
        raise ValueError(
            f"{part} of '{name}' changed the {changed[0]} that it was given; it must copy them first"
        )
