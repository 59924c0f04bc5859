"""A front of SPAIR's cells as one function of autograd, with its backward pass written by hand.

`Spair.infer_cells` is the plain version: the model, read top-down. Torch records about a hundred operations for each
front of it, and a step has 16 to 31 fronts of few cells, so much of a step is bookkeeping. Here a front is one recorded
operation, and the gradient of a weight is one product for all fronts, not one product and one sum for each. Values and
gradients are those of the plain version to rounding; a test compares both.

Derivation. A front has r = images x cells rows. Below, d x is the gradient of the loss with respect to x, * is
elementwise, and every line is the chain rule of one line of `infer_cells`, in the reverse order.

    Linear layer, y = x W' + b      d x = d y W. Over all fronts, d W = sum of (d y)' x and d b = sum of d y over rows:
                                    with the x and d y of all fronts one below the other, one product (`Layer`).
    ReLU, y = max(x, 0)             d x = d y where y > 0, else 0.
    y = sigmoid(clamp(x, -10, 10))  d x = d y * y * (1 - y) where -10 <= x <= 10, else 0 (`unsquash`).
    Sample of N(mean, s^2),         d mean += d z
      z = mean + s * noise,         d s += d z * noise
      s = 2 sigmoid(clamp(raw))     d raw: as above, of y = s / 2 with d y = 2 d s (`Gaussian`).
    Presence, of a network's        d noisy += d presence * presence * (1 - presence)
      output u: l = clamp(u + bias) d l += d noisy / temperature
      noisy = (l + noise)           d u = d l where -10 <= u + bias <= 10, else 0.
        / temperature
      presence = sigmoid(noisy)
    Box of centre and size, both    The box is (middle - half, middle + half), so with its gradient (a, b), two numbers
      from sigmoids: middle =       each: d middle = a + b and d half = b - a;
      (corner + centre) stride,     d centre += stride d middle, d size += anchor / 2 d half.
      half = size anchor / 2,
      centre = low + range * unit   d unit = range * d centre.
    Glimpse of a box                as torch differentiates `crop`.

A value that is read in several places gets the sum of what arrives from each: the attributes of a box are read by the
depth and the presence network and by neighbours, the what-latent also by the decoder, and so on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objbench.spatial import crop
from objbench_plugins.spair.config import SpairConfig

LIMIT = 10.0
"""Logits are clamped to -LIMIT..LIMIT before sigmoids."""


class Layer:
    """A linear layer, and what all fronts gave it and got for it."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.given: list[Tensor] = []  # x of each front, [r, inputs]
        self.got: list[Tensor] = []  # d y of each front, [r, outputs]

    def __call__(self, x: Tensor) -> Tensor:
        """[r, inputs] -> [r, outputs]."""
        return F.linear(x, self.weight, self.bias)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of x [r, inputs], given that of y [r, outputs]; both are kept for that of the weight."""
        self.given.append(x)
        self.got.append(gradient)
        return gradient @ self.weight

    def gradients(self) -> list[Tensor]:
        """Of the weight and, if there is one, the bias; forgets the fronts."""
        given, got = torch.cat(self.given), torch.cat(self.got)
        self.given, self.got = [], []
        return [got.T @ given] if self.bias is None else [got.T @ given, got.sum(0)]


class Layers(NamedTuple):
    """The layers of a front; of each two-layer network the first and the second."""

    from_context: Layer
    box: tuple[Layer, Layer]
    what: tuple[Layer, ...]
    depth_from_attributes: Layer
    depth: tuple[Layer, Layer]
    presence_from_attributes: Layer
    presence: tuple[Layer, Layer]

    @property
    def all(self) -> list[Layer]:
        """In a fixed order."""
        return [part for parts in self for part in ((parts,) if isinstance(parts, Layer) else parts)]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order of `gradients`."""
        return [p for layer in self.all for p in layer.linear.parameters()]

    @property
    def gradients(self) -> list[Tensor]:
        """Of all parameters, for all fronts since the last call."""
        return [gradient for layer in self.all for gradient in layer.gradients()]


class Parameters(torch.autograd.Function):
    """Hands autograd the gradients of all layers, once every front's backward pass is done.

    Its result is an empty tensor that every front takes, so that autograd comes here after all fronts.
    """

    @staticmethod
    def forward(ctx: Any, layers: Layers, *parameters: Tensor) -> Tensor:
        ctx.layers = layers
        return parameters[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, *ctx.layers.gradients


class Gaussian(NamedTuple):
    """A sample of N(mean, std^2) with a deviation from a network's output."""

    mean: Tensor
    raw: Tensor
    std: Tensor
    noise: Tensor
    sample: Tensor

    @staticmethod
    def of(mean: Tensor, raw: Tensor, noise: Tensor) -> Gaussian:
        std = 2 * torch.sigmoid(raw.clamp(-LIMIT, LIMIT))
        return Gaussian(mean, raw, std, noise, torch.addcmul(mean, std, noise))

    def back(self, d_mean: Tensor, d_std: Tensor, d_sample: Tensor) -> Tensor:
        """The gradients of mean and raw, side by side."""
        d_std = torch.addcmul(d_std, d_sample, self.noise)
        return torch.cat([d_mean + d_sample, unsquash(2 * d_std, self.std / 2, self.raw)], 1)


class Saved(NamedTuple):
    """What the backward pass reads of the forward pass, [r, .] each but for glimpses."""

    context: Tensor
    box_in: Tensor
    box_hidden: Tensor
    where: Gaussian
    unit: Tensor  # sigmoids of the where sample
    boxes: Tensor  # [n, m, 4], a leaf
    glimpses: Tensor  # [n, m, channels, g, g], which torch differentiates
    what_in: list[Tensor]  # inputs of the what-encoder's layers
    what: Gaussian
    depth_in: tuple[Tensor, Tensor, Tensor]  # inputs of depth_from_attributes and of the two layers
    depth: Gaussian
    depth_unit: Tensor
    presence_in: tuple[Tensor, Tensor, Tensor]
    presence_raw: Tensor
    presence: Tensor


class Front(torch.autograd.Function):
    """m cells of n images that do not read one another; see `Spair.infer_cells`."""

    @staticmethod
    def forward(
        ctx: Any,
        parameters: Tensor,  # of `Parameters`
        features: Tensor,  # [n, m, 3 hidden]
        context: Tensor,  # [n, m, 4 (4 + A + 2)]
        images: Tensor,  # [n, channels, height, width]
        corners: Tensor,  # [m, 2]
        noise: tuple[Tensor, Tensor, Tensor, Tensor],  # where, what, depth, presence: [n, m, .]
        layers: Layers,
        c: SpairConfig,
        centre_range: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """All fields of `GridCells` but the last side by side, [n, m, .], and the last, [n, m, 4 + A + 2]."""
        n, m, _ = features.shape
        r = n * m
        for_where, for_what, for_depth, for_presence = (part.reshape(r, -1) for part in noise)
        context = context.reshape(r, -1)
        box_pre, depth_pre, presence_pre = (features.reshape(r, -1) + layers.from_context(context)).chunk(
            3, 1
        )

        box_in = box_pre.relu()
        box_hidden = layers.box[0](box_in).relu_()
        where_mean, where_raw, carry = layers.box[1](box_hidden).split([4, 4, c.carry], 1)
        where = Gaussian.of(where_mean, where_raw, for_where)
        unit = torch.sigmoid(where.sample.clamp(-LIMIT, LIMIT))
        low, high = centre_range
        centre, size = low + (high - low) * unit[:, :2], unit[:, 2:]
        middle, half = (corners.repeat(n, 1) + centre) * c.stride, size * (c.anchor / 2)
        boxes = torch.cat([middle - half, middle + half], 1).view(n, m, 4).requires_grad_()

        with torch.enable_grad():
            glimpses = crop(images, boxes, c.glimpse)
        what_in = [glimpses.detach().reshape(r, -1)]
        for layer in layers.what[:-1]:
            what_in.append(layer(what_in[-1]).relu_())
        what = Gaussian.of(*layers.what[-1](what_in[-1]).chunk(2, 1), for_what)

        attributes = torch.cat([centre, size, what.sample], 1)
        depth_in = torch.cat([carry, attributes], 1)
        depth_hidden = (depth_pre + layers.depth_from_attributes(depth_in)).relu_()
        depth_last = layers.depth[0](depth_hidden).relu_()
        depth_mean, depth_raw, carry = layers.depth[1](depth_last).split([1, 1, c.carry], 1)
        depth = Gaussian.of(depth_mean, depth_raw, for_depth)
        depth_unit = torch.sigmoid(depth.sample.clamp(-LIMIT, LIMIT))

        attributes = torch.cat([attributes, 4 * depth_unit], 1)
        presence_in = torch.cat([carry, attributes], 1)
        presence_hidden = (presence_pre + layers.presence_from_attributes(presence_in)).relu_()
        presence_last = layers.presence[0](presence_hidden).relu_()
        presence_raw = layers.presence[1](presence_last) + c.presence_bias
        logit = presence_raw.clamp(-LIMIT, LIMIT)
        noisy = (logit + for_presence) / c.temperature
        presence = torch.sigmoid(noisy)

        ctx.layers, ctx.config, ctx.centre_span, ctx.size = layers, c, high - low, (n, m)
        ctx.saved = Saved(
            context, box_in, box_hidden, where, unit, boxes, glimpses, what_in, what,
            (depth_in, depth_hidden, depth_last), depth, depth_unit,
            (presence_in, presence_hidden, presence_last), presence_raw, presence,
        )  # fmt: skip
        cells = [
            where.mean, where.std, boxes.detach().view(r, 4), what.mean, what.std, what.sample,
            depth.mean, depth.std, 4 * depth_unit, logit, noisy, presence,
        ]  # fmt: skip
        return torch.cat(cells, 1).view(n, m, -1), torch.cat([attributes, presence], 1).view(n, m, -1)

    @staticmethod
    def backward(ctx: Any, d_cells: Tensor, d_context: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layers: Layers = ctx.layers
        s: Saved = ctx.saved
        c: SpairConfig = ctx.config
        (n, m), a = ctx.size, c.what_dim
        d_context = d_context.reshape(n * m, -1)
        (
            d_where_mean, d_where_std, d_boxes, d_what_mean, d_what_std, d_what,
            d_depth_mean, d_depth_std, d_depth, d_logit, d_noisy, d_presence,
        ) = d_cells.reshape(n * m, -1).split(cell_widths(a), 1)  # fmt: skip

        # Presence
        d_presence = d_presence + d_context[:, -1:]
        d_noisy = d_noisy + unsigmoid(d_presence, s.presence)
        gradient = unclamp(d_logit + d_noisy / c.temperature, s.presence_raw)
        gradient = unrelu(layers.presence[1].back(s.presence_in[2], gradient), s.presence_in[2])
        d_presence_pre = unrelu(layers.presence[0].back(s.presence_in[1], gradient), s.presence_in[1])
        gradient = layers.presence_from_attributes.back(s.presence_in[0], d_presence_pre)
        d_carry, d_attributes = gradient.split([c.carry, 4 + a + 1], 1)
        d_attributes = d_attributes + d_context[:, :-1]  # centre, size, what and depth

        # Depth
        d_depth = unsquash(4 * (d_depth + d_attributes[:, -1:]), s.depth_unit, s.depth.sample)
        gradient = torch.cat([s.depth.back(d_depth_mean, d_depth_std, d_depth), d_carry], 1)
        gradient = unrelu(layers.depth[1].back(s.depth_in[2], gradient), s.depth_in[2])
        d_depth_pre = unrelu(layers.depth[0].back(s.depth_in[1], gradient), s.depth_in[1])
        gradient = layers.depth_from_attributes.back(s.depth_in[0], d_depth_pre)
        d_carry, d_more = gradient.split([c.carry, 4 + a], 1)
        d_attributes = d_attributes[:, :-1] + d_more

        # What, and the glimpse that it is inferred from
        gradient = s.what.back(d_what_mean, d_what_std, d_what + d_attributes[:, 4:])
        for layer, x in zip(reversed(layers.what[1:]), reversed(s.what_in[1:]), strict=True):
            gradient = unrelu(layer.back(x, gradient), x)
        gradient = layers.what[0].back(s.what_in[0], gradient)
        (of_glimpse,) = torch.autograd.grad(s.glimpses, s.boxes, gradient.view_as(s.glimpses))

        # Box
        d_first, d_last = (d_boxes + of_glimpse.view(-1, 4)).chunk(2, 1)
        d_centre, d_size = d_attributes[:, :4].chunk(2, 1)
        d_centre = ctx.centre_span * (d_centre + c.stride * (d_first + d_last))
        d_size = d_size + c.anchor / 2 * (d_last - d_first)
        d_where = unsquash(torch.cat([d_centre, d_size], 1), s.unit, s.where.sample)
        gradient = torch.cat([s.where.back(d_where_mean, d_where_std, d_where), d_carry], 1)
        gradient = unrelu(layers.box[1].back(s.box_hidden, gradient), s.box_hidden)
        d_box_pre = unrelu(layers.box[0].back(s.box_in, gradient), s.box_in)

        d_pre = torch.cat([d_box_pre, d_depth_pre, d_presence_pre], 1)
        d_context = layers.from_context.back(s.context, d_pre)
        return None, d_pre.view(n, m, -1), d_context.view(n, m, -1), *[None] * 6


def cell_widths(what_dim: int) -> list[int]:
    """Of the fields of `GridCells` but the last."""
    return [4, 4, 4, what_dim, what_dim, what_dim, 1, 1, 1, 1, 1, 1]


def unsquash(gradient: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The gradient of x, given that of y = sigmoid(clamp(x))."""
    return unclamp(unsigmoid(gradient, y), x)


def unsigmoid(gradient: Tensor, y: Tensor) -> Tensor:
    """The gradient of x, given that of y = sigmoid(x): it times y (1 - y)."""
    passed: Tensor = torch.ops.aten.sigmoid_backward(gradient, y)
    return passed


def unclamp(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of x, given that of y = clamp(x): it where x is between the limits, else 0."""
    passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, x, -LIMIT, LIMIT)
    return passed


def unrelu(gradient: Tensor, y: Tensor) -> Tensor:
    """The gradient of x, given that of y = max(x, 0)."""
    passed: Tensor = torch.ops.aten.threshold_backward(gradient, y, 0)
    return passed
