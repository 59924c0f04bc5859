"""GMAIR (Zhu, Shen, Yu, Aguirre Sanchez 2021, arXiv 2106.01722), top-down: detector, latents, loss.

Equations, sections and tables are those of the paper. Where the paper and its published code disagree, this follows
the code, because the code is what was trained: presence is its probability, never a sample (`presence`); the overlap
is summed over pixels, not averaged (`overlap_mean`); the encoders are three layers of 512 (`encoder_widths`); where
means pass through a batch normalisation of fixed scale (`where_norm`); ReLU comes before group normalisation in the
decoder.

Short trainings differ from both, see `config.SETTINGS`. Above all the mixture is started there once from what the
encoder knows at that step (`mixture_start`, see `mixture.py`), and the renderer multiplies colour, alpha and importance
before it interpolates, not after (`renderer`, see `render.py`), which is faster.
"""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objbench.clusterer import Clusterer, ObjectShape, installed
from objbench.detector import MIN_SCORE, PRESENT, Detections, Detector, other_parameters
from objbench.errors import UsageError
from objbench.latents import (
    binary_cross_entropy,
    categorical_kl,
    gumbel_softmax,
    normal_kl,
    normal_sample,
    relaxed_bernoulli,
)
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench.spatial import (
    boxes_around,
    candidate_cells,
    clamp_boxes,
    crop,
    take_cells,
    top_cells,
    trim_boxes,
)
from objbench_plugins.gmair import losses, mixture, networks
from objbench_plugins.gmair.config import SETTINGS, GmairConfig
from objbench_plugins.gmair.render import render, render_published


class GridCells(NamedTuple):
    """q(presence), q(where) and q(depth) of all grid cells, cells = rows x columns, numbered row by row."""

    presence_logit: Tensor  # [n, cells]
    presence_prob: Tensor  # [n, cells] its sigmoid
    where_mean: Tensor  # [n, cells, 4] logits: centre x, centre y, width, height
    where_std: Tensor  # [n, cells, 4]
    depth_mean: Tensor  # [n, cells]
    depth_std: Tensor  # [n, cells]


class Objects(NamedTuple):
    """The samples (or modes) of the k chosen cells of each image, with q(cat) and q(what)."""

    presence: Tensor  # [n, k] in 0..1
    boxes: Tensor  # [n, k, 4] xyxy in pixels
    depth: Tensor  # [n, k]
    cat_logits: Tensor  # [n, k, C]
    cat: Tensor  # [n, k, C] on the simplex
    what_mean: Tensor  # [n, k, A]
    what_std: Tensor  # [n, k, A]
    what: Tensor  # [n, k, A]


class WhatPrior(enum.Enum):
    """What p(what | cat) is at a step."""

    STANDARD = "a standard normal, before `mixture_start`"
    DETACHED = "the mixture, without gradient, until `detach_steps`"
    LEARNED = "the mixture"


class Phase(NamedTuple):
    """What differs between training steps, apart from annealed numbers."""

    warmup: bool  # only `warmup_images` images of the batch are used
    gated: bool  # only the `gate_cells` cells of highest presence are encoded, decoded and painted
    overlapping: bool  # the overlap loss lasts
    what_prior: WhatPrior
    held: bool  # the cat-encoder learns what the clusterer says, not from the ELBO


class Gmair(Detector):
    """Gaussian Mixture Attend, Infer, Repeat: each grid cell has presence, where, depth, cat and what."""

    Config = GmairConfig
    config: GmairConfig
    capturable = True
    fast_products = True

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    @classmethod
    def uses(cls, config: GmairConfig) -> tuple[str, ...]:
        """The clusterer that starts the mixture, unless that is `gmm`."""
        return (config.start_with,) if config.runs_clusterer else ()

    def __init__(self, config: GmairConfig, shape: SceneShape) -> None:
        """`shape`: any number of channels. UsageError unless the backbone can do its height and width, and when
        there is no clusterer named `start_with`."""
        super().__init__(config, shape)
        c = config
        for backbone, multiple in networks.MULTIPLES.items():
            if c.backbone == backbone and (shape.height % multiple or shape.width % multiple):
                others = [
                    f"{b} needs multiples of {m}" for b, m in networks.MULTIPLES.items() if b != backbone
                ]
                raise UsageError(
                    f"gmair.backbone={backbone} needs image sides that are multiples of {multiple}, but images are "
                    f"{shape.height}x{shape.width} ({', '.join(others)})"
                )
        if c.backbone == "resnet18" and shape[1:] == (32, 32) and c.batch_size == 1:
            raise UsageError(
                "gmair.backbone=resnet18 with gmair.batch_size=1 needs images larger than 32x32: batch normalisation "
                "cannot use the one value that each feature has there; take a batch of 2 or more"
            )
        self.grid = (shape.height // networks.STRIDE, shape.width // networks.STRIDE)
        self.cells = self.grid[0] * self.grid[1]
        if c.backbone == "resnet18":
            self.backbone, features = networks.resnet_backbone(shape.channels), 64
        else:
            self.backbone = networks.small_backbone(shape.channels, c.backbone_width)
            features = 4 * c.backbone_width
        self.backbone.to(memory_format=torch.channels_last)  # faster on a CPU
        self.presence_head = networks.head(features, c.head_width, c.head_layers, 1)
        self.depth_head = networks.head(features, c.head_width, c.head_layers, 2)
        self.where_head = networks.head(features, c.head_width, c.head_layers, 8)
        self.where_norm = networks.FixedScaleNorm(self.cells * 4, c.where_norm) if c.where_norm else None
        pixels = shape.channels * c.glimpse**2
        self.cat_encoder = networks.encoder(pixels, c.widths(), c.clusters)
        self.what_encoder = networks.encoder(pixels + c.clusters, c.widths(), 2 * c.what_dim)
        painted = shape.channels + 1  # colour and alpha
        self.decoder: nn.Module
        if c.decoder == "conv":
            self.decoder = networks.ConvDecoder(c.what_dim, painted)
        else:
            self.decoder = networks.MlpDecoder(c.what_dim, c.decoder_width, painted, c.glimpse)
        # The "what priors" of section 2.1: mean and deviation of the mixture's components (Eq. 2).
        self.prior_mean = nn.Linear(c.clusters, c.what_dim)
        self.prior_std = nn.Linear(c.clusters, c.what_dim)
        self.start_objects: Tensor  # how many objects the start of the mixture was given; -1 before
        self.register_buffer("start_objects", torch.tensor(-1))
        self.clusterer: Clusterer | None = None
        if c.runs_clusterer:  # fitted once, at the start of the mixture
            kind = installed(c.start_with)
            own = kind.Config(clusters=c.clusters)
            cut = kind.cut(own)
            self.clusterer = kind(own, ObjectShape(shape.channels, cut.size if cut else 0, c.what_dim))
            self.clusterer.requires_grad_(False)
            self.capturable = not c.hold_clusters  # a clusterer may do anything
        self._watch: dict[str, Tensor] = {}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam, with a learning rate of its own for encoders and decoder, as published."""
        own = (self.cat_encoder, self.what_encoder, self.decoder)
        what = [p for module in own for p in module.parameters()]
        fixed = [] if self.clusterer is None else list(self.clusterer.parameters())
        rest = other_parameters(self, [*what, *fixed])
        groups = [{"params": rest, "lr": self.config.lr}, {"params": what, "lr": self.config.lr_what}]
        return [torch.optim.Adam(groups, fused=True)]

    # Training

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The weighted terms of Eq. 11, each summed over cells or pixels and averaged over the batch."""
        c, now, prior = self.config, self.phase(step), self.annealed(step)
        if now.warmup:
            images = images[: c.warmup_images]

        # A sample of q(z | x) (Eq. 3) of the chosen cells, and the image that p(x | z) expects
        cells = self.infer_cells(images)
        chosen = top_cells(cells.presence_prob, c.gate_cells if now.gated else 0)  # [n, k]
        objects = self.infer_objects(images, cells, chosen, sample=True, held=now.held)
        image, overlap = self.render(objects, now.overlapping)  # [n, channels, h, w], [n]
        what_prior_mean, what_prior_std = self.what_prior(objects.cat, now.what_prior)  # [n, k, A]

        # q(presence = 1 | x), which weights the other KLs: [n, cells], and [n, k] of the chosen cells
        prob = cells.presence_prob
        chosen_prob = take_cells(prob, chosen)

        # [n, channels, h, w]
        recon = binary_cross_entropy(image, images)
        # [n, cells]
        kl_pres = losses.presence_kl(prob, **prior)
        kl_where = normal_kl(cells.where_mean, cells.where_std).sum(2)
        kl_depth = normal_kl(cells.depth_mean, cells.depth_std)
        # [n, k]
        kl_cat = categorical_kl(objects.cat_logits.detach() if now.held else objects.cat_logits)
        kl_what = normal_kl(objects.what_mean, objects.what_std, what_prior_mean, what_prior_std).sum(2)

        # [n]
        terms = {
            "recon": c.recon * recon.sum((1, 2, 3)),  # Eq. 4, first term
            "pres": c.pres * kl_pres.sum(1),  # Eq. 6
            "where": c.where * (prob * kl_where).sum(1),  # Eq. 7
            "depth": c.depth * (prob * kl_depth).sum(1),  # Eq. 8
            "cat": c.cat * (chosen_prob * kl_cat).sum(1),  # Eq. 9
            "what": c.what * (chosen_prob * kl_what).sum(1),  # Eq. 10
        }
        if now.overlapping:  # section 2.3, "Overlap Loss"
            pixels = self.shape.height * self.shape.width
            terms["overlap"] = c.overlap * (overlap / pixels if c.overlap_mean else overlap)
        if now.held:
            terms["hold"] = mixture.hold_loss(self, images, objects, chosen_prob)
        self._watch = {
            "presence": prob.detach(),
            "chosen": chosen_prob.detach(),
            "cat": objects.cat_logits.detach(),
        }
        return {name: term.mean() for name, term in terms.items()}

    def phase(self, step: int) -> Phase:
        """What is switched on or off at this step."""
        c = self.config
        what_prior = WhatPrior.DETACHED if step < c.detach_steps else WhatPrior.LEARNED
        return Phase(
            warmup=step < c.gate_step and c.warmup_images > 0,
            gated=0 < c.gate_cells < self.cells and step >= c.gate_step,
            overlapping=c.overlap > 0 and step < c.overlap_steps,
            what_prior=WhatPrior.STANDARD if step < c.mixture_start else what_prior,
            held=c.hold_clusters and step >= c.mixture_start and mixture.was_started(self),
        )

    def schedule(self, step: int) -> dict[str, float]:
        """`log_prior` and `log_absent`: logarithms of the prior of presence and of absence."""
        return losses.log_presence_prior(step, self.config.prior_decay, self.config.prior_floor)

    def watch(self) -> dict[str, float]:
        """Objects an image, and how evenly clusters are used: entropy / log C, from 0 (one cluster) to 1 (evenly)."""
        if not self._watch:
            return {}
        chosen, cat = self._watch["chosen"], self._watch["cat"].softmax(-1)
        usage = (chosen[..., None] * cat).sum((0, 1)) / chosen.sum().clamp(min=1e-9)
        entropy = -(usage * usage.clamp(min=1e-9).log()).sum() / max(math.log(self.config.clusters), 1e-9)
        objects = (self._watch["presence"] >= PRESENT).float().sum(1).mean()
        return {"objects": float(objects), "cluster_usage": float(entropy)}

    def milestones(self) -> tuple[int, ...]:
        """The step at which the mixture is started."""
        return (self.config.mixture_start,) if self.config.mixture_start else ()

    def at_milestone(self, images: Tensor, step: int) -> None:
        """Starts the mixture, see `mixture.py`."""
        mixture.start_mixture(self, images)

    def warnings(self) -> list[str]:
        """Says when the mixture was to be started and was not."""
        c, found, needed = self.config, int(self.start_objects), mixture.objects_needed(self.config.clusters)
        if not c.mixture_start or found >= needed:
            return []
        if found < 0:
            return [
                f"the mixture was not started: mixture_start={c.mixture_start} is not below steps={c.steps}, so the "
                "prior of what-latents was a standard normal and nothing trained the mixture"
            ]
        return [
            f"the mixture was not started at step {c.mixture_start}: {found} objects were present, and {c.clusters} "
            f"clusters need {needed}; it trained on from its random first weights"
        ]

    # Inference (Eq. 3)

    def infer_cells(self, images: Tensor) -> GridCells:
        """q(presence | x), q(where | x) and q(depth | x) of every cell, from images [n, channels, height, width]."""
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))
        heads = (self.presence_head, self.depth_head, self.where_head)
        said = networks.run_heads(heads, features)  # [n, cells, 1 + 2 + 8]
        logit, depth_mean, depth_raw, where_mean, where_raw = said.split([1, 1, 1, 4, 4], -1)
        if self.where_norm is not None:
            where_mean = self.where_norm(where_mean)
        logit = self.limited(logit[..., 0] + self.config.presence_bias)
        return GridCells(
            presence_logit=logit,
            presence_prob=torch.sigmoid(logit),
            where_mean=self.limited(where_mean),
            where_std=self.deviation(where_raw),
            depth_mean=self.limited(depth_mean[..., 0]),
            depth_std=self.deviation(depth_raw[..., 0]),
        )

    def limited(self, raw: Tensor) -> Tensor:
        """`raw` in -10..10 if the options ask for that (`clamp`)."""
        return raw.clamp(-10, 10) if self.config.clamp else raw

    def deviation(self, raw: Tensor) -> Tensor:
        """A standard deviation from what a network says: its softplus."""
        return F.softplus(self.limited(raw))

    def infer_objects(
        self, images: Tensor, cells: GridCells, chosen: Tensor, sample: bool, held: bool = False
    ) -> Objects:
        """The objects of the cells `chosen` [n, k]: q(cat | x, where), then q(what | x, where, cat).

        Without `sample`, every latent is its mode (Appendix B.3). held: cat has no gradient.
        """
        c = self.config
        # z ~ q(where), q(depth), q(presence)
        where = normal_sample(cells.where_mean, cells.where_std, sample)  # [n, cells, 4]
        depth = normal_sample(cells.depth_mean, cells.depth_std, sample)  # [n, cells]
        presence = self.sample_presence(cells.presence_prob) if sample else cells.presence_prob  # [n, cells]
        boxes = take_cells(self.boxes(where), chosen)  # [n, k, 4]
        # z ~ q(cat | x, where), from each box's glimpse
        glimpses = self.glimpses(images, boxes)  # [n, k, channels * g * g]
        cat_logits = self.cat_encoder(glimpses)  # [n, k, C]
        logits = cat_logits.detach() if held else cat_logits
        cat = gumbel_softmax(logits, c.temperature) if sample else logits.softmax(-1)
        # z ~ q(what | x, where, cat), from glimpse and cat
        what_mean, what_raw = self.what_encoder(torch.cat([glimpses, cat], -1)).chunk(2, -1)  # [n, k, A]
        what_std = self.deviation(what_raw)
        what = normal_sample(what_mean, what_std, sample)
        return Objects(
            presence=take_cells(presence, chosen),
            boxes=boxes,
            depth=take_cells(depth, chosen),
            cat_logits=cat_logits,
            cat=cat,
            what_mean=what_mean,
            what_std=what_std,
            what=what,
        )

    def glimpses(self, images: Tensor, boxes: Tensor) -> Tensor:
        """What boxes [n, k, 4] show of images [n, channels, height, width]: [n, k, channels * g * g]."""
        return crop(images, boxes, self.config.glimpse, self.config.glimpse_outside).flatten(2)

    def infer_modes(self, images: Tensor) -> Objects:
        """The objects of all cells that can be detections, every latent at its mode (Appendix B.3)."""
        cells = self.infer_cells(images)
        chosen = candidate_cells(cells.presence_prob, MIN_SCORE)
        return self.infer_objects(images, cells, chosen, sample=False)

    def boxes(self, where: Tensor) -> Tensor:
        """The boxes of where-latents [n, cells, 4]: centres inside the own cell, sides up to `base_box`."""
        centre, size = torch.sigmoid(where.clamp(-10, 10)).chunk(2, -1)
        return boxes_around(centre, size * self.config.base_box, self.grid, self.shape[1:])

    def sample_presence(self, prob: Tensor) -> Tensor:
        """The presence that training paints with: its probability, or a sample of the relaxed Bernoulli (App. A)."""
        if self.config.presence == "mean":
            return prob
        return relaxed_bernoulli(torch.logit(prob, eps=1e-6), self.config.temperature)

    # Generation (Eq. 2 and section 2.2)

    def what_prior(self, cat: Tensor, kind: WhatPrior) -> tuple[Tensor, Tensor]:
        """Mean and deviation of p(what | cat), [n, k, A] each, of cat [n, k, C] (Eq. 2)."""
        mean, std = self.prior_mean(cat), self.deviation(self.prior_std(cat))
        if kind is WhatPrior.STANDARD:
            return torch.zeros_like(mean), torch.ones_like(std)
        return (mean, std) if kind is WhatPrior.LEARNED else (mean.detach(), std.detach())

    def decode(self, what: Tensor) -> tuple[Tensor, Tensor]:
        """Glimpses of what-latents [n, k, A]: colour [n, k, channels, g, g] and alpha [n, k, 1, g, g], in 0..1."""
        n, k, a = what.shape
        logits = self.decoder(what.reshape(n * k, a)).unflatten(0, (n, k))
        colour = torch.sigmoid((logits[:, :, :-1] + self.config.colour_bias).clamp(-10, 10))
        alpha = torch.sigmoid((logits[:, :, -1:] + self.config.alpha_bias).clamp(-10, 10))
        return colour, alpha

    def render(self, objects: Objects, with_overlap: bool = False) -> tuple[Tensor, Tensor | None]:
        """The image that p(x | z) expects, and if asked for the overlap of its objects; see `render.py`."""
        painted = (objects.boxes, objects.presence, objects.depth, *self.decode(objects.what))
        if self.config.renderer == "published":
            return render_published(*painted, self.shape[1:], self.config.base_box, with_overlap)
        return render(*painted, self.shape[1:], with_overlap)

    # Detection (Appendix B.3)

    def detect(self, images: Tensor) -> Detections:
        """Boxes of the cells with a presence of at least MIN_SCORE, cut to what is bright in their decoded glimpses."""
        objects = self.infer_modes(images)
        boxes = self.cut_boxes(objects.boxes, objects.presence, objects.what)
        return Detections.from_padded(boxes, objects.presence, objects.cat_logits.argmax(-1), objects.what)

    def cut_boxes(self, boxes: Tensor, presence: Tensor, what: Tensor) -> Tensor:
        """The boxes [n, k, 4] of objects, cut to what is bright in their decoded glimpses, and to the image."""
        if self.config.trim:
            colour, alpha = self.decode(what)
            brightness = colour.mean(2) * alpha[:, :, 0] * presence[..., None, None]
            boxes = trim_boxes(boxes, brightness, self.config.trim, self.config.trim_edges)
        return clamp_boxes(boxes, self.shape[1:])

    def reconstruct(self, images: Tensor) -> Tensor:
        """The rendered image [n, channels, height, width], every latent at its mode."""
        return self.render(self.infer_modes(images))[0]
