"""The networks of SPACE, as published (appendix D, and the code where it says more), and small ones.

Layers of the published nets start from torch's initialisation, as published. `GroupNorm`, `SubPixelConv` and
`FullSizeConv` are torch's layers, computed in ways that are faster on a CPU. The small nets (`mlp`, `coarse_encoder`,
`coarse_decoder`) are not published.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

COARSE = 8
"""Image pixels for one of the small background nets, on each axis."""
LARGE = 2**14
"""Features of half precision are computed again rather than kept from this many values an image."""
BACKGROUND_STRIDE = 32
"""What an image side must be a multiple of: the background decoders start from a grid of side / 32."""


class GroupNorm(nn.GroupNorm):
    """In single precision whatever the features': torch's own with bfloat16 is up to ten times slower on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        y: Tensor = _SinglePrecisionNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
        return y


class _SinglePrecisionNorm(torch.autograd.Function):
    """Group normalisation of half-precision features that keeps no single-precision copy of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.size = (*x.shape[:2], x.shape[2] * x.shape[3], groups)
        y, mean, rstd = torch.native_group_norm(x.float(), weight, bias, *ctx.size, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, rstd = ctx.saved_tensors
        to_x, to_weight, to_bias = torch.ops.aten.native_group_norm_backward(
            gradient.float(), x.float(), mean, rstd, weight, *ctx.size, [True, True, True]
        )
        return to_x.to(x.dtype), to_weight, to_bias, None, None


class SubPixelConv(nn.Linear):
    """A 1x1 convolution followed by pixel shuffle: every pixel becomes a tile. It is a product of matrices.

    [n, before, h, w] -> [n, after, h v, w u]. Weights and biases are those of the 1x1 convolution, in another order:
    output (i u + j) after + c is channel c at row i and column j of the tile.
    """

    def __init__(self, before: int, after: int, tile: int | tuple[int, int]) -> None:
        """tile: its height v and width u."""
        self.tile = (tile, tile) if isinstance(tile, int) else tile
        super().__init__(before, self.tile[0] * self.tile[1] * after)

    def forward(self, x: Tensor) -> Tensor:
        tiles = super().forward(x.permute(0, 2, 3, 1))
        picture: Tensor = _TilesToPicture.apply(tiles.unflatten(-1, (*self.tile, -1)))  # type: ignore[no-untyped-call]
        return picture


class _TilesToPicture(torch.autograd.Function):
    """Tiles [n, h, w, v, u, after] side by side: [n, after, h v, w u].

    A function of its own, so that its result is no view and the nonlinearity can work in place.
    """

    @staticmethod
    def forward(ctx: Any, tiles: Tensor) -> Tensor:
        n, h, w, v, u, after = ctx.size = tiles.shape
        picture = torch.empty(
            (n, after, h * v, w * u),
            dtype=tiles.dtype,
            device=tiles.device,
            memory_format=torch.channels_last,
        )
        picture.permute(0, 2, 3, 1).view(n, h, v, w, u, after).copy_(tiles.transpose(2, 3))
        return picture

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        n, h, w, v, u, after = ctx.size
        return gradient.permute(0, 2, 3, 1).reshape(n, h, v, w, u, after).transpose(2, 3)


class FullSizeConv(nn.Conv2d):
    """A convolution whose kernel covers its whole input: a product of matrices. -> [n, after, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        found = F.linear(pixels, weight, self.bias)[:, None, None, None, None]
        after: Tensor = _TilesToPicture.apply(found)  # type: ignore[no-untyped-call]
        return after


def block(layer: nn.Module, channels: int, groups: int) -> list[nn.Module]:
    """A layer, CELU, group normalisation: in SPACE the nonlinearity comes first."""
    return [layer, nn.CELU(inplace=True), GroupNorm(groups, channels)]


def mlp(inputs: int, hidden: int, out: int) -> nn.Sequential:
    """Two hidden layers. [m, inputs] -> [m, out]."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ELU(inplace=True),
        nn.Linear(hidden, hidden), nn.ELU(inplace=True),
        nn.Linear(hidden, out),
    )  # fmt: skip


def run(net: nn.Module, x: Tensor, precision: str) -> Tensor:
    """`net(x)` in single precision; inside the network products and features have `precision`."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        y: Tensor = net(x)
    return y.float()


class Checkpointed(nn.Sequential):
    """Layers that keep only their input for the backward pass, which computes their features again.

    The last layer is not computed again: the backward pass of a convolution needs its input, not its output. With half
    precision only the largest features are worth it.
    """

    def forward(self, x: Tensor) -> Tensor:
        small = x.dtype != torch.float32 and x[0].numel() < LARGE
        if small or x.is_cuda or not torch.is_grad_enabled():  # a GPU has the memory to keep all
            return super().forward(x)
        y: Tensor = checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)
        return y


def checkpoint_norms(layers: list[nn.Module]) -> nn.Sequential:
    """The layers one after another, without keeping normalised features for the backward pass: half the memory."""
    grouped: list[nn.Module] = []
    for layer in layers:
        if grouped and isinstance(grouped[-1], nn.GroupNorm):
            grouped[-1] = Checkpointed(grouped[-1], layer)
        else:
            grouped.append(layer)
    return nn.Sequential(*grouped)


class ImageEncoder(nn.Module):
    """Features of every cell. [n, channels, H, W] -> [n, 8 width, H / cell, W / cell]."""

    def __init__(self, channels: int, cell: int, width: int) -> None:
        super().__init__()
        w, e = width, 8 * width
        strides = {8: (1, 1), 16: (1, 2), 32: (2, 2)}[cell]
        self.trunk = nn.Sequential(
            *block(nn.Conv2d(channels, w, 4, 2, 1), w, w // 4),
            *block(nn.Conv2d(w, 2 * w, 4, 2, 1), 2 * w, w // 2),
            *block(nn.Conv2d(2 * w, 4 * w, 4, 2, 1), 4 * w, w // 2),
            *block(nn.Conv2d(4 * w, 8 * w, 3, strides[0], 1), 8 * w, w),
            *block(nn.Conv2d(8 * w, 16 * w, 3, strides[1], 1), 16 * w, 2 * w),
            *block(nn.Conv2d(16 * w, e, 1), e, w),
        )
        self.lateral = nn.Sequential(
            *block(nn.Conv2d(e, e, 3, 1, 1), e, w), *block(nn.Conv2d(e, e, 3, 1, 1), e, w)
        )
        self.join = nn.Sequential(*block(nn.Conv2d(2 * e, e, 3, 1, 1), e, w))

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images.contiguous(memory_format=torch.channels_last))
        joined: Tensor = self.join(torch.cat([features, self.lateral(features)], 1))
        return joined


def glimpse_encoder(channels: int, out: int) -> nn.Sequential:
    """[m, channels, 32, 32] -> [m, out]."""
    return checkpoint_norms(
        [
            *block(nn.Conv2d(channels, 16, 3, 1, 1), 16, 4),
            *block(nn.Conv2d(16, 32, 4, 2, 1), 32, 8),
            *block(nn.Conv2d(32, 32, 3, 1, 1), 32, 4),
            *block(nn.Conv2d(32, 64, 4, 2, 1), 64, 8),
            *block(nn.Conv2d(64, 128, 4, 2, 1), 128, 8),
            *block(FullSizeConv(128, 256, 4), 256, 16),
            nn.Flatten(),
            nn.Linear(256, out),
        ]
    )


def glimpse_decoder(what_dim: int, out: int) -> nn.Sequential:
    """[m, what_dim] -> [m, out, 32, 32]: five times a sub-pixel convolution and a 3x3 one."""
    layers: list[nn.Module] = [
        nn.Unflatten(1, (what_dim, 1, 1)),
        *block(FullSizeConv(what_dim, 256, 1), 256, 16),
    ]
    before = 256
    for after, groups in ((128, 16), (128, 16), (64, 8), (32, 8), (16, 4)):
        layers += block(SubPixelConv(before, after, 2), after, groups)
        layers += block(nn.Conv2d(after, after, 3, 1, 1), after, groups)
        before = after
    return checkpoint_norms([*layers, nn.Conv2d(16, out, 3, 1, 1)])


def picture_decoder(
    latent: int, out: int, size: tuple[int, int], width: int, factors: tuple[int, int, int]
) -> nn.Sequential:
    """[m, latent] -> [m, out, *size]: the mask decoder, and the strong decoder of a lone component.

    size: multiples of 32, the product of `factors`, by which the last three stages grow. width: published 64.
    """
    w, q = width, width // 4
    first = (size[0] // BACKGROUND_STRIDE, size[1] // BACKGROUND_STRIDE)
    widths, groups = (2 * w, w, q), (w // 4, w // 8, w // 16)
    layers = [nn.Unflatten(1, (latent, 1, 1)), *block(FullSizeConv(latent, 4 * w, 1), 4 * w, w // 4)]
    layers += block(SubPixelConv(4 * w, 4 * w, first), 4 * w, w // 4)
    layers += block(nn.Conv2d(4 * w, 4 * w, 3, 1, 1), 4 * w, w // 4)
    before = 4 * w
    for after, group, factor in zip(widths, groups, factors, strict=True):
        layers += block(SubPixelConv(before, after, factor), after, group)
        layers += block(nn.Conv2d(after, after, 3, 1, 1), after, group)
        before = after
    layers += block(nn.Conv2d(q, q, 3, 1, 1), q, groups[-1])
    return checkpoint_norms([*layers, nn.Conv2d(q, out, 3, 1, 1)])


def scene_encoder(
    channels: int, size: tuple[int, int], widths: tuple[int, int, int, int], out: int
) -> nn.Sequential:
    """Four strided convolutions with batch normalisation. [m, channels, *size] -> [m, out]."""
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ELU(inplace=True)]
    flat = widths[-1] * (size[0] // 16) * (size[1] // 16)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, out))


def coarse_encoder(channels: int, size: tuple[int, int], width: int, out: int) -> nn.Sequential:
    """Perceptrons on the image shrunk to an eighth. [m, channels, *size] -> [m, out]."""
    flat = channels * (size[0] // COARSE) * (size[1] // COARSE)
    return nn.Sequential(nn.AvgPool2d(COARSE), nn.Flatten(), mlp(flat, width, out))


def coarse_decoder(latent: int, out: int, size: tuple[int, int], width: int) -> nn.Sequential:
    """A smooth picture: perceptrons make it at an eighth of the resolution. [m, latent] -> [m, out, *size]."""
    small = (out, size[0] // COARSE, size[1] // COARSE)
    return nn.Sequential(
        mlp(latent, width, small[0] * small[1] * small[2]),
        nn.Unflatten(1, small),
        nn.Upsample(scale_factor=COARSE, mode="bilinear", align_corners=False),
    )


class BroadcastDecoder(nn.Module):
    """A component's picture, of its latent at every pixel (K > 1). [m, latent] -> [m, channels, *size].

    Four 3x3 convolutions without padding. The first gets the same latent at every pixel, so for the latent it is a
    product with the kernel's sum; and its coordinates are the same for all pictures. So neither is convolved picture by
    picture.
    """

    def __init__(self, latent: int, channels: int, size: tuple[int, int], width: int) -> None:
        super().__init__()
        self.latent = latent
        self.first = nn.Conv2d(latent + 2, width, 3)
        layers: list[nn.Module] = [nn.BatchNorm2d(width), nn.ELU(inplace=True)]
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ELU(inplace=True)]
        self.rest = nn.Sequential(*layers, nn.Conv2d(width, channels, 1))
        ys, xs = torch.meshgrid(
            torch.linspace(-1, 1, size[0] + 8), torch.linspace(-1, 1, size[1] + 8), indexing="ij"
        )
        self.register_buffer("coordinates", torch.stack([xs, ys])[None], persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        of_latent, of_place = self.first.weight.split([self.latent, 2], 1)
        place = F.conv2d(
            self.get_buffer("coordinates"), of_place, self.first.bias
        )  # [1, width, H + 6, W + 6]
        same = latent @ of_latent.sum((2, 3)).T  # [m, width]
        picture: Tensor = self.rest(_AddToEveryPixel.apply(place, same))  # type: ignore[no-untyped-call]
        return picture


class _AddToEveryPixel(torch.autograd.Function):
    """place [1, width, h, w] + same [m, width] at every pixel: [m, width, h, w], channels last.

    Its gradients are sums; torch needs several times as long for sums over this layout's pixels as over rows.
    """

    @staticmethod
    def forward(ctx: Any, place: Tensor, same: Tensor) -> Tensor:
        return (place + same[:, :, None, None]).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        pixels = gradient.permute(0, 2, 3, 1)  # [m, h, w, width]
        to_place = pixels.reshape(len(gradient), -1).sum(0).view(1, *pixels.shape[1:]).permute(0, 3, 1, 2)
        return to_place, pixels.flatten(1, 2).sum(1)
