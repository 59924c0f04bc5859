"""GMAIR as a generator: z_what is z_avg, the mean of its cluster, plus z_local (section 4, Figures 3 and 4)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from objbench.generation import Generator, Latents
from objbench_plugins.gmair.model import Gmair, Objects, WhatPrior


class GmairGenerator(Generator):
    """Decodes and renders with the networks of a trained GMAIR."""

    @property
    def model(self) -> Gmair:
        """The detector."""
        return cast(Gmair, self.detector)

    def latents(self, images: Tensor) -> Latents:
        """See `Generator.latents`."""
        objects = self.model.infer_modes(images)
        return Latents(objects.what, objects.boxes, objects.presence, objects)

    def paint(self, latents: Latents) -> Tensor:
        """See `Generator.paint`."""
        objects: Objects = latents.rest
        changed = objects._replace(what=latents.what, boxes=latents.boxes, presence=latents.presence)
        return self.model.render(changed)[0]

    def glimpses(self, what: Tensor) -> Tensor:
        """See `Generator.glimpses`."""
        colour, alpha = self.model.decode(what[None])
        return (colour * alpha)[0]

    def centres(self) -> tuple[Tensor, Tensor]:
        """p(what | cat) of each category (Eq. 2)."""
        categories = torch.eye(self.model.config.clusters, device=self.model.start_objects.device)
        mean, std = self.model.what_prior(categories[None], WhatPrior.LEARNED)
        return mean[0], std[0]
