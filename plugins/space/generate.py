"""SPACE as a generator: changed objects over the background that it found in each image."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from objbench.generation import Generator, Latents
from objbench_plugins.space import networks
from objbench_plugins.space.model import Objects, Space


class SpaceGenerator(Generator):
    """Decodes and composes with the networks of a trained SPACE."""

    @property
    def model(self) -> Space:
        """The detector."""
        return cast(Space, self.detector)

    def latents(self, images: Tensor) -> Latents:
        """See `Generator.latents`."""
        objects = self.model.infer_modes(images)
        background = self.model.background(images, sample=False).image
        return Latents(objects.what_mean, objects.boxes, objects.presence, (objects, background))

    def paint(self, latents: Latents) -> Tensor:
        """See `Generator.paint`."""
        found, background = latents.rest
        colour, alpha = self.decode(latents.what.flatten(0, 1))
        shape = latents.what.shape[:2]
        objects: Objects = found._replace(
            boxes=latents.boxes,
            presence=latents.presence,
            colour=colour.unflatten(0, shape),
            alpha=alpha.unflatten(0, shape),
        )
        foreground, weight = self.model.compose(objects, self.model.windows(objects.boxes))
        return (weight * foreground + (1 - weight) * background).clamp(0, 1)

    def glimpses(self, what: Tensor) -> Tensor:
        """See `Generator.glimpses`."""
        colour, alpha = self.decode(what)
        return colour * alpha

    def decode(self, what: Tensor) -> tuple[Tensor, Tensor]:
        """Colour [m, channels, g, g] and alpha [m, 1, g, g] of what-latents [m, A], in 0..1."""
        c = self.model.config
        decoded = networks.run(self.model.decoder, what, c.precision)
        return torch.sigmoid(decoded[:, :-1] + c.colour_bias), torch.sigmoid(decoded[:, -1:] + c.alpha_bias)
