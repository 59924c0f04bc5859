"""The networks of GMAIR: Tables 3 to 6 of the paper, and the small ones of the demo and small protocols."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

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
    leaves out, and nothing is pretrained. Its first weights are that code's, too: torch's for ResNet-18 (not those of
    torchvision); a deviation of 0.001 for the 3x3 convolutions; and for the deconvolutions torch's, but for the first
    output channel, which interpolates bilinearly from the sum of all inputs.
    """
    from torchvision.models import resnet18  # heavy, and only this network needs it

    resnet = resnet18(weights=None)
    if channels != 3:
        resnet.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    # without average pool and classifier
    trunk = nn.Sequential(OrderedDict(list(resnet.named_children())[:-2]))
    hat = torch.tensor([0.25, 0.75, 0.75, 0.25])
    neck: list[nn.Module] = []
    for before, after in ((512, 128), (128, 64)):
        convolution = nn.Conv2d(before, after, 3, 1, 1, bias=False)
        up = nn.ConvTranspose2d(after, after, 4, 2, 1, bias=False)
        nn.init.normal_(convolution.weight, std=0.001)
        with torch.no_grad():
            up.weight[:, 0] = hat[:, None] * hat  # [inputs, outputs, 4, 4]
        for layer in (convolution, up):
            neck += [layer, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
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


def run_heads(heads: Sequence[nn.Module], features: Tensor) -> Tensor:
    """What several heads of the same shape say, side by side: [n, cells, sum of outs] of features [n, ..., h, w].

    The same as each by itself: the first convolutions of all are one, and so are the last, a product with a matrix of
    which each head has a block.
    """
    heads_layers = [list(head) for head in heads]
    firsts, lasts = [layers[0] for layers in heads_layers], [layers[-1] for layers in heads_layers]
    hidden = features
    if len(heads_layers[0]) > 1:
        weight, bias = torch.cat([f.weight for f in firsts]), torch.cat([f.bias for f in firsts])
        hidden = torch.relu_(F.conv2d(features, weight, bias, padding=1))
        if len(heads_layers[0]) > 3:
            parts = zip(heads_layers, hidden.chunk(len(heads), 1), strict=True)
            hidden = torch.cat([nn.Sequential(*layers[2:-1])(part) for layers, part in parts], 1)
        weight = torch.block_diag(*[last.weight.flatten(1) for last in lasts])
    else:
        weight = torch.cat([last.weight.flatten(1) for last in lasts])
    rows = hidden.permute(0, 2, 3, 1).flatten(1, 2)  # [n, cells, features]
    return F.linear(rows, weight, torch.cat([last.bias for last in lasts]))


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

    As in the published code, a "deconvolution" is a 1x1 convolution to four times the features, with a bias for each,
    and a pixel shuffle; and ReLU comes before group normalisation. First weights are torch's, as there.
    """

    AT_ONCE = 512
    """How many glimpses the last layers are run on at once, on a CPU."""

    def __init__(self, what_dim: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(what_dim, 256)
        layers: list[nn.Module] = []
        for before, after in ((256, 128), (128, 128), (128, 64), (64, 32)):
            layers += [*doubled(before, after), nn.ReLU(inplace=True), nn.GroupNorm(8, after)]
        layers += [nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(inplace=True), nn.GroupNorm(8, 32)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Sequential(
            *doubled(32, 16),
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


def doubled(before: int, after: int) -> tuple[nn.Module, nn.Module]:
    """Layers [m, before, h, w] -> [m, after, 2 h, 2 w], each pixel to four of its own."""
    return nn.Conv2d(before, 4 * after, 1), nn.PixelShuffle(2)


class MlpDecoder(nn.Module):
    """Two hidden layers. [m, A] -> [m, out, size, size]. Enough for small glimpses, and much faster."""

    def __init__(self, what_dim: int, width: int, out: int, size: int) -> None:
        super().__init__()
        self.layers = encoder(what_dim, (width, width), out * size * size)
        self.shape = (out, size, size)

    def forward(self, what: Tensor) -> Tensor:
        decoded: Tensor = self.layers(what)
        return decoded.unflatten(-1, self.shape)
