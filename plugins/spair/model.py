"""SPAIR (Crawford & Pineau 2019, "Spatially Invariant Unsupervised Object Detection with Convolutional Neural
Networks"), top-down: detector, latents, loss.

Where the original code and the PyTorch port that GMAIR was compared with disagree, this follows the original:
the reconstruction term is averaged over the batch, the prior expects small boxes (`size_prior`), the presence
KL takes the clean probability (`presence_kl`) and gradients are clipped. Two things differ from both. When
detecting, boxes are cut to what is bright in them (`trim`), as GMAIR cuts its own, to compare like with like.
And what an object paints is colour x alpha x importance interpolated as one picture: painting is then linear,
hence fast.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from objbench.detector import Detections, Detector
from objbench.latents import normal_kl
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench.spatial import crop, paint, trim_boxes
from objbench_plugins.spair import losses, networks
from objbench_plugins.spair.config import SETTINGS, SpairConfig
from objbench_plugins.spair.wavefront import LOOKBACK, NEIGHBOURS, wavefront

MIN_IMPORTANCE = 0.01
"""An absent object still counts this much in a pixel's average, so that it can come back."""
PAINTED_VALUES = 2**21
"""Above so many values of an intermediate, a batch is painted in parts. So few fit a processor's cache."""
LEAST = 1e-6
"""What a pixel is expected to be at least, and short of 1 by, when the loss is taken; as in the original.

A bright pixel that no box covers then costs 14 nats, where the logarithm's own limit is 100. No gradient tells a
box of such pixels: at 100 the loss is little but the luck of where boxes lie.
"""
CENTRE_RANGE = (-0.5, 1.5)
"""Where a box's centre may lie, in cells from the cell's corner: up to half a cell outside it."""


class Noise(NamedTuple):
    """What sampling needs, for all cells at once, so that the order of the cells does not matter."""

    where: Tensor  # [n, cells, 4] standard normal
    what: Tensor  # [n, cells, A] standard normal
    depth: Tensor  # [n, cells, 1] standard normal
    presence: Tensor  # [n, cells, 1] standard logistic


class Cells(NamedTuple):
    """Posteriors and samples of m cells."""

    where_mean: Tensor  # [n, m, 4] logits: centre x, centre y, width, height
    where_std: Tensor  # [n, m, 4]
    boxes: Tensor  # [n, m, 4] xyxy in pixels
    what_mean: Tensor  # [n, m, A]
    what_std: Tensor  # [n, m, A]
    what: Tensor  # [n, m, A]
    depth_mean: Tensor  # [n, m, 1] logit
    depth_std: Tensor  # [n, m, 1]
    depth: Tensor  # [n, m, 1] in 0..4, larger is nearer
    presence_logit: Tensor  # [n, m, 1]
    noisy_logit: Tensor  # [n, m, 1] of the sample
    presence: Tensor  # [n, m, 1] in 0..1
    context: Tensor  # [n, m, 4 + A + 2] what neighbours read: box in cells and anchors, what, depth, presence


class Phase(NamedTuple):
    """What differs between training steps, but for annealed numbers."""

    part_of_batch: bool  # only `first_batch` images are used
    wheels: bool  # no gradient to where, depth and presence
    gated: bool  # only the `gate_cells` of highest presence are decoded and painted


class Spair(Detector):
    """Spatially Invariant Attend, Infer, Repeat."""

    Config = SpairConfig
    config: SpairConfig
    capturable = True
    count_prior = staticmethod(losses.count_prior)

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: SpairConfig, shape: SceneShape) -> None:
        """`shape`: any number of channels, and any sides that hold a cell and an anchor."""
        super().__init__(config, shape)
        c = config
        for key in ("anchor", "stride"):
            if getattr(c, key) > min(shape.height, shape.width):
                size = f"{shape.height}x{shape.width}"
                raise ValueError(f"{key}={getattr(c, key):g} is larger than the image, which is {size}")
        self.backbone = networks.Backbone(shape.channels, c.backbone_width, c.features, c.stride, shape[1:])
        self.rows, self.columns = self.backbone.grid
        self.cells = self.rows * self.columns
        told = 4 + c.what_dim + 2  # what a cell tells its neighbours
        # Box, depth and presence network all read features and context: their first layers share this part.
        self.from_features = nn.Linear(c.features, 3 * c.hidden)
        self.from_context = nn.Linear(len(NEIGHBOURS) * told, 3 * c.hidden, bias=False)
        self.box_net = networks.perceptron(c.hidden, (c.hidden,), 8 + c.passed)
        self.depth_own = nn.Linear(c.passed + 4 + c.what_dim, c.hidden, bias=False)
        self.depth_net = networks.perceptron(c.hidden, (c.hidden,), 2 + c.passed)
        self.presence_own = nn.Linear(c.passed + 4 + c.what_dim + 1, c.hidden, bias=False)
        self.presence_net = networks.perceptron(c.hidden, (c.hidden,), 1)
        self.what_encoder = networks.perceptron(shape.channels * c.glimpse**2, c.widths(), 2 * c.what_dim)
        self.decoder = networks.perceptron(c.what_dim, c.widths()[::-1], (shape.channels + 1) * c.glimpse**2)
        self.edge = nn.Parameter(torch.randn(told))  # what cells outside the grid tell, before sigmoids

        front = wavefront(self.rows, self.columns)
        self.sizes = front.sizes
        at = torch.arange(self.cells)
        self.register_buffer("order", front.order, persistent=False)
        self.register_buffer("place", front.place, persistent=False)
        self.register_buffer("neighbours", torch.cat(front.neighbours), persistent=False)
        corners = torch.stack([at % self.columns, at // self.columns], -1)
        self.register_buffer("corners", corners.float(), persistent=False)
        size = math.log(c.size_prior / (1 - c.size_prior))
        where_prior = torch.tensor([[0, 0, size, size], [1, 1, c.size_prior_std, c.size_prior_std]])
        self.register_buffer("where_prior", where_prior, persistent=False)  # mean and deviation
        self._watch: Tensor | None = None

    # Training

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The terms of the negative ELBO, each summed over cells or pixels and averaged over the batch."""
        c, now = self.config, self.phase(step)
        if now.part_of_batch:
            images = images[: c.first_batch]
        cells = self.infer(images, self.noise(images), wheels=now.wheels)
        presence, logit = cells.presence[..., 0], cells.presence_logit[..., 0]
        expected = self.render(self.chosen(cells, step)).clamp(LEAST, 1 - LEAST)

        prior = self.count_prior(presence.detach().round(), self.annealed(step)["log_p"]).to(logit.dtype)
        in_kl = cells.noisy_logit[..., 0] if c.presence_kl == "noisy" else logit
        where_kl = normal_kl(cells.where_mean, cells.where_std, *self.where_prior).sum(2)
        what_kl = normal_kl(cells.what_mean, cells.what_std).sum(2)
        depth_kl = normal_kl(cells.depth_mean, cells.depth_std).sum(2)
        self._watch = logit.detach()
        terms = {
            "recon": c.recon * F.binary_cross_entropy(expected, images, reduction="none").sum((1, 2, 3)),
            "pres": losses.bernoulli_kl(in_kl, prior).sum(1),
            "where": (presence * where_kl).sum(1),
            "what": (presence * what_kl).sum(1),
            "depth": (presence * depth_kl).sum(1),
        }
        return {name: term.mean() for name, term in terms.items()}

    def phase(self, step: int) -> Phase:
        """What is switched on or off at this step."""
        c = self.config
        return Phase(
            part_of_batch=step < c.gate_step and c.first_batch > 0,
            wheels=step < c.wheels_steps,
            gated=0 < c.gate_cells < self.cells and step >= c.gate_step,
        )

    def schedule(self, step: int) -> dict[str, float]:
        """How much less likely than a number of objects the next larger one is, as a logarithm."""
        c = self.config
        log_odds = losses.count_log_odds(step, c.count_start, c.count_floor, c.count_decay_steps)
        return {"log_p": losses.log_one_more(log_odds)}

    def watch(self) -> dict[str, float]:
        """Objects an image."""
        return {} if self._watch is None else {"objects": float((self._watch >= 0).float().sum(1).mean())}

    def noise(self, images: Tensor) -> Noise:
        """Fresh noise for all cells of a batch."""
        normal = torch.randn(len(images), self.cells, 5 + self.config.what_dim, device=images.device)
        uniform = torch.rand(len(images), self.cells, 1, device=images.device).clamp(1e-6, 1 - 1e-6)
        where, what, depth = normal.split([4, self.config.what_dim, 1], -1)
        return Noise(where, what, depth, torch.logit(uniform))

    def chosen(self, cells: Cells, step: int) -> Cells:
        """The cells to decode and paint: all until `gate_step`, then the `gate_cells` of highest presence."""
        if not self.phase(step).gated:
            return cells
        k = self.config.gate_cells
        return pick(cells, cells.presence[..., 0].topk(k, dim=1, sorted=False).indices)

    # Inference

    def infer(self, images: Tensor, noise: Noise | None = None, wheels: bool = False) -> Cells:
        """The cells of images [n, channels, height, width], numbered row by row. Without noise: modes."""
        n = len(images)
        features = self.cell_features(images).index_select(1, self.order).split(self.sizes, 1)
        corners = self.corners[self.order].split(self.sizes)
        neighbours = self.neighbours.split([len(NEIGHBOURS) * size for size in self.sizes])
        noises: list[Noise | None] = [None] * len(self.sizes)
        if noise is not None:
            parts = [part.index_select(1, self.order).split(self.sizes, 1) for part in noise]
            noises = [Noise(*of_front) for of_front in zip(*parts, strict=True)]
        edge = self.edge_context().expand(n, 1, -1)
        done: list[Cells] = []
        for i in range(len(self.sizes)):
            known = torch.cat([edge, *(front.context for front in done[-LOOKBACK:])], 1)
            context = known.index_select(1, neighbours[i]).reshape(n, self.sizes[i], -1)
            done.append(self.infer_cells(images, features[i], context, corners[i], noises[i], wheels))
        return Cells(*(torch.cat(parts, 1).index_select(1, self.place) for parts in zip(*done, strict=True)))

    def cell_features(self, images: Tensor) -> Tensor:
        """What the backbone gives to the first layers of the three lateral networks: [n, cells, 3 hidden]."""
        return self.from_features(self.backbone(images).flatten(2).transpose(1, 2))

    def edge_context(self) -> Tensor:
        """What a cell outside the grid tells, [4 + A + 2]; learned."""
        box, what_depth, presence = self.edge.split([4, self.config.what_dim + 1, 1])
        return torch.cat([box.sigmoid(), what_depth, presence.sigmoid()])

    def infer_cells(
        self,
        images: Tensor,  # [n, channels, height, width]
        features: Tensor,  # [n, m, 3 hidden], see `cell_features`
        context: Tensor,  # [n, m, 4 (4 + A + 2)] of W, NW, N, NE
        corners: Tensor,  # [m, 2] (column, row)
        noise: Noise | None,  # None: the mode
        wheels: bool,  # no gradient to where, depth and presence
    ) -> Cells:
        """m cells that do not read one another: box, then what, then depth, then presence."""
        c = self.config
        for_box, for_depth, for_presence = (features + self.from_context(context)).chunk(3, -1)

        where_mean, where_raw, passed = self.box_net(torch.relu(for_box)).split([4, 4, c.passed], -1)
        where_std = deviation(where_raw)
        if wheels:
            where_mean, where_std = where_mean.detach(), where_std.detach()
        where = where_mean if noise is None else where_mean + where_std * noise.where
        centre, size = torch.sigmoid(where.clamp(-10, 10)).chunk(2, -1)
        low, high = CENTRE_RANGE
        centre = low + (high - low) * centre
        middle, half = (corners + centre) * c.stride, size * (c.anchor / 2)
        boxes = torch.cat([middle - half, middle + half], -1)

        what_mean, what_raw = self.what_encoder(crop(images, boxes, c.glimpse).flatten(2)).chunk(2, -1)
        what_std = deviation(what_raw)
        what = what_mean if noise is None else what_mean + what_std * noise.what

        so_far = torch.cat([centre, size, what], -1)
        depth_hidden = torch.relu(for_depth + self.depth_own(torch.cat([passed, so_far], -1)))
        depth_mean, depth_raw, passed = self.depth_net(depth_hidden).split([1, 1, c.passed], -1)
        depth_std = deviation(depth_raw)
        if wheels:
            depth_mean, depth_std = depth_mean.detach(), depth_std.detach()
        depth = depth_mean if noise is None else depth_mean + depth_std * noise.depth
        depth = 4 * torch.sigmoid(depth.clamp(-10, 10))

        so_far = torch.cat([so_far, depth], -1)
        hidden = torch.relu(for_presence + self.presence_own(torch.cat([passed, so_far], -1)))
        logit = (self.presence_net(hidden) + c.presence_bias).clamp(-10, 10)
        if wheels:
            logit = logit.detach()
        noisy = logit if noise is None else (logit + noise.presence) / c.temperature
        presence = torch.sigmoid(noisy)
        if noise is None:
            presence = presence.round()
        return Cells(
            where_mean, where_std, boxes, what_mean, what_std, what, depth_mean, depth_std, depth,
            logit, noisy, presence, torch.cat([so_far, presence], -1),
        )  # fmt: skip

    # Generation

    def decode(self, what: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpses of what-latents [n, k, A]: [n, k, channels, g, g] colour and [n, k, 1, g, g] alpha."""
        g = self.config.glimpse
        logits = self.decoder(what).unflatten(-1, (-1, g, g))
        colour = torch.sigmoid((2 * logits[:, :, :-1] + self.config.colour_bias).clamp(-10, 10))
        alpha = torch.sigmoid((0.1 * logits[:, :, -1:] + 5).clamp(-10, 10))
        return colour, alpha

    def render(self, cells: Cells) -> Tensor:
        """The image p(x | z) expects on a black background, [n, channels, height, width] in 0..1.

        What painting keeps for its gradient grows with objects x glimpse x image. Where that is much, a few
        images are painted at a time, and once more when their gradient is due; on a GPU it is not much.
        """
        n, k = cells.presence.shape[:2]
        rows = k * self.config.glimpse * (self.shape.channels + 1)  # of an image's glimpses
        at_once = max(1, PAINTED_VALUES // (rows * self.shape.width))
        if at_once >= n or cells.what.is_cuda:
            return self.render_at_once(cells)
        parts = [Cells(*part) for part in zip(*(part.split(at_once) for part in cells), strict=True)]
        again = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(self.render_at_once, part) for part in parts])

    def render_at_once(self, cells: Cells) -> Tensor:
        """At each pixel the average over objects, weighted by importance: alpha x presence x depth."""
        colour, alpha = self.decode(cells.what)
        shown = alpha * cells.presence[..., None, None]
        importance = (shown * cells.depth[..., None, None]).clamp(min=MIN_IMPORTANCE)
        layers = torch.cat([colour * shown * importance, importance], 2)
        canvas = paint(layers, cells.boxes, self.shape.height, self.shape.width)
        return (canvas[:, :-1] / (canvas[:, -1:] + 1e-9)).clamp(0, 1)

    # Testing: the mode of every latent

    def detect(self, images: Tensor) -> Detections:
        """Boxes of cells with presence of at least 0.01, cut to what is bright in their decoded glimpses."""
        cells = self.infer(images)
        boxes = cells.boxes
        if self.config.trim:
            colour, alpha = self.decode(cells.what)
            boxes = trim_boxes(boxes, colour.mean(2) * alpha[:, :, 0], self.config.trim)
        height, width = self.shape[1:]
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        return Detections.from_padded(boxes, torch.sigmoid(cells.presence_logit[..., 0]), what=cells.what)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The rendered image, every latent at its mode."""
        return self.render(self.infer(images))


def deviation(raw: Tensor) -> Tensor:
    """A standard deviation in 0..2 from a network's output, as in the original."""
    return 2 * torch.sigmoid(raw.clamp(-10, 10))


def pick(cells: Cells, keep: Tensor) -> Cells:
    """The cells `keep` [n, k] of each image."""
    return Cells(*(part.gather(1, keep[..., None].expand(-1, -1, part.shape[-1])) for part in cells))
