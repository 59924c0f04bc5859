"""IIC (Ji et al. 2019): clusters that two views of an object share, and that are told apart as often as can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objbench.clusterer import ObjectShape
from objbench.options import Settings, option, settings_for
from objbench_plugins.glimpses.base import GlimpseClusterer, GlimpseConfig
from objbench_plugins.glimpses.views import batches


@dataclass(frozen=True)
class IicConfig(GlimpseConfig):
    """Defaults are the original's on MNIST, with steps for epochs."""

    glimpse: int = option(24, "side in pixels of a glimpse", low=8, high=128)
    width: int = option(
        64, "channels of the first convolution; the next three have 2, 4 and 8 times as many", low=1
    )
    overclusters: int = option(50, "clusters of the auxiliary head", low=2)
    heads: int = option(5, "sub-heads of each of the two heads", low=1)
    batch_size: int = option(700, "objects a step", low=2)
    steps: int = option(274_000, "steps: 3,200 epochs of 60,000 digits", low=1)
    lr: float = option(1e-4, "Adam's learning rate", above=0)
    rotation: float = option(25.0, "degrees to either side of a view", low=0, high=180)
    least_crop: float = option(0.8, "smallest side of a view's crop, in glimpses", above=0, high=2)
    most_crop: float = option(1.2, "largest side of a view's crop, in glimpses", above=0, high=2)
    reach: float = option(
        1.4, "side in glimpses of the square that crops lie in; black outside the glimpse", low=1, high=3
    )
    jitter: float = option(0.4, "brightness and contrast of a view change by 1 -+ this", low=0, high=1)


SETTINGS: Settings = {
    ("small", "*"): {"width": 16, "batch_size": 250, "steps": 3_000, "lr": 1e-3, "glimpse": 16},
    ("demo", "*"): {"width": 8, "batch_size": 100, "steps": 1_500, "lr": 1e-3, "glimpse": 16},
    ("*", "mnist"): {"margin": -2 / 7},
}


def information_loss(one: Tensor, two: Tensor) -> Tensor:
    """Minus the mutual information of the clusters of paired views, [n, clusters] probabilities (equations 2 and 3)."""
    joint = one.T @ two / len(one)  # P of equation 2
    joint = ((joint + joint.T) / 2).clamp(min=1e-9)
    rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    return -(joint * (joint.log() - rows.log() - columns.log())).sum()  # equation 3


def away(side: Tensor, reach: float) -> Tensor:
    """Random centres [n, 2] of squares of [n] sides inside one of side `reach`, in half glimpses from the middle."""
    return (torch.rand(len(side), 2) * 2 - 1) * (reach - side).clamp(min=0)[:, None]


def crops(glimpses: Tensor, angle: Tensor, side: Tensor, centre: Tensor) -> Tensor:
    """Squares of [n] sides in glimpses, turned by [n] radians, at [n, 2] centres in half glimpses from the middle."""
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    theta = torch.cat([turn * side[:, None, None], centre[:, :, None]], 2).to(glimpses.device)
    grid = F.affine_grid(theta, list(glimpses.shape), align_corners=False)
    return F.grid_sample(glimpses, grid, align_corners=False)


class Iic(GlimpseClusterer):
    """Two heads of several sub-heads on one trunk: the clusters, and an auxiliary over-clustering."""

    Config = IicConfig
    config: IicConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: IicConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        layers: list[nn.Module] = []
        before, side = shape.channels, shape.size
        for i in range(4):
            after = config.width * 2**i
            layers += [nn.Conv2d(before, after, 5, padding=2), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
            if i < 3:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        values = before * side**2
        self.main = nn.ModuleList(nn.Linear(values, config.clusters) for _ in range(config.heads))
        self.over = nn.ModuleList(nn.Linear(values, config.overclusters) for _ in range(config.heads))
        self.register_buffer("best", torch.tensor(0))

    def learn(self, glimpses: Tensor, labels: Tensor | None) -> None:
        """Steps of the two heads in turn, as epochs alternate in the original; then the best sub-head is chosen."""
        c = self.config
        adam = torch.optim.Adam(self.parameters(), lr=c.lr)
        losses = torch.zeros(c.heads, device=glimpses.device)  # of the last hundred steps of the main head
        self.train()
        for step, part in enumerate(batches(len(glimpses), c.batch_size, c.steps)):
            some = glimpses[part.to(glimpses.device)]
            plain, changed = self.trunk(self.near(some)), self.trunk(self.view(some))
            heads = self.over if step % 2 else self.main
            each = torch.stack([
                information_loss(head(plain).softmax(1), head(changed).softmax(1)) for head in heads
            ])  # fmt: skip
            loss = each.mean()  # section 3.3: the mean over sub-heads
            adam.zero_grad()
            loss.backward()
            adam.step()
            if not step % 2 and step >= c.steps - 100:
                losses += each.detach()
        self.get_buffer("best").fill_(int(losses.argmin()))

    def near(self, glimpses: Tensor) -> Tensor:
        """The first of a pair: the glimpse, or with probability 1/2 a crop of its size near it, neither turned."""
        n = len(glimpses)
        where = (torch.rand(n) < 0.5)[:, None] * away(torch.ones(n), self.config.reach)
        return crops(glimpses, torch.zeros(n), torch.ones(n), where)

    def view(self, glimpses: Tensor) -> Tensor:
        """The second of a pair: cropped anywhere near, turned with probability 1/2, brighter or darker.

        Without the wide crops and the change of brightness, clusters of equal ink or place are enough for a low
        loss, and they are found first.
        """
        n, c = len(glimpses), self.config
        angle = (torch.rand(n) < 0.5) * (torch.rand(n) * 2 - 1) * math.radians(c.rotation)
        side = c.least_crop + (c.most_crop - c.least_crop) * torch.rand(n)
        view = crops(glimpses, angle, side, away(side, c.reach))
        brightness, contrast = 1 + c.jitter * (torch.rand(2, n, 1, 1, 1).to(view) * 2 - 1)
        view = (view * brightness).clamp(max=1)
        mean = view.mean((1, 2, 3), keepdim=True)
        return (mean + (view - mean) * contrast).clamp(0, 1)

    def scores(self, glimpses: Tensor) -> Tensor:
        """Logits of the best sub-head."""
        values = self.trunk(glimpses)
        return torch.stack([head(values) for head in self.main])[self.get_buffer("best")]
