"""A clusterer that looks at glimpses: what is the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from objbench.clusterer import Clusterer, ClustererConfig, Cut, Objects, ObjectShape
from objbench.errors import UsageError
from objbench.options import option

AT_ONCE = 512
"""Objects that are assigned together."""
CLOSE = 1e-3
"""Where the best two scores in float32 differ by less than this share of the largest, float64 decides."""


@dataclass(frozen=True)
class GlimpseConfig(ClustererConfig):
    """Options of every clusterer of glimpses."""

    glimpse: int = option(16, "side in pixels of a glimpse", low=4, high=128)
    margin: float = option(
        0.0, "the glimpse's square is the longer side of the box times 1 + this", above=-1, high=10
    )


class GlimpseClusterer(Clusterer):
    """Learns from glimpses, and puts each object into the cluster that scores it highest.

    A subclass writes `learn` and `scores`. With fewer different glimpses than clusters nothing is learned:
    every object is then in cluster 0, and a warning says so.
    """

    Config = GlimpseConfig
    config: Any
    continuous: ClassVar[bool] = True
    """Whether rounding changes `scores` by no more than a little: a network's, but not those of nearest neighbours."""

    @classmethod
    def cut(cls, config: Any) -> Cut:
        """Squares as the options `glimpse` and `margin` say."""
        return Cut(config.glimpse, config.margin)

    def __init__(self, config: Any, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        self.warned: list[str] = []
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, objects: Objects) -> None:
        """Learns, unless there are too few different objects. UsageError when an oracle is given no labels."""
        glimpses = pixels(objects.glimpses)
        different = len(torch.unique(glimpses.flatten(1), dim=0)) if len(glimpses) else 0
        if different < self.config.clusters:
            self.warned.append(
                f"found {different} different objects to fit {self.config.clusters} clusters on, so all objects "
                "are in cluster 0"
            )
            return
        if self.oracle and objects.labels is None:
            raise UsageError("an oracle is fitted on true classes, and was given none")
        self.learn(glimpses, objects.labels)
        self.eval()
        self.get_buffer("fitted").fill_(True)

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """Learns from glimpses [n, channels, size, size] in 0..1, n at least `clusters`; labels only for an oracle."""
        raise NotImplementedError(f"{type(self).__name__} has no learn")

    def scores(self, glimpses: Tensor) -> Tensor:
        """[m, clusters], higher where the cluster suits better; glimpses and state are both float32 or both float64."""
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def forward(self, glimpses: Tensor) -> Tensor:
        """`scores`, as a module's call."""
        return self.scores(glimpses)

    def assign(self, objects: Objects) -> Tensor:
        """The cluster of the highest score; all 0 when nothing was learned.

        Rounding differs with the batch and the number of threads, and must not decide between clusters. So they are
        scored in float64 where it could: everywhere, or, as that is some twenty times slower for convolutions, where
        two clusters are close in float32, if scores are `continuous`.
        """
        glimpses = pixels(objects.glimpses)
        if not self.get_buffer("fitted") or not len(glimpses):
            return torch.zeros(len(glimpses), dtype=torch.int64, device=glimpses.device)
        return torch.cat([self._best(part) for part in glimpses.split(AT_ONCE)])

    def _best(self, glimpses: Tensor) -> Tensor:
        """The clusters of at most AT_ONCE glimpses."""
        if not self.continuous:
            return self._exactly(glimpses)
        scores = self.scores(glimpses)
        clusters = scores.argmax(1)
        if scores.shape[1] == 1:
            return clusters
        first, second = scores.topk(2).values.unbind(1)
        close = ~(first - second > CLOSE * scores.abs().amax(1))  # also where a score is NaN
        if close.any():
            clusters[close] = self._exactly(glimpses[close])
        return clusters

    def _exactly(self, glimpses: Tensor) -> Tensor:
        """The clusters of glimpses, scored in float64."""
        state = {k: v.double() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        found: Tensor = functional_call(self, state, glimpses.double())
        return found.argmax(1)

    def warnings(self) -> list[str]:
        """What `fit` has to say."""
        return list(self.warned)


def pixels(glimpses: Tensor) -> Tensor:
    """The same in 0..1, with 0 for NaN; never the caller's own memory is changed."""
    return glimpses.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)


def sample(count: int, most: int) -> Tensor:
    """Indices of at most `most` of `count` objects, drawn by the global generator, ascending."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count)[:most].sort().values


def fresh_seed() -> int:
    """A seed for a library's own generator, drawn from torch's global one."""
    return int(torch.randint(2**31 - 1, ()))
