"""AIR (Eslami et al. 2016, "Attend, Infer, Repeat: Fast Scene Understanding with Generative Models"), top-down.

A recurrent network looks at the image and, in each of N steps, says whether there is one object more, where it is and,
from the glimpse there, what it is. Shapes: n images, C channels, N steps, A values of a what-latent, g pixels of a
glimpse's side.

    p(x, z) = Normal(x; sum over objects of their pictures, sigma^2) p(count) product of p(where_i) p(what_i)  (Eq. 1)
    q(z | x) = product over i of q(pres_i, where_i, what_i | x, z_<i), until pres_i = 0                       (Eq. 4)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from objbench.detector import PRESENT, Detections, Detector, other_parameters
from objbench.latents import bernoulli_kl, normal_kl, normal_sample, positive, relaxed_bernoulli
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench.spatial import clamp_boxes, crop, paint, trim_boxes
from objbench_plugins.air import losses, networks
from objbench_plugins.air.config import SETTINGS, AirConfig
from objbench_plugins.spair.networks import perceptron

LIMIT = 8.0
"""Where-latents and logits of presence are cut to -LIMIT..LIMIT before they become shares: a box is never empty."""


class Step(NamedTuple):
    """One step for each image, or all steps stacked: then [n, N, ...] where it says [n, ...]."""

    presence_logit: Tensor  # [n]
    asked: Tensor  # [n] presence of all steps before this one, multiplied
    chosen: Tensor  # [n] presence in this step: 0 or 1, or in 0..1 where it is relaxed
    where_mean: Tensor  # [n, 3] scale, x, y
    where_std: Tensor  # [n, 3]
    boxes: Tensor  # [n, 4] xyxy in pixels
    what_mean: Tensor  # [n, A]
    what_std: Tensor  # [n, A]
    what: Tensor  # [n, A]
    glimpses: Tensor  # [n, C, g, g] decoded, in 0..1
    baseline: Tensor  # [n] what the baseline network expects of the cost; 0 without

    @property
    def presence(self) -> Tensor:
        """Whether there is this object: presence of all steps up to and with this one, multiplied."""
        return self.asked * self.chosen


class Air(Detector):
    """Boxes are those of the steps' where-latents; the what-latent is that of the step."""

    Config = AirConfig
    config: AirConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: AirConfig, shape: SceneShape) -> None:
        super().__init__(config, shape)
        c = config
        image = (shape.height, shape.width)
        pixels = shape.channels * c.glimpse**2
        self.encoder: nn.Module = nn.Flatten()
        features = shape.channels * shape.height * shape.width
        if c.encoder == "convolutions":
            self.encoder, features = networks.ImageEncoder(shape.channels, image, c.hidden), c.hidden
        before = 3 + c.what_dim + 1  # where, what, presence of the step before
        self.cell = nn.LSTMCell(features + before, c.hidden)
        self.head = nn.Linear(c.hidden, 1 + 3 + 3)  # presence, mean and deviation of where
        self.scale_prior = math.log(c.scale_prior / (1 - c.scale_prior))
        with torch.no_grad():  # objects start with sides from the prior, in the middle
            self.head.weight[1:] *= 0.1
            self.head.bias[1:] = 0
            self.head.bias[1] = self.scale_prior
            self.head.bias[4:] = math.log(math.expm1(c.where_std))
        self.what_encoder = perceptron(pixels, c.widths(), 2 * c.what_dim)
        self.decoder = perceptron(c.what_dim, c.widths()[::-1], pixels)
        self.baseline: networks.Baseline | None = None
        if c.estimator == "nvil":
            self.baseline = networks.Baseline(features + before, c.hidden)
        self._watch: Tensor | None = None

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One for the model, and with NVIL one for the baseline, of a higher rate."""
        c = self.config
        baseline = [] if self.baseline is None else list(self.baseline.parameters())
        parts = [(other_parameters(self, baseline), c.lr), (baseline, c.baseline_lr)]
        if c.optimizer == "adam":
            return [torch.optim.Adam(some, lr=lr, fused=True) for some, lr in parts if some]
        return [torch.optim.RMSprop(some, lr=lr, momentum=0.9, foreach=True) for some, lr in parts if some]

    # Training

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The negative ELBO (Eq. 5), each term a mean over the batch; with NVIL also the two terms of its gradient."""
        c, prior = self.config, self.annealed(step)
        found, canvas = self.infer(images, sample=True)

        # -log p(x | z), without its constant: [n]
        recon = (images - canvas).square().sum((1, 2, 3)) / (2 * c.sigma**2)
        # KL(q || p) [n, N]: of presence where the step was reached, of where and what where the object is present. The
        # geometric prior is N independent choices of one object more, up to the first that is not made.
        kl_presence = found.asked * bernoulli_kl(found.presence_logit, prior["log_more"], prior["log_stop"])
        scale, shift = found.where_mean.split([1, 2], 2), found.where_std.split([1, 2], 2)
        kl_where = normal_kl(scale[0], shift[0], self.scale_prior, c.scale_prior_std).sum(2)
        kl_where = found.presence * (kl_where + normal_kl(scale[1], shift[1]).sum(2))
        kl_what = found.presence * normal_kl(found.what_mean, found.what_std).sum(2)
        terms = {
            "recon": recon,
            "presence": kl_presence.sum(1),
            "where": kl_where.sum(1),
            "what": kl_what.sum(1),
        }
        if self.baseline is not None:
            cost = losses.downstream(recon, kl_where + kl_what, kl_presence).detach()  # [n, N]
            terms["score"] = losses.score_function(
                cost, found.baseline, found.presence_logit, found.chosen, found.asked
            )
            terms["baseline"] = (found.asked * (cost - found.baseline).square()).sum(1)
        self._watch = found.presence.detach()
        return {name: term.mean() for name, term in terms.items()}

    def schedule(self, step: int) -> dict[str, float]:
        """`log_more`, `log_stop`: logarithms of the prior's probabilities of one object more, and of no more."""
        c = self.config
        log_odds = losses.count_log_odds(step, c.count_start, c.count_end, c.count_steps)
        return {"log_more": losses.log_sigmoid(log_odds), "log_stop": losses.log_sigmoid(-log_odds)}

    def watch(self) -> dict[str, float]:
        """Objects an image."""
        if self._watch is None:
            return {}
        return {"objects": float((self._watch >= PRESENT).float().sum(1).mean())}

    # Inference

    def infer(self, images: Tensor, sample: bool) -> tuple[Step, Tensor]:
        """All steps, and what they paint [n, C, height, width]. Without `sample`, the mode of every latent."""
        n = len(images)
        canvas, asked = torch.zeros_like(images), images.new_ones(n)
        state = baseline_state = (images.new_zeros(n, self.config.hidden),) * 2
        latents = images.new_zeros(n, 3 + self.config.what_dim + 1)
        features = self.encoder(images)
        steps: list[Step] = []
        for i in range(self.config.objects):
            if i and self.config.look == "difference":
                features = self.encoder(images - canvas.detach())
            inputs = torch.cat([features, latents], 1)
            state = self.cell(inputs, state)
            baseline = torch.zeros_like(asked)
            if self.baseline is not None:
                baseline, baseline_state = self.baseline(inputs.detach(), baseline_state)
            step, where = self.infer_step(images, state[0], asked, baseline, sample)
            steps.append(step)
            asked = step.presence
            shown = step.glimpses * asked[:, None, None, None]
            canvas = canvas + paint(shown[:, None], step.boxes[:, None], *self.shape[1:])
            latents = torch.cat([where, step.what, asked[:, None]], 1)
        return Step(*(torch.stack(part, 1) for part in zip(*steps, strict=True))), canvas

    def infer_step(
        self, images: Tensor, hidden: Tensor, asked: Tensor, baseline: Tensor, sample: bool
    ) -> tuple[Step, Tensor]:
        """One step from the recurrent network's output [n, hidden], and its where-latent [n, 3]."""
        c = self.config
        raw = self.head(hidden)
        logit = (raw[:, 0] + c.presence_bias).clamp(-LIMIT, LIMIT)
        # pres ~ q(pres | x, z_<i): [n]
        if not sample:
            chosen = (logit >= 0).float()
        elif c.estimator == "relaxed":
            chosen = relaxed_bernoulli(logit, c.temperature)
        else:
            chosen = torch.bernoulli(torch.sigmoid(logit)).detach()
        # where ~ q(where | x, z_<i), and its box
        mean, std = raw[:, 1:4], positive(raw[:, 4:])
        where = normal_sample(mean, std, sample)  # [n, 3]
        boxes = self.boxes(where)
        # what ~ q(what | x, where), from the glimpse
        glimpses = crop(images, boxes[:, None], c.glimpse).flatten(1)
        what_mean, what_raw = self.what_encoder(glimpses).chunk(2, 1)
        what_std = positive(what_raw)
        what = normal_sample(what_mean, what_std, sample)  # [n, A]
        decoded = torch.sigmoid(self.decoder(what) + c.colour_bias)
        decoded = decoded.unflatten(1, (self.shape.channels, c.glimpse, c.glimpse))
        step = Step(
            logit, asked, chosen, mean, std, boxes, what_mean, what_std, what, decoded, baseline
        )  # fmt: skip
        return step, where

    def boxes(self, where: Tensor) -> Tensor:
        """Boxes [n, 4] of where-latents [n, 3]: sides sigmoid(scale) of the image's, centres in the image."""
        where = where.clamp(-LIMIT, LIMIT)
        height, width = self.shape[1:]
        side = torch.sigmoid(where[:, :1])
        centre = 0.5 + 0.5 * torch.tanh(where[:, 1:])
        corners = torch.cat([centre - side / 2, centre + side / 2], 1)  # in image sides
        return corners * corners.new_tensor([width, height, width, height])

    # Detection: the mode of every latent

    def detect(self, images: Tensor) -> Detections:
        """Boxes of all steps, cut to what is bright in their decoded glimpses.

        The score is the probability that there is this object: of its step, and of all before it.
        """
        found, _ = self.infer(images, sample=False)
        boxes = found.boxes
        if self.config.trim:
            boxes = trim_boxes(boxes, found.glimpses.mean(2), self.config.trim, self.config.trim_edges)
        scores = found.presence_logit.sigmoid().cumprod(1)
        return Detections.from_padded(clamp_boxes(boxes, self.shape[1:]), scores, what=found.what)

    def reconstruct(self, images: Tensor) -> Tensor:
        """What the objects that are present paint, [n, C, height, width]."""
        return self.infer(images, sample=False)[1].clamp(0, 1)
