"""The networks of GMAIR: Tables 3 to 6 of the paper, and the small ones of the demo and small protocols."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

STRIDE = 8
"""Pixels of the image for one cell of the grid, on each axis; every backbone has this stride."""
MULTIPLES = {"resnet18": 32, "small": STRIDE}
"""Of how many pixels an image side must be a multiple for each backbone; ResNet-18 goes down to 1/32, then up again."""


def resnet_backbone(channels: int) -> nn.Module:
    """Table 3: ResNet-18 without its classifier, then two deconvolutions. [n, C, H, W] -> [n, 64, H/8, W/8].

    As in the published code each deconvolution follows a 3x3 convolution with batch normalisation, which the table
    leaves out, and nothing is pretrained.
    """
    from torchvision.models import resnet18  # heavy, and only this network needs it

    resnet = resnet18(weights=None)
    if channels != 3:
        resnet.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    # without average pool and classifier
    trunk = nn.Sequential(OrderedDict(list(resnet.named_children())[:-2]))
    neck: list[nn.Module] = []
    for before, after in ((512, 128), (128, 64)):
        neck += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        neck += [
            nn.ConvTranspose2d(after, after, 4, 2, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(trunk, *neck)


def small_backbone(channels: int, width: int) -> nn.Module:
    """Five 3x3 convolutions with group normalisation. [n, C, H, W] -> [n, 4 width, H/8, W/8]."""
    layers: list[nn.Module] = []
    before = channels
    for after, stride in ((width, 2), (2 * width, 2), (4 * width, 2), (4 * width, 1), (4 * width, 1)):
        layers += [
            nn.Conv2d(before, after, 3, stride, 1),
            nn.GroupNorm(min(8, after), after),
            nn.ReLU(inplace=True),
        ]
        before = after
    return nn.Sequential(*layers)


def head(features: int, hidden: int, layers: int, out: int) -> nn.Module:
    """Table 4: `layers` 3x3 convolutions and a 1x1. [n, features, h, w] -> [n, out, h, w]."""
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Conv2d(features if i == 0 else hidden, hidden, 3, 1, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Conv2d(hidden if layers else features, out, 1))


def encoder(inputs: int, widths: tuple[int, ...], out: int) -> nn.Module:
    """Table 5: a multilayer perceptron. [m, inputs] -> [m, out]."""
    parts: list[nn.Module] = []
    for before, after in zip((inputs, *widths), widths, strict=False):
        parts += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear((inputs, *widths)[-1], out))


class FixedScaleNorm(nn.Module):
    """Batch normalisation of means [n, cells, 4] with a scale that is not learned (BN-VAE, Zhu et al. 2020).

    A batch of one has no variance, so it uses the running statistics, as in evaluation.
    """

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)
        nn.init.constant_(self.norm.weight, scale)
        self.norm.weight.requires_grad_(False)

    def forward(self, means: Tensor) -> Tensor:
        norm = self.norm
        use_batch = self.training and len(means) > 1
        return F.batch_norm(
            means.flatten(1),
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            use_batch,
            norm.momentum,
            norm.eps,
        ).view_as(means)


class ConvDecoder(nn.Module):
    """Table 6: deconvolutions from 1x1 to 32x32. [m, A] -> [m, out, 32, 32].

    Non-overlapping 2x2 deconvolutions: the same map as the published code's 1x1 convolutions with pixel shuffle.
    As in that code, ReLU comes before group normalisation.
    """

    AT_ONCE = 512
    """How many glimpses the last layers are run on at once, on a CPU."""

    def __init__(self, what_dim: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(what_dim, 256)
        layers: list[nn.Module] = []
        for before, after in ((256, 128), (128, 128), (128, 64), (64, 32)):
            layers += [nn.ConvTranspose2d(before, after, 2, 2), nn.ReLU(inplace=True), nn.GroupNorm(8, after)]
        layers += [nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(inplace=True), nn.GroupNorm(8, 32)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 2, 2),
            nn.ReLU(inplace=True),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, out, 3, 1, 1),
        )
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    def forward(self, what: Tensor) -> Tensor:
        first = torch.relu(self.first(what))[:, :, None, None].contiguous(memory_format=torch.channels_last)
        small = self.layers(first)  # [m, 32, 16, 16]
        if len(what) <= self.AT_ONCE or what.is_cuda:  # a GPU has the memory
            large: Tensor = self.last(small)
            return large
        # The last layers make most of the features with a fifth of the work: computed again in the backward pass.
        parts = [
            checkpoint(self.last, s, use_reentrant=False, preserve_rng_state=False)
            for s in small.split(self.AT_ONCE)
        ]
        return torch.cat(parts)


class MlpDecoder(nn.Module):
    """Two hidden layers. [m, A] -> [m, out, size, size]. Enough for small glimpses, and much faster."""

    def __init__(self, what_dim: int, width: int, out: int, size: int) -> None:
        super().__init__()
        self.layers = encoder(what_dim, (width, width), out * size * size)
        self.shape = (out, size, size)

    def forward(self, what: Tensor) -> Tensor:
        decoded: Tensor = self.layers(what)
        return decoded.unflatten(-1, self.shape)
