"""K-means on the pixels of glimpses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objbench.clusterer import Clusterer, ClustererConfig, Cut, Objects, ObjectShape
from objbench.options import option


@dataclass(frozen=True)
class NewPluginConfig(ClustererConfig):
    """What `-o new-plugin.KEY=VALUE` sets; `clusters` comes from ClustererConfig."""

    glimpse: int = option(14, "height and width in pixels that each object is resampled to", low=2)
    rounds: int = option(50, "rounds of k-means", low=1)


class NewPlugin(Clusterer):
    """Each object belongs to the nearest centre."""

    Config = NewPluginConfig
    config: NewPluginConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """What differs from the defaults."""
        return {"rounds": 20} if protocol == "demo" else {}

    @classmethod
    def cut(cls, config: NewPluginConfig) -> Cut:
        """The glimpses that it wants: a little more than the box holds."""
        return Cut(config.glimpse, margin=0.2)

    def __init__(self, config: NewPluginConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("centres", torch.zeros(config.clusters, shape.channels * shape.size**2))
        self.fitted_on = 0

    def fit(self, objects: Objects) -> None:
        """Moves centres to the means of their objects, from a start at random objects."""
        pixels, centres = objects.glimpses.flatten(1), self.get_buffer("centres")
        self.fitted_on = len(objects)
        if len(objects) < self.config.clusters:
            return
        centres.copy_(pixels[torch.randperm(len(pixels))[: self.config.clusters]])
        for _ in range(self.config.rounds):
            nearest = self.assign(objects)
            for c in set(nearest.tolist()):
                centres[c] = pixels[nearest == c].mean(0)

    def assign(self, objects: Objects) -> Tensor:
        """The nearest centre of each object, [m] int64."""
        pixels = objects.glimpses.flatten(1)
        return (pixels[:, None] - self.get_buffer("centres")).square().sum(2).argmin(1)

    def warnings(self) -> list[str]:
        """Whether there were too few objects."""
        if self.fitted_on >= self.config.clusters:
            return []
        return [
            f"all objects are in cluster 0: {self.fitted_on} to fit on, for {self.config.clusters} clusters"
        ]
