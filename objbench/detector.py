"""The contract of a detector, and the detections that it returns.

A plugin author writes a subclass of `Detector` with `training_step` and `detect`. The harness does the rest:
device, seeds, data, the training loop, checkpoints, clustering for detectors that do not cluster, metrics,
pictures and tables.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape

PRESENT = 0.5
"""A detection with at least this score counts as present. Clustering metrics and counts use only these.

AP ranks all detections, with any score.
"""
MIN_SCORE = 0.01
"""`Detections.from_padded` drops candidates with a score below this."""


NOISE = -1
"""The cluster number of a detection that belongs to no cluster (the same number as in HDBSCAN).

Metrics of boxes treat such a detection like any other. Clustering metrics count it as wrong: it has no class.
"""


@dataclass(frozen=True)
class Detections:
    """The detections in `images` images, as flat lists: detection j is in image `image[j]`.

    Boxes and scores are float32 from a detector. They are float64 from a file, so that its numbers are not rounded.
    """

    images: int
    """How many images were looked at, also those in which nothing was found."""
    image: Tensor
    """`[m]` int64, 0..images-1."""
    boxes: Tensor
    """`[m, 4]` float32 or float64, xyxy in pixels, inside the image and of positive size."""
    scores: Tensor
    """`[m]` float32 or float64 in 0..1; at least PRESENT for detections that count as present."""
    clusters: Tensor | None = None
    """`[m]` int64, from 0, or NOISE (-1); None when the detector does not cluster."""
    what: Tensor | None = None
    """`[m, A]` float32 what-latents, finite; without them and `clusters`, only clusterers of glimpses can cluster the
    objects."""
    masks: Tensor | None = None
    """`[m, height, ceil(width / 8)]` uint8: the pixels of each detection as packed bits, at least one, or None when the
    detector makes no masks; `boxes` are then the smallest around them. `objbench.masks.from_masks` makes both."""

    def __post_init__(self) -> None:
        m = len(self.image)
        parts = {"boxes": (self.boxes, (m, 4)), "scores": (self.scores, (m,))}
        if self.clusters is not None:
            parts["clusters"] = (self.clusters, (m,))
        if self.what is not None:
            parts["what"] = (self.what, (m, self.what.shape[-1]))
        if self.masks is not None:
            parts["masks"] = (self.masks, (m, *self.masks.shape[-2:]))
        for name, (tensor, expected) in parts.items():
            if tensor.shape != expected:
                raise ValueError(
                    f"{m} detections need {name} of shape {list(expected)}, got {list(tensor.shape)}"
                )

    def fault(self) -> str:
        """The first error in the fields, and how many detections have it; "" when there is no error.

        A NaN would not stop a metric: it would get some rank, and the wrong figure would look correct.
        """
        corners, scores = self.boxes, self.scores
        finite = torch.isfinite(corners).all(1)
        bad = {
            "an image index out of range": (self.image < 0) | (self.image >= self.images),
            "a box that is not finite": ~finite,
            "a box without size (boxes are x0, y0, x1, y1)": finite
            & ~(corners[:, 2:] > corners[:, :2]).all(1),
            "a score that is not in 0..1": ~((scores >= 0) & (scores <= 1)),
        }
        if self.clusters is not None:
            bad["a negative cluster other than -1 (noise)"] = self.clusters < NOISE
        if self.what is not None:
            bad["a what-latent that is NaN or infinite"] = ~torch.isfinite(self.what).all(1)
        if self.masks is not None:
            bad["a mask without pixels"] = ~(self.masks != 0).flatten(1).any(1)
        for what, where in bad.items():
            if count := int(where.sum()):
                return f"{count} of {len(where)} detections have {what}"
        return ""

    @staticmethod
    def from_padded(
        boxes: Tensor,
        scores: Tensor,
        clusters: Tensor | None = None,
        what: Tensor | None = None,
        min_score: float = MIN_SCORE,
    ) -> Detections:
        """Makes detections from k candidates per image.

        boxes: [n, k, 4] xyxy in pixels. scores: [n, k] in 0..1. clusters: [n, k] integers, or None. what: [n, k, A],
        or None. Integers become int64, other values float32; no gradient is needed. Detections are ordered by image,
        then by candidate.

        That is what is left of a box outside the image when it is clamped to it. Boxes that are inside out or
        not finite stay: they are mistakes, which `fault` reports.
        """
        sized = (boxes[..., 2:] != boxes[..., :2]).all(-1)
        image, slot = torch.nonzero((scores >= min_score) & sized, as_tuple=True)
        return Detections(
            images=len(boxes),
            image=image,
            boxes=boxes[image, slot].float(),
            scores=scores[image, slot].float(),
            clusters=None if clusters is None else clusters[image, slot].long(),
            what=None if what is None else what[image, slot].float(),
        )

    @staticmethod
    def concatenate(parts: list[Detections]) -> Detections:
        """Joins the detections of consecutive batches."""
        offsets = [0]
        for part in parts:
            offsets.append(offsets[-1] + part.images)

        def joined(name: str) -> Tensor | None:
            tensors = [getattr(part, name) for part in parts]
            return None if any(t is None for t in tensors) else torch.cat(tensors)

        boxes, scores = joined("boxes"), joined("scores")
        assert boxes is not None
        assert scores is not None
        image = torch.cat([part.image + offset for part, offset in zip(parts, offsets, strict=False)])
        return Detections(
            offsets[-1], image, boxes, scores, joined("clusters"), joined("what"), joined("masks")
        )

    def select(self, index: Tensor) -> Detections:
        """The detections at these places, [k] int64 (many times faster than a bool mask); `image` stays as it is."""
        parts = {k: v[index] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Detections(**{**vars(self), **parts})

    def to(self, device: torch.device | str) -> Detections:
        """The same detections on another device."""
        move = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Detections(**{**vars(self), **move})


@dataclass(frozen=True)
class DetectorConfig:
    """Options of every detector that trains by gradient steps."""

    steps: int = option(440_000, "training steps (batches)", low=1)
    batch_size: int = option(16, "images a step", low=1)
    lr: float = option(1e-4, "Adam's learning rate", above=0)
    lr_end: float = option(
        1.0, "learning rates at the end, as a share; they fall evenly over the second half", low=0, high=1
    )
    clip_norm: float = option(0.0, "clip gradients to this norm; 0 does not clip", low=0)
    start_from: str = option(
        "",
        "start from the weights of this finished training: the beginning of its key, or its directory",
        identity=False,  # the identity has the key of that training, and the digest of its weights
    )


class Detector(nn.Module):
    """An unsupervised object detector. It never sees a box or a label."""

    Config: ClassVar[type] = DetectorConfig
    """A frozen dataclass of options. Its defaults are the values of the `paper` protocol."""
    capturable: bool = False
    """True if a training step can be captured and replayed on a GPU: see `schedule` and `phase`."""
    fast_products: ClassVar[bool] = False
    """True if training steps on a CPU may multiply float32 matrices by oneDNN where that is faster: see
    `objbench.train.products`. It helps detectors whose time goes into products of matrices of equal shapes."""
    oracle: ClassVar[bool] = False
    """True for a baseline that receives the true boxes; tables mark it. See `detect_scenes`."""

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """Config values that differ from the defaults for this protocol and data set; `-o` overrides them.

        All values that are specific to one (model, data) pair belong here.
        """
        return {}

    @classmethod
    def uses(cls, config: Any) -> tuple[str, ...]:
        """Names of the clusterers that a detector of this config runs itself; their code is then in its key."""
        return ()

    def __init__(self, config: Any, shape: SceneShape) -> None:
        """`config` is an instance of `Config`; `shape` is the (channels, height, width) of every image."""
        super().__init__()
        self.config = config
        self.shape = shape
        self.held: Mapping[str, Tensor] | None = None
        """While steps are captured: the values of `schedule`, written by the harness; each is a 0-dim float64."""

    def training_step(self, images: Tensor, step: int) -> Tensor | Mapping[str, Tensor]:
        """Returns the loss of a batch: a scalar, or named scalars that the harness adds up.

        images: [batch, channels, height, width] float32 in 0..1. step: 0 for the first step, `config.steps - 1`
        for the last. Noise must come from torch's global generator, so that a run is repeatable.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither training_step nor fit")

    def detect(self, images: Tensor) -> Detections:
        """Returns the detections in `images` [n, channels, height, width]; called in eval mode without gradients.

        Must be deterministic. The result for one image must not depend on the other images in the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no detect")

    # The methods below have defaults that suit most detectors.

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers stepped after every batch; Adam over all parameters unless overridden."""
        return [torch.optim.Adam(self.parameters(), lr=self.config.lr, fused=True)]

    def watch(self) -> dict[str, float]:
        """Values of the last training step to log with the loss, such as cluster usage or objects per image."""
        return {}

    def warnings(self) -> list[str]:
        """Warnings about this training for readers of the results, one sentence each; none unless overridden.

        Called once after training, in the process that finished it. Warnings must depend only on the config and the
        `state_dict`, which checkpoints keep. They are recorded and printed.
        """
        return []

    def milestones(self) -> tuple[int, ...]:
        """Steps before which training pauses for `at_milestone`, in rising order; none unless overridden.

        0 is allowed: then it pauses before the first step. A step of `config.steps` or more never comes. Asked once in
        each process, so it must follow from the config alone.
        """
        return ()

    def at_milestone(self, images: Tensor, step: int) -> None:
        """A pause in training before `step`, to look at many images at once: to start a mixture, say.

        Called in training mode, with gradients, once for each of the `milestones`; also in a training that is resumed.
        What it changes must lie in the `state_dict`. images: the first `fit_scenes` of the protocol's training images
        [n, channels, height, width], on the detector's device.
        """

    # A detector with `capturable = True` defines here what differs between steps. Its `training_step` must not use
    # `step` in any other way. On a GPU a step is then captured once per phase and replayed with new values.

    def schedule(self, step: int) -> dict[str, float]:
        """The numbers used by `training_step` that change with the step, such as a prior or a temperature.

        Always the same names, and finite. Arithmetic on them is best done here, not in `training_step`. Any detector
        may use it; one with `capturable = True` must.
        """
        return {}

    def phase(self, step: int) -> Hashable:
        """Everything else that differs between steps, such as the active loss terms. It should rarely change."""
        return None

    def annealed(self, step: int) -> Mapping[str, Tensor | float]:
        """What `training_step` takes its `schedule` from: plain numbers, or under capture 0-dim tensors.

        The tensors are float64 on the detector's device. Arithmetic with tensors takes both kinds, so the same
        `training_step` serves; `if` and `math` work on plain numbers alone, so a step that is captured uses neither.
        """
        return self.schedule(step) if self.held is None else self.held

    @property
    def captured(self) -> bool:
        """Whether the training step is being captured for a GPU: then no tensor size may depend on values."""
        return self.held is not None

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """The model's reconstruction of `images`, same shape, for `objbench show`; None if it has none."""
        return None

    def fit(self, scenes: Scenes) -> None:
        """A detector that does not train by gradient steps overrides this instead of `training_step`.

        scenes: the first `fit_scenes` training scenes of the protocol; their boxes and labels are empty unless
        `oracle`. Everything that the detector learns must be in its `state_dict`.
        """
        raise NotImplementedError

    def detect_scenes(self, scenes: Scenes) -> Detections:
        """The harness calls this method. Only an oracle overrides it; for others `scenes.truth` is empty."""
        return self.detect(scenes.images)


def other_parameters(module: nn.Module, chosen: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters of a module that are not in `chosen`: for optimisers with several groups."""
    identities = {id(parameter) for parameter in chosen}
    return [parameter for parameter in module.parameters() if id(parameter) not in identities]


def trains_by_steps(detector: type[Detector]) -> bool:
    """True if the harness runs its training loop for this detector; False if it calls `fit` once."""
    return detector.fit is Detector.fit


def blind(scenes: Scenes) -> Scenes:
    """The same images with empty ground truth."""
    nothing = GroundTruth(
        len(scenes), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0).long()
    )
    return Scenes(scenes.images, nothing)
