"""SPAIR as a generator: its decoder and renderer on changed what-latents and boxes."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from objbench.generation import Generator, Latents
from objbench_plugins.spair.model import Objects, Spair


class SpairGenerator(Generator):
    """Decodes and renders with the networks of a trained SPAIR."""

    @property
    def model(self) -> Spair:
        """The detector."""
        return cast(Spair, self.detector)

    def latents(self, images: Tensor) -> Latents:
        """See `Generator.latents`."""
        objects = self.model.infer(images).objects
        return Latents(objects.what, objects.boxes, objects.presence[..., 0], objects)

    def paint(self, latents: Latents) -> Tensor:
        """See `Generator.paint`."""
        objects: Objects = latents.rest
        presence = latents.presence[..., None]
        return self.model.render(objects._replace(what=latents.what, boxes=latents.boxes, presence=presence))

    def glimpses(self, what: Tensor) -> Tensor:
        """See `Generator.glimpses`."""
        colour, alpha = self.model.decode(what[None])
        return (colour * alpha)[0]
