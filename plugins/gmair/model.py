"""GMAIR (Zhu, Shen, Yu, Aguirre Sanchez 2021, arXiv 2106.01722), top-down: detector, latents, loss.

Where the paper and its published code disagree, this follows the code, because that is what trained:
presence is its probability, never a sample (`presence`); the overlap is summed over pixels, not averaged
(`overlap_mean`); the encoders are three layers of 512 (`encoder_widths`); where means pass through a batch
normalisation of fixed scale (`where_norm`); ReLU precedes group normalisation in the decoder.

Two things differ from both. What an object paints is colour x alpha x importance, interpolated as one picture, where
the published renderer interpolates the three and then multiplies (`renderer`). It makes painting linear, hence fast.
And in short trainings the mixture is started, once, from what the encoder knows by then (`mixture_start`, see
`mixture.py`); under the `paper` protocol it never is.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objbench.detector import Detections, Detector
from objbench.latents import categorical_kl, gumbel_softmax, normal_kl, relaxed_bernoulli
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench.spatial import Painter, boxes_around, crop, trim_boxes
from objbench.spatial.reference import canvases
from objbench_plugins.gmair import networks
from objbench_plugins.gmair.config import SETTINGS, GmairConfig
from objbench_plugins.gmair.mixture import start_mixture

EPS = 1e-9
"""Added inside logarithms of the presence KL, as published: at the first step, where its prior is 1, an absent cell
costs log(1 / EPS), about 20.7 nats, which keeps cells alive."""

MIN_IMPORTANCE = 1e-4
"""An absent object still counts this much in a pixel's average, so that it can come back."""


class Cells(NamedTuple):
    """Latents of all cells, cells = rows x columns, numbered row by row."""

    presence: Tensor  # [n, cells] probability
    where_mean: Tensor  # [n, cells, 4] logits: centre x, centre y, width, height
    where_std: Tensor  # [n, cells, 4]
    depth_mean: Tensor  # [n, cells]
    depth_std: Tensor  # [n, cells]


class Objects(NamedTuple):
    """What is sampled for the k cells of an image that are looked at."""

    presence: Tensor  # [n, k]
    boxes: Tensor  # [n, k, 4] xyxy in pixels
    depth: Tensor  # [n, k]
    cat_logits: Tensor  # [n, k, C]
    cat: Tensor  # [n, k, C] on the simplex
    what_mean: Tensor  # [n, k, A]
    what_std: Tensor  # [n, k, A]
    what: Tensor  # [n, k, A]


class Phase(NamedTuple):
    """What differs between training steps, but for annealed numbers."""

    part_of_batch: bool  # only `first_batch` images are used
    gated: bool  # only the `gate_cells` of highest presence are looked at
    overlapping: bool  # the overlap loss lasts
    mixture: str  # the prior of what: "none", "detached" (without gradient) or "learning"


class Gmair(Detector):
    """Gaussian Mixture Attend, Infer, Repeat: a grid of cells, each with presence, where, depth, cat and what."""

    Config = GmairConfig
    config: GmairConfig
    capturable = True

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: GmairConfig, shape: SceneShape) -> None:
        """`shape`: height and width must be multiples of 8; one or three channels (any number works)."""
        super().__init__(config, shape)
        stride = networks.STRIDE
        if shape.height % stride or shape.width % stride:
            raise ValueError(
                f"GMAIR's grid needs images whose sides divide by {stride}, got {shape.height}x{shape.width}"
            )
        self.grid = (shape.height // stride, shape.width // stride)
        self.cells = self.grid[0] * self.grid[1]
        c = config
        if c.backbone == "resnet18":
            self.backbone, features = networks.resnet_backbone(shape.channels), 64
        else:
            self.backbone, features = (
                networks.small_backbone(shape.channels, c.backbone_width),
                4 * c.backbone_width,
            )
        self.presence_head = networks.head(features, c.head_width, c.head_layers, 1)
        self.depth_head = networks.head(features, c.head_width, c.head_layers, 2)
        self.where_head = networks.head(features, c.head_width, c.head_layers, 8)
        self.where_norm = FixedScaleNorm(self.cells * 4, c.where_norm) if c.where_norm else None
        pixels = shape.channels * c.glimpse**2
        self.cat_encoder = networks.encoder(pixels, c.widths(), c.clusters)
        self.what_encoder = networks.encoder(pixels + c.clusters, c.widths(), 2 * c.what_dim)
        painted = shape.channels + 1  # colour and alpha
        self.decoder: nn.Module
        if c.decoder == "conv":
            self.decoder = networks.ConvDecoder(c.what_dim, painted)
        else:
            self.decoder = networks.MlpDecoder(c.what_dim, c.decoder_width, painted, c.glimpse)
        # The "what priors" of section 2.1: mean and deviation of the mixture's components.
        self.prior_mean = nn.Linear(c.clusters, c.what_dim)
        self.prior_std = nn.Linear(c.clusters, c.what_dim)
        self._watch: dict[str, Tensor] = {}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam, with a learning rate of its own for encoders, decoder and mixture prior, as published."""
        own = (self.cat_encoder, self.what_encoder, self.decoder, self.prior_mean, self.prior_std)
        what = [p for module in own for p in module.parameters()]
        chosen = {id(p) for p in what}
        rest = [p for p in self.parameters() if id(p) not in chosen]
        groups = [{"params": rest, "lr": self.config.lr}, {"params": what, "lr": self.config.lr_what}]
        return [torch.optim.Adam(groups, fused=True)]

    # Training

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The weighted terms of Eq. 11, each summed over cells or pixels and averaged over the batch."""
        c, now = self.config, self.phase(step)
        if now.part_of_batch:
            images = images[: c.first_batch]
        cells = self.infer_cells(images)
        keep = self.chosen_cells(cells.presence, step)  # [n, k]
        where = cells.where_mean + cells.where_std * torch.randn_like(cells.where_mean)
        depth = cells.depth_mean + cells.depth_std * torch.randn_like(cells.depth_mean)
        presence = self.sampled_presence(cells.presence)
        objects = self.infer_objects(
            images,
            presence=presence.gather(1, keep),
            boxes=self.boxes(where).gather(1, keep[..., None].expand(-1, -1, 4)),
            depth=depth.gather(1, keep),
            sample=True,
        )
        colour, alpha = self.decode(objects.what)
        painted, over = self.render(objects, colour, alpha, now.overlapping)

        what_prior = self.what_prior(objects.cat, step)
        chance = cells.presence
        chosen_chance = chance.gather(1, keep)
        terms = {
            "recon": c.recon
            * F.binary_cross_entropy(painted, images, reduction="none").sum((1, 2, 3)),  # Eq. 4
            "pres": c.pres * bernoulli_kl(chance, **self.annealed(step)).sum(1),  # Eq. 6
            "where": c.where * (chance * normal_kl(cells.where_mean, cells.where_std).sum(2)).sum(1),  # Eq. 7
            "depth": c.depth * (chance * normal_kl(cells.depth_mean, cells.depth_std)).sum(1),  # Eq. 8
            "cat": c.cat * (chosen_chance * categorical_kl(objects.cat_logits)).sum(1),  # Eq. 9
            "what": c.what
            * (chosen_chance * normal_kl(objects.what_mean, objects.what_std, *what_prior).sum(2)).sum(
                1
            ),  # Eq. 10
        }
        if now.overlapping:
            terms["overlap"] = c.overlap * (over.mean((1, 2)) if c.overlap_mean else over.sum((1, 2)))
        self._watch = {
            "presence": chance.detach(),
            "chosen": chosen_chance.detach(),
            "cat": objects.cat_logits.detach(),
        }
        return {name: term.mean() for name, term in terms.items()}

    def phase(self, step: int) -> Phase:
        """What is switched on or off at this step."""
        c = self.config
        return Phase(
            part_of_batch=step < c.gate_step and c.first_batch > 0,
            gated=0 < c.gate_cells < self.cells and step >= c.gate_step,
            overlapping=c.overlap > 0 and step < c.overlap_steps,
            mixture="none" if step < c.mixture_start else "detached" if step < c.detach_steps else "learning",
        )

    def schedule(self, step: int) -> dict[str, float]:
        """Logarithms of the prior of presence and of absence."""
        prior = max(math.exp(-self.config.prior_decay * step), self.config.prior_floor)
        return {"log_prior": math.log(prior + EPS), "log_absent": math.log(1 - prior + EPS)}

    def watch(self) -> dict[str, float]:
        """Objects an image, and how evenly clusters are used (entropy over log C: 0 is one cluster, 1 all alike)."""
        if not self._watch:
            return {}
        chosen, cat = self._watch["chosen"], self._watch["cat"].softmax(-1)
        usage = (chosen[..., None] * cat).sum((0, 1)) / chosen.sum().clamp(min=1e-9)
        entropy = -(usage * usage.clamp(min=1e-9).log()).sum() / max(math.log(self.config.clusters), 1e-9)
        objects = (self._watch["presence"] >= 0.5).float().sum(1).mean()
        return {"objects": float(objects), "cluster_usage": float(entropy)}

    def milestones(self) -> tuple[int, ...]:
        """The step at which the mixture is started."""
        return (self.config.mixture_start,) if self.config.mixture_start else ()

    def at_milestone(self, images: Tensor, step: int) -> None:
        """See `mixture.py`."""
        start_mixture(self, images)

    def chosen_cells(self, presence: Tensor, step: int) -> Tensor:
        """Which cells of each image are encoded, decoded and painted: [n, k] indices.

        All of them until `gate_step`, then the `gate_cells` of highest presence.
        """
        n, cells = presence.shape
        if not self.phase(step).gated:
            return torch.arange(cells, device=presence.device).expand(n, cells)
        return presence.topk(self.config.gate_cells, dim=1, sorted=False).indices

    # Inference (Eq. 3)

    def infer_cells(self, images: Tensor) -> Cells:
        """q(presence), q(where), q(depth) for every cell."""
        features = self.backbone(images)
        n = len(images)
        presence = self.presence_head(features).reshape(n, -1) + self.config.presence_bias
        depth_mean, depth_std = self.depth_head(features).reshape(n, 2, -1).unbind(1)
        where = self.where_head(features).reshape(n, 8, -1).transpose(1, 2)
        where_mean, where_std = where.chunk(2, -1)
        if self.where_norm is not None:
            where_mean = self.where_norm(where_mean)
        return Cells(
            presence=torch.sigmoid(presence.clamp(-10, 10)),
            where_mean=where_mean.clamp(-10, 10),
            where_std=positive(where_std),
            depth_mean=depth_mean.clamp(-10, 10),
            depth_std=positive(depth_std),
        )

    def infer_objects(
        self, images: Tensor, presence: Tensor, boxes: Tensor, depth: Tensor, sample: bool
    ) -> Objects:
        """q(cat) from each box's glimpse, then q(what) from glimpse and cat. Without `sample`, their means (B.3)."""
        c = self.config
        glimpses = crop(images, boxes, c.glimpse).flatten(2)  # [n, k, channels * g * g]
        cat_logits = self.cat_encoder(glimpses)
        cat = gumbel_softmax(cat_logits, c.temperature) if sample else cat_logits.softmax(-1)
        what_mean, what_std = self.what_encoder(torch.cat([glimpses, cat], -1)).chunk(2, -1)
        what_std = positive(what_std)
        what = what_mean + what_std * torch.randn_like(what_mean) if sample else what_mean
        return Objects(presence, boxes, depth, cat_logits, cat, what_mean, what_std, what)

    def boxes(self, where: Tensor) -> Tensor:
        """The boxes of where-latents [n, cells, 4]: centres inside the own cell, sides up to `base_box`."""
        centre, size = torch.sigmoid(where).chunk(2, -1)
        return boxes_around(centre, size * self.config.base_box, self.grid, self.shape[1:])

    def sampled_presence(self, chance: Tensor) -> Tensor:
        """The presence that training paints with: its probability, or a sample of the relaxed Bernoulli."""
        if self.config.presence == "mean":
            return chance
        return relaxed_bernoulli(torch.logit(chance, eps=1e-6), self.config.temperature)

    def what_prior(self, cat: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of p(what | cat), [n, k, A] each (Eq. 2); a standard normal before `mixture_start`."""
        mean, std = self.prior_mean(cat), positive(self.prior_std(cat))
        mixture = self.phase(step).mixture
        if mixture == "none":
            return torch.zeros_like(mean), torch.ones_like(std)
        return (mean, std) if mixture == "learning" else (mean.detach(), std.detach())

    # Generation

    def decode(self, what: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpses of what-latents [n, k, A]: colour [n, k, channels, g, g] and alpha [n, k, 1, g, g], in 0..1."""
        n, k, a = what.shape
        logits = self.decoder(what.reshape(n * k, a)).unflatten(0, (n, k))
        colour = torch.sigmoid((logits[:, :, :-1] + self.config.colour_bias).clamp(-10, 10))
        alpha = torch.sigmoid(logits[:, :, -1:] + self.config.alpha_bias)
        return colour, alpha

    def render(
        self, objects: Objects, colour: Tensor, alpha: Tensor, overlapping: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The image p(x | z) expects, [n, channels, height, width] in 0..1, and the overlap, [n, height, width].

        At each pixel the average over objects, weighted by importance: alpha x presence x 4 sigmoid(depth).
        The overlap (section 2.3) is what all objects paint there less what the strongest paints; 0 unless asked for.
        """
        if self.config.renderer == "published":
            return self.render_published(objects, colour, alpha)
        painter = Painter(objects.boxes, self.config.glimpse, self.shape.height, self.shape.width)
        shown = alpha * objects.presence[:, :, None, None, None]
        importance = (shown * 4 * torch.sigmoid(objects.depth)[:, :, None, None, None]).clamp(
            min=MIN_IMPORTANCE
        )
        layers = [colour * shown * importance, importance]
        if overlapping:
            layers.append((colour * shown).mean(2, keepdim=True))
        canvas = painter.paint(torch.cat(layers, 2))
        channels = self.shape.channels
        image = (canvas[:, :channels] / (canvas[:, channels : channels + 1] + 1e-9)).clamp(0, 1)
        if not overlapping:
            return image, image.new_zeros(())
        return image, canvas[:, -1] - painter.strongest(layers[-1][:, :, 0])

    def render_published(self, objects: Objects, colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """As `render`, but colour, alpha and importance interpolated apart and then multiplied, a canvas an object."""
        shown = alpha * objects.presence[:, :, None, None, None]
        importance = (shown * 4 * torch.sigmoid(objects.depth)[:, :, None, None, None]).clamp(
            min=MIN_IMPORTANCE
        )
        layers = torch.cat([colour, shown, importance], 2)
        painted = canvases(
            layers, objects.boxes, self.shape.height, self.shape.width
        )  # [n, k, channels + 2, ...]
        colours = painted[:, :, :-2] * painted[:, :, -2:-1]
        weights = painted[:, :, -1:] + 1e-9
        image = (colours * weights / weights.sum(1, keepdim=True)).sum(1).clamp(0, 1)
        mean = colours.mean(2)  # over channels: [n, k, height, width]
        return image, mean.sum(1) - mean.amax(1)

    # Testing (Appendix B.3): the mode of every latent

    def detect(self, images: Tensor) -> Detections:
        """Boxes of the cells with presence of at least 0.01, cut to what is bright in their decoded glimpses."""
        objects, colour, alpha = self.look(images)
        boxes = objects.boxes
        if self.config.trim:
            brightness = colour.mean(2) * alpha[:, :, 0] * objects.presence[..., None, None]
            boxes = trim_boxes(boxes, brightness, self.config.trim)
        height, width = self.shape[1:]
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        return Detections.from_padded(boxes, objects.presence, objects.cat_logits.argmax(-1), objects.what)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The rendered image, every latent at its mode."""
        return self.render(*self.look(images))[0]

    def look(self, images: Tensor) -> tuple[Objects, Tensor, Tensor]:
        """Objects at their modes, and their decoded glimpses."""
        cells = self.infer_cells(images)
        candidates = int((cells.presence >= 0.01).sum(1).max().clamp(min=1))
        presence, keep = cells.presence.topk(candidates, dim=1)
        objects = self.infer_objects(
            images,
            presence=presence,
            boxes=self.boxes(cells.where_mean).gather(1, keep[..., None].expand(-1, -1, 4)),
            depth=cells.depth_mean.gather(1, keep),
            sample=False,
        )
        return objects, *self.decode(objects.what)


class FixedScaleNorm(nn.Module):
    """Batch normalisation with a scale that is not learned (Zhu et al. 2020, BN-VAE), of [n, cells, 4] means.

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


def positive(raw: Tensor) -> Tensor:
    """A standard deviation from a network's output: softplus of the output clamped to -10..10, as published."""
    return F.softplus(raw.clamp(-10, 10))


def bernoulli_kl(chance: Tensor, log_prior: Tensor | float, log_absent: Tensor | float) -> Tensor:
    """KL(Bernoulli(chance) || Bernoulli(prior)) (Eq. 6), element by element, given log(prior) and log(1 - prior)."""
    yes = chance * ((chance + EPS).log() - log_prior)
    no = (1 - chance) * ((1 - chance + EPS).log() - log_absent)
    return yes + no
