"""SPACE (Lin et al. 2020, arXiv 2001.02407), top-down: detector, latents, loss.

Where the paper and its published code disagree, this follows the code: KL terms are not multiplied by
presence, the boundary loss is a Gaussian on a frame of `boundary_width` pixels, the softmax over cells
takes 100 x alpha x presence x sigmoid(-depth). Left out are constants of the loss (the boundary loss's
normaliser).

What is ours are ways to be fast which change no value (`compose.py`, `BroadcastDecoder`), detection by the
mode of every latent where the published evaluation samples where, boxes cut to their bright part (`trim`;
the same care that GMAIR's get), and options that start cells elsewhere than at zero, which the published
defaults do not use.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from objbench.detector import PRESENT, Detections, Detector
from objbench.errors import UsageError
from objbench.latents import normal_kl, relaxed_bernoulli
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench.spatial import boxes_around, crop, trim_boxes, vector
from objbench_plugins.space import losses, networks
from objbench_plugins.space.background import Background
from objbench_plugins.space.compose import Canvases, Windows
from objbench_plugins.space.config import SETTINGS, SpaceConfig

SHARPNESS = 100.0
"""What alpha x sigmoid(-depth) is multiplied by in the softmax over cells."""
GLIMPSES_AT_ONCE = 128
PAINTED_AT_ONCE = 1024
"""Above so many objects, a batch is painted in parts."""
PRESENCE_LIMIT = 8.8
"""Presence logits lie within plus or minus this."""
BOUNDARY_WEIGHT = 1000 / 32**2
BOUNDARY_STD = 0.7
"""The boundary loss is -log N(BOUNDARY_WEIGHT x frames x alpha; 0, 0.7^2) at every pixel."""


class Cells(NamedTuple):
    """q(presence, depth, scale, shift) of all cells, cells = rows x columns, numbered row by row."""

    presence: Tensor  # [n, cells] logits
    depth_mean: Tensor  # [n, cells]
    depth_std: Tensor  # [n, cells]
    scale_mean: Tensor  # [n, cells, 2] logits of box width and height over those of the image
    scale_std: Tensor  # [n, cells, 2]
    shift_mean: Tensor  # [n, cells, 2] tanh is the centre's distance (x, y) from the cell's, in cells
    shift_std: Tensor  # [n, cells, 2]


class Objects(NamedTuple):
    """What is sampled for the k cells of an image that are looked at, and what it looks like."""

    presence: Tensor  # [n, k] in 0..1
    boxes: Tensor  # [n, k, 4] xyxy in pixels
    depth: Tensor  # [n, k]
    what_mean: Tensor  # [n, k, A]
    what_std: Tensor  # [n, k, A]
    colour: Tensor  # [n, k, channels, g, g] in 0..1
    alpha: Tensor  # [n, k, 1, g, g] in 0..1


class Phase(NamedTuple):
    """What differs between training steps, but for annealed numbers."""

    part_of_batch: bool  # only `first_batch` images are used
    gated: bool  # only the `gate_cells` of highest presence are looked at
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
        """`shape`: any channels; UsageError unless height and width are multiples of `cell` and of 32."""
        super().__init__(config, shape)
        c = config
        size = f"an image of {shape.height}x{shape.width}"
        if shape.height % c.cell or shape.width % c.cell:
            raise UsageError(f"space.cell={c.cell} does not divide {size}; take 8, 16 or 32, whichever does")
        stride = networks.BACKGROUND_STRIDE
        if shape.height % stride or shape.width % stride:
            raise UsageError(
                f"space needs image sides that are multiples of {stride}; {size} is not, whatever space.cell"
            )
        self.grid = (shape.height // c.cell, shape.width // c.cell)
        self.cells = self.grid[0] * self.grid[1]
        self.image_encoder = networks.ImageEncoder(shape.channels, c.cell, c.backbone_width)
        self.cell_head = nn.Conv2d(8 * c.backbone_width, 11, 1)  # presence 1, depth 2, scale 4, shift 4
        if c.start_at_prior:
            with torch.no_grad():
                self.cell_head.weight[3:7] = 0
                self.cell_head.bias[3:5] = c.scale_start
                self.cell_head.bias[5:7] = math.log(
                    math.expm1(c.scale_std)
                )  # softplus of it is the deviation
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
        of_background = {id(p) for p in background}
        foreground = [p for p in self.parameters() if id(p) not in of_background]
        return [
            torch.optim.RMSprop(foreground, lr=self.config.lr, foreach=True),
            torch.optim.Adam(background, lr=self.config.lr_background, fused=True),
        ]

    # Training

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The negative ELBO and the boundary loss, each term averaged over the batch."""
        c, now, annealed = self.config, self.phase(step), self.annealed(step)
        if now.part_of_batch:
            images = images[: c.first_batch]
        scene = self.background(images, sample=True)
        cells = self.infer_cells(images)
        presence = relaxed_bernoulli(cells.presence, annealed["temperature"])
        keep = self.chosen_cells(cells.presence, now.gated)
        objects = self.infer_objects(images, cells, presence, keep, sample=True)
        foreground, weight, frames = self.paint(objects, now.boundary)

        shown = torch.full_like(weight, c.fixed_alpha) if now.fixed_alpha else weight
        kl, pres_kl = normal_kl, losses.bernoulli_kl
        terms = {
            "recon": -self.log_likelihood(images, scene.masks, scene.pictures, foreground, shown),
            "pres": pres_kl(cells.presence, annealed["log_prior"], annealed["log_absent"]).sum(1),
            "depth": kl(cells.depth_mean, cells.depth_std).sum(1),
            "scale": kl(cells.scale_mean, cells.scale_std, annealed["scale"], c.scale_std).sum((1, 2)),
            "shift": kl(cells.shift_mean, cells.shift_std).sum((1, 2)),
            "what": kl(objects.what_mean, objects.what_std).sum((1, 2)),
            "background": scene.mask_kl + scene.component_kl,
        }
        if now.boundary:
            crossed = frames * weight * (BOUNDARY_WEIGHT / BOUNDARY_STD)
            terms["boundary"] = c.boundary * 0.5 * crossed.square().sum((1, 2, 3))
        self._watch = {"presence": cells.presence.detach(), "weight": weight.detach()}
        return {name: term.mean() for name, term in terms.items()}

    def phase(self, step: int) -> Phase:
        """What is switched on or off at this step."""
        c, when = self.config, step / self.config.steps
        return Phase(
            part_of_batch=c.gate_cells > 0 and when < c.gate_from and c.first_batch > 0,
            gated=0 < c.gate_cells < self.cells and when >= c.gate_from,
            fixed_alpha=when < c.fixed_alpha_until,
            boundary=c.boundary > 0 and c.boundary_from <= when < c.boundary_until,
        )

    def schedule(self, step: int) -> dict[str, float]:
        """Temperature, prior mean of scale, and logarithms of the prior of presence and of absence."""
        c, when = self.config, step / self.config.steps
        prior = losses.annealed(when, c.presence_from, c.presence_until, c.presence_start, c.presence_end)
        return {
            "temperature": losses.annealed(
                when, c.temperature_from, c.temperature_until, c.temperature_start, c.temperature_end
            ),
            "scale": losses.annealed(when, c.scale_from, c.scale_until, c.scale_start, c.scale_end),
            "log_prior": math.log(prior),
            "log_absent": math.log1p(-prior),
        }

    def watch(self) -> dict[str, float]:
        """Objects an image, and the share of the image that the foreground explains."""
        if not self._watch:
            return {}
        objects = (self._watch["presence"].sigmoid() >= PRESENT).float().sum(1).mean()
        return {"objects": float(objects), "foreground": float(self._watch["weight"].mean())}

    def log_likelihood(
        self, images: Tensor, masks: Tensor, pictures: Tensor, foreground: Tensor, weight: Tensor
    ) -> Tensor:
        """log p(x | z) [n]: each pixel a mixture of foreground and background, itself a mixture."""
        log_prob = losses.normal_log_prob
        behind = losses.mixture_log_prob(log_prob(images[:, None], pictures, self.config.bg_sigma), masks)
        both = torch.stack([log_prob(images, foreground, self.config.fg_sigma), behind], 1)
        return losses.mixture_log_prob(both, torch.stack([weight, 1 - weight], 1)).sum((1, 2, 3))

    def chosen_cells(self, presence: Tensor, gated: bool) -> Tensor:
        """Which cells of each image are encoded, decoded and painted: [n, k] indices.

        All of them, or, once `gated`, the `gate_cells` of highest presence.
        """
        if not gated:
            return torch.arange(self.cells, device=presence.device).expand(len(presence), -1)
        return presence.topk(self.config.gate_cells, dim=1, sorted=False).indices

    # Inference

    def infer_cells(self, images: Tensor) -> Cells:
        """q(presence), q(depth), q(scale) and q(shift) of every cell."""
        features = networks.run(self.image_encoder, images, self.config.precision)
        raw = self.cell_head(features).flatten(2).transpose(1, 2)  # [n, cells, 11]
        presence, depth_mean, depth_std, scale_mean, scale_std, shift_mean, shift_std = raw.split(
            [1, 1, 1, 2, 2, 2, 2], -1
        )
        return Cells(
            presence=PRESENCE_LIMIT * torch.tanh(presence[..., 0] + self.config.presence_bias),
            depth_mean=depth_mean[..., 0],
            depth_std=positive(depth_std[..., 0]),
            scale_mean=scale_mean,
            scale_std=positive(scale_std),
            shift_mean=shift_mean,
            shift_std=positive(shift_std),
        )

    def infer_objects(
        self, images: Tensor, cells: Cells, presence: Tensor, keep: Tensor, sample: bool
    ) -> Objects:
        """What the cells `keep` [n, k] hold: q(what) from each box's glimpse, and its decoded glimpse.

        presence: [n, cells], as it is to be painted. Without `sample`, by the means of all latents.
        """
        c = self.config
        n, k = keep.shape
        depth = losses.drawn(cells.depth_mean, cells.depth_std, sample)
        scale = losses.drawn(cells.scale_mean, cells.scale_std, sample)
        shift = losses.drawn(cells.shift_mean, cells.shift_std, sample)
        boxes = self.boxes(scale, shift).gather(1, keep[..., None].expand(-1, -1, 4))
        glimpses = crop(images, boxes, c.glimpse).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        what_mean, what_std, decoded = self.understand(glimpses, sample)
        decoded = decoded.unflatten(0, (n, k))
        return Objects(
            presence=presence.gather(1, keep),
            boxes=boxes,
            depth=depth.gather(1, keep),
            what_mean=what_mean.unflatten(0, (n, k)),
            what_std=what_std.unflatten(0, (n, k)),
            colour=torch.sigmoid(decoded[:, :, :-1] + c.colour_bias),
            alpha=torch.sigmoid(decoded[:, :, -1:] + c.alpha_bias),
        )

    def understand(self, glimpses: Tensor, sample: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and deviation [m, A] of what m glimpses hold, and how that looks, [m, channels + 1, g, g] logits.

        Convolutions take a few at a time: their features then stay in a processor's cache.
        """
        c = self.config
        chunk = GLIMPSES_AT_ONCE if c.glimpse_nets == "conv" and not glimpses.is_cuda else len(glimpses)
        found = []
        for few in glimpses.split(chunk):
            mean, std = networks.run(self.what_encoder, few, c.precision).chunk(2, -1)
            std = positive(std)
            what = losses.drawn(mean, std, sample)
            found.append((mean, std, networks.run(self.decoder, what, c.precision)))
        mean, std, decoded = (torch.cat(parts) for parts in zip(*found, strict=True))
        return mean, std, decoded

    def boxes(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Boxes [n, cells, 4] of where-latents [n, cells, 2]: centres up to a cell from the own cell's."""
        height, width = self.shape[1:]
        size = torch.sigmoid(scale) * vector(scale, width, height)
        return boxes_around(0.5 + torch.tanh(shift), size, self.grid, (height, width))

    # Generation

    def paint(self, objects: Objects, framed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Foreground and weight as `compose` has them, and the frames of the boundary loss, if `framed`: else 0.

        What this keeps for its gradient grows with the area of all boxes, at first half an image each. Where they
        are many, a few images are painted at a time, and once more when their gradient is due.
        """
        n, k = objects.presence.shape
        at_once = max(1, PAINTED_AT_ONCE // k)
        if at_once >= n or objects.boxes.is_cuda or self.held is not None:
            return self.paint_at_once(objects, framed)
        parts = zip(*(of_all.split(at_once) for of_all in objects), strict=True)
        painted = [
            checkpoint(
                self.paint_at_once, Objects(*part), framed, use_reentrant=False, preserve_rng_state=False
            )
            for part in parts
        ]
        foreground, weight, frames = (torch.cat(of_all) for of_all in zip(*painted, strict=True))
        return foreground, weight, frames

    def paint_at_once(self, objects: Objects, framed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `paint`."""
        windows = self.windows(objects.boxes)
        foreground, weight = self.compose(objects, windows)
        if not framed:
            return foreground, weight, torch.zeros_like(weight)
        return foreground, weight, windows.frames(objects.presence, self.config.boundary_width)

    def windows(self, boxes: Tensor) -> Windows | Canvases:
        """Where to paint objects with these boxes [n, k, 4]. Sizes that hang on boxes cannot be captured."""
        kind = Canvases if boxes.is_cuda or self.held is not None else Windows
        return kind(boxes, self.config.glimpse, self.shape.height, self.shape.width)

    def compose(self, objects: Objects, windows: Windows | Canvases) -> tuple[Tensor, Tensor]:
        """The foreground [n, channels, height, width] and its weight [n, 1, height, width] in 0..1."""
        alpha = objects.alpha * objects.presence[:, :, None, None, None]
        sharpness = SHARPNESS * torch.sigmoid(-objects.depth)
        return windows.compose(alpha * objects.colour, alpha, sharpness, self.cells)

    # Testing: the mode of every latent

    def detect(self, images: Tensor) -> Detections:
        """Boxes of the cells with presence of at least 0.01, cut to what is bright in their glimpses."""
        objects = self.look(images)
        boxes = objects.boxes
        if self.config.trim:
            brightness = (objects.colour * objects.alpha).mean(2) * objects.presence[..., None, None]
            boxes = trim_boxes(boxes, brightness, self.config.trim)
        height, width = self.shape[1:]
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        return Detections.from_padded(boxes, objects.presence, what=objects.what_mean)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The foreground over the background, every latent at its mode."""
        objects = self.look(images)
        foreground, weight = self.compose(objects, self.windows(objects.boxes))
        scene = self.background(images, sample=False)
        return (weight * foreground + (1 - weight) * scene.image).clamp(0, 1)

    def look(self, images: Tensor) -> Objects:
        """Objects at their modes, of as many cells as have presence of at least 0.01 in the fullest image."""
        cells = self.infer_cells(images)
        presence = cells.presence.sigmoid()
        candidates = int((presence >= 0.01).sum(1).max().clamp(min=1))
        keep = presence.topk(candidates, dim=1).indices
        return self.infer_objects(images, cells, presence, keep, sample=False)


def positive(raw: Tensor) -> Tensor:
    """A standard deviation from a network's output."""
    return F.softplus(raw.clamp(-10, 10))
