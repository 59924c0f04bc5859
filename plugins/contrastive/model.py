"""Clusters from contrastive features, and the bound of the same network trained with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objbench.clusterer import ObjectShape
from objbench_plugins.contrastive import config as options
from objbench_plugins.contrastive.losses import balance, between_views, nt_xent, to_target
from objbench_plugins.glimpses.base import AT_ONCE, GlimpseClusterer, sample
from objbench_plugins.glimpses.views import Views, batches, steps_of
from objbench_plugins.manifold.embedding import Clustering, cluster


def network(channels: int, size: int, features: int) -> nn.Sequential:
    """Glimpses [n, channels, size, size] to [n, features]."""
    side = (size + 3) // 4  # after two strides of 2
    layers: list[nn.Module] = []
    for before, after, stride in ((channels, 32, 1), (32, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * side**2, features))


class Ceiling(GlimpseClusterer):
    """What the network can do when it is told the classes: an oracle, no clusterer."""

    Config = options.CeilingConfig
    config: options.CeilingConfig
    oracle = True

    def __init__(self, config: options.CeilingConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        self.network = network(shape.channels, shape.size, config.features)
        self.head = nn.Linear(config.features, config.clusters)

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """Cross-entropy to the labels; detections of no object, and classes beyond `clusters`, are left out."""
        assert labels is not None
        known = torch.nonzero((labels >= 0) & (labels < self.config.clusters))[:, 0]
        if len(known) < 2:
            self.warned.append("found fewer than two labelled objects to fit the ceiling on")
            return
        if int(labels.max()) >= self.config.clusters:
            self.warned.append(f"objects of classes from {self.config.clusters} on were left out of the fit")
        chosen = known[sample(len(known), self.config.most).to(known.device)]
        glimpses, labels = glimpses[chosen], labels[chosen]
        c, views = self.config, Views(neighbour=self.config.neighbour)
        steps = steps_of(len(glimpses), c.batch_size, c.epochs)
        adam = torch.optim.Adam(self.parameters())
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, c.lr, total_steps=steps + 1, pct_start=0.2)
        self.train()
        for part in batches(len(glimpses), c.batch_size, steps):
            part = part.to(glimpses.device)
            loss = F.cross_entropy(self.scores(views(glimpses[part])), labels[part])
            adam.zero_grad()
            loss.backward()
            adam.step()
            rate.step()

    def scores(self, glimpses: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.head(F.relu(self.network(glimpses)))  # type: ignore[no-any-return]


class Contrastive(GlimpseClusterer):
    """Contrastive features, clustered; then a network that learns these clusters, twice.

    1. A network learns features that are alike for two views of an object and unlike for two objects (NT-Xent,
       Chen et al. 2020).
    2. The features are clustered by a neighbour embedding and a mixture (N2D, McConville et al. 2019), several
       times. Where the results do not agree, raw glimpses are clustered too, and the one of the two whose
       clusterings agree better is taken: no label is needed.
    3. The network learns these clusters from views (self-labelling, as in SCAN, Van Gansbeke et al. 2020); its
       features are clustered again for the next round, unless they agree less.

    The answer is the network's alone.
    """

    Config = options.ContrastiveConfig
    config: options.ContrastiveConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return options.settings(protocol, data)

    def __init__(self, config: options.ContrastiveConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        self.network = network(shape.channels, shape.size, config.features)
        self.head = nn.Linear(config.features, config.clusters)
        self.views = Views(neighbour=config.neighbour)
        self.trace: list[tuple[str, Clustering]] = []  # of the fit, for benchmarks: no part of the state

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """The three steps; labels are not looked at."""
        glimpses = glimpses[sample(len(glimpses), self.config.most).to(glimpses.device)]
        self.contrast(glimpses)
        best = self.clustering("contrastive", self.features(glimpses))
        if best.agreement < self.config.sure:
            raw = self.clustering("raw", glimpses.flatten(1).cpu().numpy())
            best = raw if raw.agreement > best.agreement else best
        for round_ in range(self.config.rounds):
            if round_:
                again = self.clustering(f"round {round_}", self.features(glimpses))
                best = again if again.agreement >= best.agreement else best
            self.self_train(glimpses, torch.from_numpy(best.shares).to(glimpses))

    def clustering(self, name: str, features: np.ndarray[Any, Any]) -> Clustering:
        """The joined clusterings of [n, d] features."""
        c = self.config
        found = cluster(
            features, c.clusters, neighbours=c.neighbours, dimensions=c.dimensions, starts=c.starts,
            embeddings=c.embeddings,
        )  # fmt: skip
        self.trace.append((name, found))
        return found

    @torch.no_grad()
    def features(self, glimpses: Tensor) -> np.ndarray[Any, Any]:
        """[n, features] of length 1."""
        self.eval()
        parts = [F.normalize(self.network(part), dim=1) for part in glimpses.split(AT_ONCE)]
        return torch.cat(parts).cpu().numpy()

    def contrast(self, glimpses: Tensor) -> None:
        """Step 1."""
        c = self.config
        head = nn.Sequential(nn.ReLU(), nn.Linear(c.features, 64)).to(glimpses.device)
        adam = torch.optim.Adam([*self.network.parameters(), *head.parameters()], weight_decay=1e-5)
        steps = steps_of(len(glimpses), c.batch_size, c.epochs)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, c.lr, total_steps=steps + 1, pct_start=0.2)
        self.train()
        for part in batches(len(glimpses), c.batch_size, steps):
            some = glimpses[part.to(glimpses.device)]
            loss = nt_xent(head(self.network(torch.cat([self.views(some), self.views(some)]))), c.temperature)
            adam.zero_grad()
            loss.backward()
            adam.step()
            rate.step()

    def self_train(self, glimpses: Tensor, shares: Tensor) -> None:
        """Step 3: shares [n, clusters] are the targets; the head starts anew."""
        c = self.config
        self.head.reset_parameters()
        adam = torch.optim.Adam(self.parameters())
        steps = steps_of(len(glimpses), c.batch_size, c.round_epochs)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, c.round_lr, total_steps=steps + 1, pct_start=0.2)
        whole = shares.mean(0)
        self.train()
        for part in batches(len(glimpses), c.batch_size, steps):
            part = part.to(glimpses.device)
            one, two = (self.scores(self.views(glimpses[part])).log_softmax(1) for _ in range(2))
            loss = to_target(one, two, shares[part], c.smoothing)
            loss = loss + c.consistency * between_views(one, two)
            loss = loss + c.balance * balance(one, two, whole)
            adam.zero_grad()
            loss.backward()
            adam.step()
            rate.step()

    def scores(self, glimpses: Tensor) -> Tensor:
        """Logits of the clusters."""
        return self.head(F.relu(self.network(glimpses)))  # type: ignore[no-any-return]
