"""The contract of a detector, and what it returns.

The whole of a plugin author's work is a subclass of `Detector` with `training_step` and `detect`; the harness
does the rest: device, seeds, data, the training loop, checkpoints, clustering where the detector has none,
metrics, pictures and tables.
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
"""A detection with a score of at least this is one the detector stands by: clustering and counts use these.

AP ranks all detections, whatever their score.
"""
MIN_SCORE = 0.01
"""Candidates with a score below this are not worth returning: `Detections.from_padded` drops them."""


@dataclass(frozen=True)
class Detections:
    """What a detector found in `images` images, as flat lists: detection j lies in image `image[j]`."""

    images: int
    image: Tensor  # [m] int64, 0..images-1
    boxes: Tensor  # [m, 4] float32, xyxy in pixels
    scores: Tensor  # [m] float32 in 0..1; at least PRESENT where the detector stands by it
    clusters: Tensor | None = None  # [m] int64, >= 0; None when the detector does not cluster
    what: Tensor | None = None  # [m, A] float32 what-latents; needed when clusters is None

    def __post_init__(self) -> None:
        m = len(self.image)
        parts = {"boxes": (self.boxes, (m, 4)), "scores": (self.scores, (m,))}
        if self.clusters is not None:
            parts["clusters"] = (self.clusters, (m,))
        if self.what is not None:
            parts["what"] = (self.what, (m, self.what.shape[-1]))
        for name, (tensor, expected) in parts.items():
            if tensor.shape != expected:
                raise ValueError(
                    f"{m} detections need {name} of shape {list(expected)}, got {list(tensor.shape)}"
                )

    @staticmethod
    def from_padded(
        boxes: Tensor,  # [n, k, 4]
        scores: Tensor,  # [n, k]
        clusters: Tensor | None = None,  # [n, k]
        what: Tensor | None = None,  # [n, k, A]
        min_score: float = MIN_SCORE,
    ) -> Detections:
        """From k candidates an image; dropped are scores below `min_score` and boxes of no width or no height.

        That is what is left of a box outside the image when it is clamped to it. Boxes that are inside out or
        not finite stay: they are mistakes, and are to be told.
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
        """Detections of consecutive batches as one."""
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
        return Detections(offsets[-1], image, boxes, scores, joined("clusters"), joined("what"))

    def to(self, device: torch.device | str) -> Detections:
        """The same detections on another device."""
        move = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Detections(**{**vars(self), **move})


@dataclass(frozen=True)
class DetectorConfig:
    """What every detector that trains by gradient steps can be told."""

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
    """A frozen dataclass of options; its defaults are the `paper` protocol's."""
    capturable: ClassVar[bool] = False
    """True where a training step can be captured and replayed on a GPU: see `schedule` and `phase`."""
    oracle: ClassVar[bool] = False
    """True for a floor or a ceiling that is given the true boxes; tables say so. See `detect_scenes`."""

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """Config values that differ from the defaults for this protocol and data set; `-o` goes over them.

        The one place for whatever belongs to one (model, data) pair.
        """
        return {}

    def __init__(self, config: Any, shape: SceneShape) -> None:
        """`config` is an instance of `Config`; `shape` (channels, height, width) is that of every image."""
        super().__init__()
        self.config = config
        self.shape = shape
        self.held: Mapping[str, Tensor] | None = None
        """While steps are captured: where the harness writes the values of `schedule`, each a 0-dim float64."""

    def training_step(self, images: Tensor, step: int) -> Tensor | Mapping[str, Tensor]:
        """The loss of a batch: a scalar, or named scalars that are added up.

        images: [batch, channels, height, width] float32 in 0..1. step: 0 for the first, `config.steps - 1`
        for the last. Noise must come from torch's global generator: that is what makes a run repeatable.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither training_step nor fit")

    def detect(self, images: Tensor) -> Detections:
        """What is in `images` [n, channels, height, width]; called in eval mode without gradients.

        Must be deterministic, and each image's answer independent of the others in the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no detect")

    # What follows has a default that suits most detectors.

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers stepped after every batch; Adam over all parameters unless overridden."""
        return [torch.optim.Adam(self.parameters(), lr=self.config.lr, fused=True)]

    def watch(self) -> dict[str, float]:
        """Numbers to log beside the loss, of the last training step (cluster usage, objects an image)."""
        return {}

    def warnings(self) -> list[str]:
        """What a reader of the results must know about this training, a sentence each; none unless overridden.

        Called once after training, in the process that ended it: what it says must follow from the config and the
        `state_dict`, which checkpoints keep. It goes into the record and is printed.
        """
        return []

    def milestones(self) -> tuple[int, ...]:
        """Steps before which training pauses for `at_milestone`; none unless overridden."""
        return ()

    def at_milestone(self, images: Tensor, step: int) -> None:
        """A pause in training, to look at many images at once: to start a mixture, say.

        images: the first `fit_scenes` of the protocol's training images [n, channels, height, width].
        """

    # A detector with `capturable = True` says what differs between steps, and its `training_step` reads `step`
    # in no other way. On a GPU a step is then captured once a phase and replayed, with new values each time.

    def schedule(self, step: int) -> dict[str, float]:
        """The numbers that `training_step` reads and that change with the step: a prior, a temperature.

        Always the same names. Arithmetic on them is best done here, not in `training_step`.
        """
        return {}

    def phase(self, step: int) -> Hashable:
        """Whatever else differs between steps: which terms and cells count. It should seldom change."""
        return None

    def annealed(self, step: int) -> Mapping[str, Tensor | float]:
        """What `training_step` takes its `schedule` from: plain numbers, or under capture 0-dim tensors."""
        return self.schedule(step) if self.held is None else self.held

    @property
    def captured(self) -> bool:
        """Whether the training step runs as one that is captured for a GPU: no size in it may then depend on values."""
        return self.held is not None

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """The model's own picture of `images`, same shape, for `objbench show`; None when it has none."""
        return None

    def fit(self, scenes: Scenes) -> None:
        """Overridden instead of `training_step` by a detector that does not train by gradient steps.

        scenes: the protocol's `fit_scenes` first training scenes; their boxes and labels are empty unless `oracle`.
        What it learns must be in its `state_dict`.
        """
        raise NotImplementedError

    def detect_scenes(self, scenes: Scenes) -> Detections:
        """What the harness calls. Only an oracle overrides it; for others `scenes.truth` is empty."""
        return self.detect(scenes.images)


def other_parameters(module: nn.Module, chosen: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters of a module that are not among the chosen ones: for optimisers with several groups."""
    identities = {id(parameter) for parameter in chosen}
    return [parameter for parameter in module.parameters() if id(parameter) not in identities]


def trains_by_steps(detector: type[Detector]) -> bool:
    """Whether the harness runs its training loop for this detector, or calls `fit` once."""
    return detector.fit is Detector.fit


def blind(scenes: Scenes) -> Scenes:
    """The same images with nothing said about what is in them."""
    nothing = GroundTruth(
        len(scenes), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0).long()
    )
    return Scenes(scenes.images, nothing)
