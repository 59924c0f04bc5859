"""SPACE (Lin et al. 2020, arXiv 2001.02407), top-down: detector, latents, loss.

The model of the paper (its section 2), which comments below refer to by these letters:

    (a)  p(x | z) = w p(x | foreground) + (1 - w) sum_k mask_k p(x | picture_k)    a mixture at every pixel
    (b)  p(foreground) = product over cells of p(presence) p(scale) p(shift) p(depth) p(what); where = (scale, shift)
    (c)  p(background) = product over k of p(mask_k | mask_<k) p(component_k | mask_k)    see `background.py`
    (d)  w, foreground: at every pixel a softmax over cells of 100 x alpha x presence x sigmoid(-depth)
    (e)  loss = -log p(x | z) + the KL of each latent + the boundary loss (the paper's "preventing box-splitting")

Where the paper and its published code disagree, this follows the code: KL terms are not multiplied by presence, the
boundary loss is a Gaussian on a frame of `boundary_width` pixels. The boundary loss's normalising constant is left
out.

Not published are ways to be fast which change no value (`compose.py`, `BroadcastDecoder`); detection by the mode of
every latent, where the published evaluation samples where; boxes cut to their bright part (`trim`), as GMAIR cuts its
own, and if asked for to where the object makes the picture (`trim_hidden`); and options that start cells elsewhere
than at zero, which the published defaults do not use.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from objbench.detector import MIN_SCORE, PRESENT, Detections, Detector, other_parameters
from objbench.errors import UsageError
from objbench.latents import bernoulli_kl, normal_kl, normal_sample, relaxed_bernoulli
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench.spatial import (
    boxes_around,
    candidate_cells,
    clamp_boxes,
    crop,
    in_parts,
    take_cells,
    top_cells,
    trim_boxes,
    vector,
)
from objbench_plugins.space import losses, networks
from objbench_plugins.space.background import Background
from objbench_plugins.space.compose import Canvases, Windows
from objbench_plugins.space.config import SETTINGS, SpaceConfig

SHARPNESS = 100.0
"""What alpha x sigmoid(-depth) is multiplied by in the softmax over cells (d)."""
GLIMPSES_AT_ONCE = 128
"""On a CPU convolutions encode and decode so many glimpses at a time: their features then stay in its cache."""
RENDERED_AT_ONCE = 1024
"""On a CPU a batch with more objects than this is rendered in parts."""
PRESENCE_LIMIT = 8.8
"""Presence logits lie between plus and minus this."""
BOUNDARY_WEIGHT = 1000 / 32**2
"""What frames are multiplied by in the boundary loss: published is 1000 over the pixels of a glimpse of 32x32."""
BOUNDARY_STD = 0.7
"""The boundary loss at each pixel is -log N(BOUNDARY_WEIGHT x frames x w; 0, BOUNDARY_STD^2), without its constant."""


class GridCells(NamedTuple):
    """q(presence), q(depth), q(scale) and q(shift) of all cells, cells = rows x columns, numbered row by row."""

    presence_logit: Tensor  # [n, cells]
    depth_mean: Tensor  # [n, cells]
    depth_std: Tensor  # [n, cells]
    scale_mean: Tensor  # [n, cells, 2] logits of box width and height over those of the image
    scale_std: Tensor  # [n, cells, 2]
    shift_mean: (
        Tensor  # [n, cells, 2] its tanh is the distance (x, y) of the box's centre from the cell's, in cells
    )
    shift_std: Tensor  # [n, cells, 2]

    @property
    def presence_prob(self) -> Tensor:
        """q(presence = 1), [n, cells]."""
        return self.presence_logit.sigmoid()


class Objects(NamedTuple):
    """The samples (or modes) of the k chosen cells of each image, with q(what) and what it looks like."""

    presence: Tensor  # [n, k] in 0..1
    boxes: Tensor  # [n, k, 4] xyxy in pixels
    depth: Tensor  # [n, k]
    what_mean: Tensor  # [n, k, A]
    what_std: Tensor  # [n, k, A]
    colour: Tensor  # [n, k, channels, g, g] in 0..1
    alpha: Tensor  # [n, k, 1, g, g] in 0..1


class Phase(NamedTuple):
    """What differs between training steps, apart from annealed numbers."""

    warmup: bool  # only `warmup_images` images of the batch are used
    gated: bool  # only the `gate_cells` cells of highest presence are encoded, decoded and painted
    fixed_alpha: bool  # the foreground's weight is fixed
    boundary: bool  # the boundary loss lasts


class Space(Detector):
    """Spatially Parallel Attention and Component Extraction: a grid of cells over a scene mixture."""

    Config = SpaceConfig
    config: SpaceConfig
    capturable = True

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: SpaceConfig, shape: SceneShape) -> None:
        """`shape`: any number of channels. UsageError unless its sides are multiples of `cell_size` and of 32."""
        super().__init__(config, shape)
        c = config
        size = f"an image of {shape.height}x{shape.width}"
        if shape.height % c.cell_size or shape.width % c.cell_size:
            raise UsageError(
                f"space.cell_size={c.cell_size} does not divide {size}; take one of 8, 16 and 32 that does"
            )
        stride = networks.BACKGROUND_STRIDE
        if shape.height % stride or shape.width % stride:
            raise UsageError(
                f"space needs image sides that are multiples of {stride}, but images are {shape.height}x{shape.width}"
            )
        self.grid = (shape.height // c.cell_size, shape.width // c.cell_size)
        self.cells = self.grid[0] * self.grid[1]
        self.image_encoder = networks.ImageEncoder(shape.channels, c.cell_size, c.backbone_width)
        self.cell_head = nn.Conv2d(8 * c.backbone_width, 11, 1)  # presence 1, depth 2, scale 4, shift 4
        if c.start_at_prior:
            with torch.no_grad():
                self.cell_head.weight[3:7] = 0
                self.cell_head.bias[3:5] = c.scale_start
                self.cell_head.bias[5:7] = math.log(math.expm1(c.scale_std))  # its softplus is scale_std
        painted = shape.channels + 1  # colour and alpha
        self.what_encoder: nn.Module
        self.decoder: nn.Module
        if c.glimpse_nets == "conv":
            self.what_encoder = networks.glimpse_encoder(shape.channels, 2 * c.what_dim)
            self.decoder = networks.glimpse_decoder(c.what_dim, painted)
        else:
            pixels = c.glimpse**2
            self.what_encoder = nn.Sequential(
                nn.Flatten(), networks.mlp(shape.channels * pixels, c.mlp_width, 2 * c.what_dim)
            )
            self.decoder = nn.Sequential(
                networks.mlp(c.what_dim, c.mlp_width, painted * pixels),
                nn.Unflatten(1, (painted, c.glimpse, c.glimpse)),
            )
        self.background = Background(c, shape)
        self.to(memory_format=torch.channels_last)  # convolutions of few channels are twice as fast
        self._watch: dict[str, Tensor] = {}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """RMSprop for the foreground, Adam for the background, as published."""
        background = list(self.background.parameters())
        return [
            torch.optim.RMSprop(other_parameters(self, background), lr=self.config.lr, foreach=True),
            torch.optim.Adam(background, lr=self.config.lr_background, fused=True),
        ]

    # Training

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The negative ELBO and the boundary loss (e), each term averaged over the batch."""
        c, now, annealed = self.config, self.phase(step), self.annealed(step)
        if now.warmup:
            images = images[: c.warmup_images]

        # A sample of q(z | x): background, then presence, where and depth of cells, then what of the chosen cells
        scene = self.background(images, sample=True)
        cells = self.infer_cells(images)
        presence = relaxed_bernoulli(cells.presence_logit, annealed["temperature"])  # [n, cells]
        chosen = top_cells(cells.presence_logit, c.gate_cells if now.gated else 0)  # [n, k]
        objects = self.infer_objects(images, cells, presence, chosen, sample=True)

        # (d): [n, channels, h, w], [n, 1, h, w] and, for the boundary loss, [n, 1, h, w]
        foreground, weight, frames = self.render(objects, now.boundary)
        mixed = torch.full_like(weight, c.fixed_alpha) if now.fixed_alpha else weight

        # (a): [n]
        log_likelihood = self.log_likelihood(images, scene.masks, scene.pictures, foreground, mixed)
        # (b): [n, cells]; scale and shift [n, cells, 2]; what [n, k, A]
        kl_pres = bernoulli_kl(cells.presence_logit, annealed["log_prior"], annealed["log_absent"])
        kl_depth = normal_kl(cells.depth_mean, cells.depth_std)
        kl_scale = normal_kl(cells.scale_mean, cells.scale_std, annealed["scale"], c.scale_std)
        kl_shift = normal_kl(cells.shift_mean, cells.shift_std)
        kl_what = normal_kl(objects.what_mean, objects.what_std)
        # (c): [n]
        kl_background = scene.mask_kl + scene.component_kl

        # (e): [n]
        terms = {
            "recon": -log_likelihood,
            "pres": kl_pres.sum(1),
            "depth": kl_depth.sum(1),
            "scale": kl_scale.sum((1, 2)),
            "shift": kl_shift.sum((1, 2)),
            "what": kl_what.sum((1, 2)),
            "background": kl_background,
        }
        if now.boundary:
            crossed = frames * weight * (BOUNDARY_WEIGHT / BOUNDARY_STD)  # in standard deviations
            terms["boundary"] = c.boundary * 0.5 * crossed.square().sum((1, 2, 3))
        self._watch = {"presence": cells.presence_prob.detach(), "weight": weight.detach()}
        return {name: term.mean() for name, term in terms.items()}

    def phase(self, step: int) -> Phase:
        """What is switched on or off at this step."""
        c, when = self.config, step / self.config.steps
        return Phase(
            warmup=when < c.gate_from and c.warmup_images > 0,
            gated=0 < c.gate_cells < self.cells and when >= c.gate_from,
            fixed_alpha=when < c.fixed_alpha_until,
            boundary=c.boundary > 0 and c.boundary_from <= when < c.boundary_until,
        )

    def schedule(self, step: int) -> dict[str, float]:
        """Temperature, prior mean of scale, and `log_prior`, `log_absent` of presence."""
        c, when = self.config, step / self.config.steps
        prior = losses.linear(when, c.presence_from, c.presence_until, c.presence_start, c.presence_end)
        return {
            "temperature": losses.linear(
                when, c.temperature_from, c.temperature_until, c.temperature_start, c.temperature_end
            ),
            "scale": losses.linear(when, c.scale_from, c.scale_until, c.scale_start, c.scale_end),
            "log_prior": math.log(prior),
            "log_absent": math.log1p(-prior),
        }

    def watch(self) -> dict[str, float]:
        """Objects an image, and the share of the image that the foreground explains."""
        if not self._watch:
            return {}
        objects = (self._watch["presence"] >= PRESENT).float().sum(1).mean()
        return {"objects": float(objects), "foreground": float(self._watch["weight"].mean())}

    def log_likelihood(
        self, images: Tensor, masks: Tensor, pictures: Tensor, foreground: Tensor, weight: Tensor
    ) -> Tensor:
        """log p(x | z) [n] (a): each pixel a mixture of foreground and background, itself a mixture.

        images, foreground: [n, channels, height, width]; masks: [n, K, 1, height, width]; pictures:
        [n, K, channels, height, width]; weight: [n, 1, height, width].
        """
        # log p(x | picture_k): [n, K, channels, h, w]; of their mixture, and of the foreground: [n, channels, h, w]
        log_pictures = losses.normal_log_prob(images[:, None], pictures, self.config.bg_sigma)
        log_background = losses.mixture_log_prob(log_pictures, masks)
        log_foreground = losses.normal_log_prob(images, foreground, self.config.fg_sigma)
        both = torch.stack([log_foreground, log_background], 1)
        return losses.mixture_log_prob(both, torch.stack([weight, 1 - weight], 1)).sum((1, 2, 3))

    # Inference

    def infer_cells(self, images: Tensor) -> GridCells:
        """q(presence | x), q(depth | x), q(scale | x), q(shift | x) of all cells, of [n, channels, height, width]."""
        features = networks.run(self.image_encoder, images, self.config.precision)
        raw = self.cell_head(features).flatten(2).transpose(1, 2)  # [n, cells, 11]
        presence, depth_mean, depth_std, scale_mean, scale_std, shift_mean, shift_std = raw.split(
            [1, 1, 1, 2, 2, 2, 2], -1
        )
        return GridCells(
            presence_logit=PRESENCE_LIMIT * torch.tanh(presence[..., 0] + self.config.presence_bias),
            depth_mean=depth_mean[..., 0],
            depth_std=losses.deviation(depth_std[..., 0]),
            scale_mean=scale_mean,
            scale_std=losses.deviation(scale_std),
            shift_mean=shift_mean,
            shift_std=losses.deviation(shift_std),
        )

    def infer_objects(
        self, images: Tensor, cells: GridCells, presence: Tensor, chosen: Tensor, sample: bool
    ) -> Objects:
        """The objects of the cells `chosen` [n, k]: q(what | x, where) from each box's glimpse, and it decoded.

        presence: [n, cells], the sample or the probability. Without `sample`, every other latent is its mode.
        """
        c = self.config
        n, k = chosen.shape
        # z ~ q(depth), q(scale), q(shift): [n, cells], [n, cells, 2] and [n, cells, 2]
        depth = normal_sample(cells.depth_mean, cells.depth_std, sample)
        scale = normal_sample(cells.scale_mean, cells.scale_std, sample)
        shift = normal_sample(cells.shift_mean, cells.shift_std, sample)
        boxes = take_cells(self.boxes(scale, shift), chosen)  # [n, k, 4]
        # z ~ q(what | x, where), decoded: [n k, A] and [n k, channels + 1, g, g]
        glimpses = crop(images, boxes, c.glimpse).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        at_once = GLIMPSES_AT_ONCE if c.glimpse_nets == "conv" else n * k
        what_mean, what_std, decoded = in_parts(
            lambda few: self.encode_decode(few, sample), (glimpses,), at_once, recompute=False
        )
        decoded = decoded.unflatten(0, (n, k))
        return Objects(
            presence=take_cells(presence, chosen),
            boxes=boxes,
            depth=take_cells(depth, chosen),
            what_mean=what_mean.unflatten(0, (n, k)),
            what_std=what_std.unflatten(0, (n, k)),
            colour=torch.sigmoid(decoded[:, :, :-1] + c.colour_bias),
            alpha=torch.sigmoid(decoded[:, :, -1:] + c.alpha_bias),
        )

    def encode_decode(self, glimpses: Tensor, sample: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and deviation of q(what | x, where) of m glimpses, [m, A] each, and a sample decoded.

        glimpses: [m, channels, g, g]. Decoded, logits [m, channels + 1, g, g], is the mean without `sample`.
        """
        mean, std = networks.run(self.what_encoder, glimpses, self.config.precision).chunk(2, -1)
        std = losses.deviation(std)
        what = normal_sample(mean, std, sample)
        return mean, std, networks.run(self.decoder, what, self.config.precision)

    def infer_modes(self, images: Tensor) -> Objects:
        """The objects of all cells that can be detections, every latent at its mode."""
        cells = self.infer_cells(images)
        presence = cells.presence_prob
        chosen = candidate_cells(presence, MIN_SCORE)
        return self.infer_objects(images, cells, presence, chosen, sample=False)

    def boxes(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Boxes [n, cells, 4] of where-latents [n, cells, 2]: centres up to a cell from the own cell's."""
        height, width = self.shape[1:]
        size = torch.sigmoid(scale) * vector(scale, width, height)
        return boxes_around(0.5 + torch.tanh(shift), size, self.grid, (height, width))

    # Generation (d)
    #
    #   render: a batch, in parts
    #     render_part:
    #       windows: where the boxes lie on the canvas
    #       compose: the softmax over cells -> foreground and weight
    #       windows.frames: frames of the boundary loss

    def render(self, objects: Objects, framed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Foreground and weight as `compose` returns them, and the frames of the boundary loss, if `framed`: else 0.

        What this keeps for its gradient grows with the area of all boxes, at first half an image each. So on a CPU a
        batch of many objects is rendered in parts.
        """
        n, k = objects.presence.shape
        at_once = n if self.captured else max(1, RENDERED_AT_ONCE // k)
        return in_parts(lambda *part: self.render_part(Objects(*part), framed), objects, at_once)

    def render_part(self, objects: Objects, framed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """As `render`, all at once."""
        windows = self.windows(objects.boxes)
        foreground, weight = self.compose(objects, windows)
        if not framed:
            return foreground, weight, torch.zeros_like(weight)
        return foreground, weight, windows.frames(objects.presence, self.config.boundary_width)

    def windows(self, boxes: Tensor) -> Windows | Canvases:
        """Where to paint objects with these boxes [n, k, 4]. Sizes that depend on boxes cannot be captured."""
        kind = Canvases if boxes.is_cuda or self.captured else Windows
        return kind(boxes, self.config.glimpse, self.shape.height, self.shape.width)

    def compose(self, objects: Objects, windows: Windows | Canvases) -> tuple[Tensor, Tensor]:
        """The foreground [n, channels, height, width] and its weight w [n, 1, height, width] in 0..1."""
        alpha = objects.alpha * objects.presence[:, :, None, None, None]
        sharpness = SHARPNESS * torch.sigmoid(-objects.depth)
        return windows.compose(alpha * objects.colour, alpha, sharpness, self.cells)

    # Detection: the mode of every latent

    def detect(self, images: Tensor) -> Detections:
        """Boxes of the cells with a presence of at least MIN_SCORE, cut to what is bright in their decoded glimpses."""
        objects = self.infer_modes(images)
        boxes = objects.boxes
        if self.config.trim:
            brightness = (objects.colour * objects.alpha).mean(2) * objects.presence[..., None, None]
            if self.config.trim_hidden:
                brightness = brightness * self.visible(objects)
            boxes = trim_boxes(boxes, brightness, self.config.trim, self.config.trim_edges)
        boxes = clamp_boxes(boxes, self.shape[1:])
        return Detections.from_padded(boxes, objects.presence, what=objects.what_mean)

    def visible(self, objects: Objects) -> Tensor:
        """How much of the picture at each of its glimpse's pixels an object makes, [n, k, g, g] in 0..1: see (d).

        A glimpse also shows what touches the object, and nothing in the loss keeps it from painting that, because there
        the neighbour is in front. Where fruits touch, boxes cut to what is bright alone are as large as uncut.
        """
        n, k = objects.presence.shape
        height, width = self.shape[1:]
        alpha = objects.alpha * objects.presence[:, :, None, None, None]
        canvases = Canvases(objects.boxes, self.config.glimpse, height, width)
        shares = canvases.shares(alpha, SHARPNESS * torch.sigmoid(-objects.depth), self.cells)
        glimpses = crop(
            shares.flatten(0, 1)[:, None], objects.boxes.flatten(0, 1)[:, None], self.config.glimpse
        )
        return glimpses.view(n, k, *glimpses.shape[-2:])

    def reconstruct(self, images: Tensor) -> Tensor:
        """The foreground over the background, [n, channels, height, width], every latent at its mode."""
        objects = self.infer_modes(images)
        foreground, weight = self.compose(objects, self.windows(objects.boxes))
        scene = self.background(images, sample=False)
        return (weight * foreground + (1 - weight) * scene.image).clamp(0, 1)
