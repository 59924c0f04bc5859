"""The optional part of a detector that generates: `ModelSpec.generate` names a subclass of `Generator`.

`objbench figure generated` and `objbench figure varied` draw with it. It stands apart from the detector, so a detector
may get one later without a new key for its finished trainings. Lengths: n images, k objects or grid cells of an image,
m what-latents; A is the size of a what-latent, g the side of a glimpse in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from objbench.detector import Detector


class Latents(NamedTuple):
    """The latents of the objects in some images, each at its mode."""

    what: Tensor
    """`[n, k, A]`."""
    boxes: Tensor
    """`[n, k, 4]` xyxy in pixels."""
    presence: Tensor
    """`[n, k]` in 0..1."""
    rest: Any
    """Whatever else `paint` needs; it is handed back as it was."""


class Generator(ABC):
    """Paints what-latents and scenes with a trained detector, which is in eval mode; no gradient is needed."""

    def __init__(self, detector: Detector) -> None:
        """detector: an instance of the spec's target, with the weights of a finished training."""
        self.detector = detector

    @abstractmethod
    def latents(self, images: Tensor) -> Latents:
        """The latents of images `[n, channels, height, width]` in 0..1."""

    @abstractmethod
    def paint(self, latents: Latents) -> Tensor:
        """The scenes of these latents, `[n, channels, height, width]` in 0..1; all but `rest` may have been changed."""

    @abstractmethod
    def glimpses(self, what: Tensor) -> Tensor:
        """What objects with the what-latents `[m, A]` look like, on black: `[m, channels, g, g]` in 0..1."""

    def centres(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the what-latents of each cluster, `[clusters, A]` each.

        None if the detector has no such prior; then they are computed from the clusters of the cell.
        """
        return None
