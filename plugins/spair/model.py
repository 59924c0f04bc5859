"""SPAIR (Crawford & Pineau 2019, "Spatially Invariant Unsupervised Object Detection with Convolutional Neural
Networks"), top-down: detector, latents, loss.

Comments name the part of the paper's model that a line is: its object specification (the box of a cell, Eq. 2-6), its
encoder, its decoder and renderer, its prior. Where the original code and the PyTorch port that GMAIR was compared with
disagree, this follows the original: the reconstruction term is averaged over the batch, the prior expects small boxes
(`size_prior`), the presence KL takes the probability without sampling noise (`presence_kl`) and gradients are clipped.

Three things differ from both. For detection, boxes are cut to what is bright in them (`trim`), as GMAIR cuts its own,
so that like is compared with like. The renderer multiplies colour, alpha and importance before it interpolates, not
after: this is fast. And no noise is added to gradients, as the original does in its first thousands of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from objbench.detector import PRESENT, Detections, Detector
from objbench.errors import UsageError
from objbench.latents import bernoulli_kl, normal_kl
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench.spatial import canvases, clamp_boxes, crop, in_parts, paint, take_cells, top_cells, trim_boxes
from objbench_plugins.spair import front, losses, networks
from objbench_plugins.spair.config import SETTINGS, SpairConfig
from objbench_plugins.spair.wavefront import LOOKBACK, NEIGHBOURS, wavefront

COLOUR_SCALE = 2.0
"""What the decoder's colour outputs are multiplied by before the sigmoid; the original's value."""
ALPHA_SCALE = 0.1
"""As COLOUR_SCALE, of its alpha outputs: so alpha changes slowly, from a start at sigmoid(ALPHA_BIAS)."""
ALPHA_BIAS = 5.0
"""Added to scaled alpha outputs: glimpses start opaque; the original's value."""
MIN_IMPORTANCE = 0.01
"""An absent object keeps this importance, so that its presence still has a gradient and it can come back."""
PAINTED_VALUES = 2**21
"""On a CPU a batch is rendered in parts that need no more values than this at a time, so that they fit its cache."""
CENTRE_RANGE = (-0.5, 1.5)
"""Where a box's centre may lie, in cells from the cell's corner: up to half a cell outside it."""


class Noise(NamedTuple):
    """The random numbers of sampling, drawn for all cells at once, so that the order of cells has no influence."""

    where: Tensor  # [n, cells, 4] standard normal
    what: Tensor  # [n, cells, A] standard normal
    depth: Tensor  # [n, cells, 1] standard normal
    presence: Tensor  # [n, cells, 1] standard logistic


class Objects(NamedTuple):
    """What the renderer needs to know of k cells of each image."""

    presence: Tensor  # [n, k, 1] in 0..1
    boxes: Tensor  # [n, k, 4] xyxy in pixels
    depth: Tensor  # [n, k, 1] in 0..4, larger is nearer
    what: Tensor  # [n, k, A]


class GridCells(NamedTuple):
    """q(where), q(what), q(depth) and q(presence) of m grid cells, with a sample (or the mode) of each."""

    where_mean: Tensor  # [n, m, 4] logits: centre x, centre y, width, height
    where_std: Tensor  # [n, m, 4]
    boxes: Tensor  # [n, m, 4] xyxy in pixels, of the where sample
    what_mean: Tensor  # [n, m, A]
    what_std: Tensor  # [n, m, A]
    what: Tensor  # [n, m, A]
    depth_mean: Tensor  # [n, m, 1] logit
    depth_std: Tensor  # [n, m, 1]
    depth: Tensor  # [n, m, 1] in 0..4, larger is nearer
    presence_logit: Tensor  # [n, m, 1] in -10..10
    noisy_logit: Tensor  # [n, m, 1] of the presence sample
    presence: Tensor  # [n, m, 1] in 0..1, the sample
    context: Tensor  # [n, m, 4 + A + 2] what neighbours read: box in cells and anchors, what, depth, presence

    @property
    def presence_prob(self) -> Tensor:
        """q(presence = 1), [n, m, 1]."""
        return torch.sigmoid(self.presence_logit)

    @property
    def objects(self) -> Objects:
        """All cells, for the renderer."""
        return Objects(self.presence, self.boxes, self.depth, self.what)


class Phase(NamedTuple):
    """What differs between training steps, apart from annealed numbers."""

    warmup: bool  # only `warmup_images` images of the batch are used
    where_frozen: bool  # no gradient to where, depth and presence
    gated: bool  # only the `gate_cells` cells of highest presence are decoded and painted


class Spair(Detector):
    """Spatially Invariant Attend, Infer, Repeat."""

    Config = SpairConfig
    config: SpairConfig
    capturable = True
    by_hand: ClassVar[bool] = True
    """Training steps on a CPU take the fronts of `front.py`; False: those that torch differentiates."""

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: SpairConfig, shape: SceneShape) -> None:
        """`shape`: any number of channels. UsageError unless its sides are at least `anchor` and `stride`."""
        super().__init__(config, shape)
        c = config
        for key in ("anchor", "stride"):
            if getattr(c, key) > min(shape.height, shape.width):
                size = f"{shape.height}x{shape.width}"
                raise UsageError(f"spair.{key}={getattr(c, key):g} is larger than the image, which is {size}")
        self.backbone = networks.Backbone(shape.channels, c.backbone_width, c.features, c.stride, shape[1:])
        self.rows, self.columns = self.backbone.grid
        self.cells = self.rows * self.columns
        context_size = 4 + c.what_dim + 2  # what a neighbour reads of a cell: box, what, depth and presence
        # Box, depth and presence network all read features and context: these are the first layers of all three. Depth
        # and presence network also read the attributes from the networks before them, and `carry` features.
        self.from_features = nn.Linear(c.features, 3 * c.hidden)
        self.from_context = nn.Linear(len(NEIGHBOURS) * context_size, 3 * c.hidden, bias=False)
        self.box_net = networks.perceptron(c.hidden, (c.hidden,), 8 + c.carry)
        self.depth_from_attributes = nn.Linear(c.carry + 4 + c.what_dim, c.hidden, bias=False)
        self.depth_net = networks.perceptron(c.hidden, (c.hidden,), 2 + c.carry)
        self.presence_from_attributes = nn.Linear(c.carry + 4 + c.what_dim + 1, c.hidden, bias=False)
        self.presence_net = networks.perceptron(c.hidden, (c.hidden,), 1)
        self.what_encoder = networks.perceptron(shape.channels * c.glimpse**2, c.widths(), 2 * c.what_dim)
        self.decoder = networks.perceptron(c.what_dim, c.widths()[::-1], (shape.channels + 1) * c.glimpse**2)
        self.border = nn.Parameter(
            torch.randn(context_size)
        )  # the context of cells outside the grid, before sigmoids

        fronts = wavefront(self.rows, self.columns)
        self.sizes = fronts.sizes
        at = torch.arange(self.cells)
        self.register_buffer("order", fronts.order, persistent=False)
        self.register_buffer("place", fronts.place, persistent=False)
        self.register_buffer("neighbours", torch.cat(fronts.neighbours), persistent=False)
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
        if now.warmup:
            images = images[: c.warmup_images]

        # A sample of q(z | x) (encoder), and the image that p(x | z) expects (decoder and renderer)
        cells = self.infer(images, self.noise(images), now.where_frozen)
        presence, logit = cells.presence[..., 0], cells.presence_logit[..., 0]  # [n, cells]
        image = self.render(self.chosen(cells, now.gated))  # [n, channels, h, w]

        # Prior of presence: each cell given the cells before it, [n, cells]
        prior = losses.count_prior(presence.detach().round(), self.annealed(step)["log_p"]).to(logit.dtype)
        logit_in_kl = cells.noisy_logit[..., 0] if c.presence_kl == "noisy" else logit
        where_prior_mean, where_prior_std = self.where_prior  # [4]

        # [n, channels, h, w]
        recon = losses.floored_cross_entropy(image, images, c.pixel_floor)
        # [n, cells]
        kl_pres = bernoulli_kl(logit_in_kl, prior.log(), torch.log1p(-prior), exact_tail=True)
        kl_where = normal_kl(cells.where_mean, cells.where_std, where_prior_mean, where_prior_std).sum(2)
        kl_what = normal_kl(cells.what_mean, cells.what_std).sum(2)
        kl_depth = normal_kl(cells.depth_mean, cells.depth_std).sum(2)

        # [n]
        terms = {
            "recon": c.recon * recon.sum((1, 2, 3)),  # -log p(x | z)
            "pres": kl_pres.sum(1),  # KL(q(presence) || p(presence | presence of the cells before))
            "where": (presence * kl_where).sum(1),  # presence x KL(q(where) || p(where))
            "what": (presence * kl_what).sum(1),  # presence x KL(q(what) || p(what))
            "depth": (presence * kl_depth).sum(1),  # presence x KL(q(depth) || p(depth))
        }
        self._watch = logit.detach()
        return {name: term.mean() for name, term in terms.items()}

    def phase(self, step: int) -> Phase:
        """What is switched on or off at this step."""
        c = self.config
        return Phase(
            warmup=step < c.gate_step and c.warmup_images > 0,
            where_frozen=step < c.where_frozen_steps,
            gated=0 < c.gate_cells < self.cells and step >= c.gate_step,
        )

    def schedule(self, step: int) -> dict[str, float]:
        """`log_p`: the prior's log p(C + 1 objects) - log p(C objects), the same for all C."""
        c = self.config
        log_odds = losses.count_log_odds(step, c.count_start, c.count_floor, c.count_decay_steps)
        return {"log_p": losses.log_one_more(log_odds)}

    def watch(self) -> dict[str, float]:
        """Objects an image."""
        if self._watch is None:
            return {}
        return {"objects": float((self._watch.sigmoid() >= PRESENT).float().sum(1).mean())}

    def noise(self, images: Tensor) -> Noise:
        """Fresh noise for all cells of a batch."""
        normal = torch.randn(len(images), self.cells, 5 + self.config.what_dim, device=images.device)
        uniform = torch.rand(len(images), self.cells, 1, device=images.device).clamp(1e-6, 1 - 1e-6)
        where, what, depth = normal.split([4, self.config.what_dim, 1], -1)
        return Noise(where, what, depth, torch.logit(uniform))

    def chosen(self, cells: GridCells, gated: bool) -> Objects:
        """The objects to decode and paint: of all cells, or if `gated` of the `gate_cells` of highest presence."""
        if not gated:
            return cells.objects
        keep = top_cells(cells.presence[..., 0], self.config.gate_cells)  # [n, k]
        return Objects(*(take_cells(part, keep) for part in cells.objects))

    # Inference (encoder)

    def infer(self, images: Tensor, noise: Noise | None = None, where_frozen: bool = False) -> GridCells:
        """The cells of images [n, channels, height, width], numbered row by row. Without noise, modes.

        where_frozen: where, depth and presence pass no gradient.
        """
        n = len(images)
        features = self.cell_features(images).index_select(1, self.order).split(self.sizes, 1)
        corners = self.corners[self.order].split(self.sizes)
        neighbours = self.neighbours.split([len(NEIGHBOURS) * size for size in self.sizes])
        noises: list[Noise | None] = [None] * len(self.sizes)
        if noise is not None:
            parts = [part.index_select(1, self.order).split(self.sizes, 1) for part in noise]
            noises = [Noise(*of_front) for of_front in zip(*parts, strict=True)]
        border = self.border_context().expand(n, 1, -1)
        if self.by_hand and noise is not None and not where_frozen and images.device.type == "cpu":
            return self.infer_by_hand(
                images, features, corners, neighbours, cast(list[Noise], noises), border
            )
        done: list[GridCells] = []
        for i in range(len(self.sizes)):
            known = torch.cat([border, *(earlier.context for earlier in done[-LOOKBACK:])], 1)
            context = known.index_select(1, neighbours[i]).reshape(n, self.sizes[i], -1)
            done.append(self.infer_cells(images, features[i], context, corners[i], noises[i], where_frozen))
        return GridCells(
            *(torch.cat(parts, 1).index_select(1, self.place) for parts in zip(*done, strict=True))
        )

    def infer_by_hand(
        self,
        images: Tensor,
        features: Sequence[Tensor],  # of each front, as all below
        corners: Sequence[Tensor],
        neighbours: Sequence[Tensor],
        noises: Sequence[Noise],
        border: Tensor,  # [n, 1, 4 + A + 2]
    ) -> GridCells:
        """As the loop over `infer_cells`, by a function of autograd for each front: see `front.py`."""
        layers = front.Layers(
            from_context=front.Layer(self.from_context),
            box=two_layers(self.box_net),
            what=tuple(front.Layer(layer) for layer in self.what_encoder if isinstance(layer, nn.Linear)),
            depth_from_attributes=front.Layer(self.depth_from_attributes),
            depth=two_layers(self.depth_net),
            presence_from_attributes=front.Layer(self.presence_from_attributes),
            presence=two_layers(self.presence_net),
        )
        parameters = front.Parameters.apply(layers, *layers.parameters)  # type: ignore[no-untyped-call]
        cells: list[Tensor] = []
        contexts: list[Tensor] = []
        for i, size in enumerate(self.sizes):
            known = torch.cat([border, *contexts[-LOOKBACK:]], 1)
            context = known.index_select(1, neighbours[i]).reshape(len(images), size, -1)
            of_front, context = front.Front.apply(  # type: ignore[no-untyped-call]
                parameters, features[i], context, images, corners[i], noises[i], layers, self.config, CENTRE_RANGE
            )  # fmt: skip
            cells.append(of_front)
            contexts.append(context)
        fields = torch.cat(cells, 1).index_select(1, self.place)
        context = torch.cat(contexts, 1).index_select(1, self.place)
        return GridCells(*fields.split(front.cell_widths(self.config.what_dim), -1), context)

    def cell_features(self, images: Tensor) -> Tensor:
        """The backbone's part of the first layers of box, depth and presence network: [n, cells, 3 hidden]."""
        return self.from_features(self.backbone(images).flatten(2).transpose(1, 2))

    def border_context(self) -> Tensor:
        """The context of a cell outside the grid, [4 + A + 2]; learned."""
        box, what_depth, presence = self.border.split([4, self.config.what_dim + 1, 1])
        return torch.cat([box.sigmoid(), what_depth, presence.sigmoid()])

    def infer_cells(
        self,
        images: Tensor,  # [n, channels, height, width]
        features: Tensor,  # [n, m, 3 hidden], see `cell_features`
        context: Tensor,  # [n, m, 4 (4 + A + 2)] of W, NW, N, NE
        corners: Tensor,  # [m, 2] (column, row)
        noise: Noise | None,  # None: the mode
        where_frozen: bool,  # no gradient to where, depth and presence
    ) -> GridCells:
        """m cells that do not read one another: box, then what, then depth, then presence."""
        c = self.config
        for_box, for_depth, for_presence = (features + self.from_context(context)).chunk(3, -1)

        # z ~ q(where | x, context), and its box: centre and size relative to cell and anchor (Eq. 2-6)
        where_mean, where_raw, carry = self.box_net(torch.relu(for_box)).split([4, 4, c.carry], -1)
        where_std = deviation(where_raw)  # [n, m, 4]
        if where_frozen:
            where_mean, where_std = where_mean.detach(), where_std.detach()
        where = where_mean if noise is None else where_mean + where_std * noise.where
        centre, size = torch.sigmoid(where.clamp(-10, 10)).chunk(2, -1)  # [n, m, 2] each
        low, high = CENTRE_RANGE
        centre = low + (high - low) * centre
        middle, half = (corners + centre) * c.stride, size * (c.anchor / 2)
        boxes = torch.cat([middle - half, middle + half], -1)  # [n, m, 4]

        # z ~ q(what | x, where), from the box's glimpse
        what_mean, what_raw = self.what_encoder(crop(images, boxes, c.glimpse).flatten(2)).chunk(2, -1)
        what_std = deviation(what_raw)  # [n, m, A]
        what = what_mean if noise is None else what_mean + what_std * noise.what

        # z ~ q(depth | x, context, where, what)
        attributes = torch.cat([centre, size, what], -1)  # [n, m, 4 + A]
        depth_hidden = torch.relu(for_depth + self.depth_from_attributes(torch.cat([carry, attributes], -1)))
        depth_mean, depth_raw, carry = self.depth_net(depth_hidden).split([1, 1, c.carry], -1)
        depth_std = deviation(depth_raw)  # [n, m, 1]
        if where_frozen:
            depth_mean, depth_std = depth_mean.detach(), depth_std.detach()
        depth = depth_mean if noise is None else depth_mean + depth_std * noise.depth
        depth = 4 * torch.sigmoid(depth.clamp(-10, 10))

        # z ~ q(presence | x, context, where, what, depth)
        attributes = torch.cat([attributes, depth], -1)  # [n, m, 4 + A + 1]
        hidden = torch.relu(for_presence + self.presence_from_attributes(torch.cat([carry, attributes], -1)))
        presence_logit = (self.presence_net(hidden) + c.presence_bias).clamp(-10, 10)  # [n, m, 1]
        if where_frozen:
            presence_logit = presence_logit.detach()
        noisy_logit = presence_logit if noise is None else (presence_logit + noise.presence) / c.temperature
        presence = torch.sigmoid(noisy_logit)
        if noise is None:
            presence = presence.round()

        return GridCells(
            where_mean=where_mean,
            where_std=where_std,
            boxes=boxes,
            what_mean=what_mean,
            what_std=what_std,
            what=what,
            depth_mean=depth_mean,
            depth_std=depth_std,
            depth=depth,
            presence_logit=presence_logit,
            noisy_logit=noisy_logit,
            presence=presence,
            context=torch.cat([attributes, presence], -1),
        )

    # Generation (decoder and renderer)

    def decode(self, what: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpses of what-latents [n, k, A]: colour [n, k, channels, g, g] and alpha [n, k, 1, g, g], in 0..1."""
        g = self.config.glimpse
        logits = self.decoder(what).unflatten(-1, (-1, g, g))
        colour = torch.sigmoid((COLOUR_SCALE * logits[:, :, :-1] + self.config.colour_bias).clamp(-10, 10))
        alpha = torch.sigmoid((ALPHA_SCALE * logits[:, :, -1:] + ALPHA_BIAS).clamp(-10, 10))
        return colour, alpha

    def render(self, objects: Objects) -> Tensor:
        """The image that p(x | z) expects on a black background, [n, channels, height, width] in 0..1.

        What rendering keeps for its gradient grows with objects x glimpse x image, so on a CPU a large batch is
        rendered in parts.
        """
        k = objects.presence.shape[1]
        rows = k * self.config.glimpse * (self.shape.channels + 1)  # of all glimpses of an image
        at_once = max(1, PAINTED_VALUES // (rows * self.shape.width))
        return in_parts(lambda *part: self.render_part(Objects(*part)), objects, at_once)

    def render_part(self, objects: Objects) -> Tensor:
        """As `render`: at each pixel the average of objects, weighted by importance, alpha x presence x depth."""
        colour, alpha = self.decode(objects.what)
        shown = alpha * objects.presence[..., None, None]
        importance = (shown * objects.depth[..., None, None]).clamp(min=MIN_IMPORTANCE)
        layers = torch.cat([colour * shown * importance, importance], 2)  # [n, k, channels + 1, g, g]
        canvas = paint(layers, objects.boxes, self.shape.height, self.shape.width)
        return (canvas[:, :-1] / (canvas[:, -1:] + 1e-9)).clamp(0, 1)

    # Detection: the mode of every latent

    def detect(self, images: Tensor) -> Detections:
        """Boxes of cells with a presence of at least MIN_SCORE, cut to what is bright in their decoded glimpses."""
        cells = self.infer(images)
        boxes = cells.boxes
        if self.config.trim:
            colour, alpha = self.decode(cells.what)
            brightness = colour.mean(2) * alpha[:, :, 0]
            if self.config.trim_hidden:
                brightness = brightness * self.visible(cells, alpha)
            boxes = trim_boxes(boxes, brightness, self.config.trim, self.config.trim_edges)
        boxes = clamp_boxes(boxes, self.shape[1:])
        return Detections.from_padded(boxes, cells.presence_prob[..., 0], what=cells.what)

    def visible(self, cells: GridCells, alpha: Tensor) -> Tensor:
        """The share of a cell in all importance, at each pixel of its glimpse: [n, cells, g, g] in 0..1; see `render`.

        alpha: [n, cells, 1, g, g]. A glimpse also shows what touches the object, and little in the loss keeps it from
        painting that too, with less importance than the neighbour has.
        """
        importance = alpha * (cells.presence_prob * cells.depth)[..., None, None]
        painted = canvases(
            importance, cells.boxes, self.shape.height, self.shape.width
        )  # [n, cells, 1, h, w]
        shares = (painted / (painted.sum(1, keepdim=True) + 1e-9)).flatten(0, 1)
        glimpses = crop(shares, cells.boxes.flatten(0, 1)[:, None], self.config.glimpse)
        return glimpses.reshape(alpha[:, :, 0].shape)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The rendered image [n, channels, height, width], every latent at its mode."""
        return self.render(self.infer(images).objects)


def deviation(raw: Tensor) -> Tensor:
    """A standard deviation in 0..2 from a network's output; the port's function."""
    return 2 * torch.sigmoid(raw.clamp(-10, 10))


def two_layers(net: nn.Sequential) -> tuple[front.Layer, front.Layer]:
    """The linear layers of a perceptron with one hidden layer."""
    first, second = (layer for layer in net if isinstance(layer, nn.Linear))
    return front.Layer(first), front.Layer(second)
