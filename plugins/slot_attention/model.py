"""Slot Attention for object discovery (Locatello et al. 2020, "Object-Centric Learning with Slot Attention"), top-down.

An image becomes features, for which K slots compete; each slot is decoded to colours and a mask, and the masks mix the
colours to the image. Shapes: n images, K slots, D values of a slot, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from objbench.detector import Detections, Detector
from objbench.masks import from_masks
from objbench.options import settings_for
from objbench.scenes import SceneShape
from objbench_plugins.slot_attention import networks
from objbench_plugins.slot_attention.attention import SlotAttention
from objbench_plugins.slot_attention.config import SETTINGS, SlotAttentionConfig
from objbench_plugins.slot_attention.networks import Decoder, Encoder, Frame
from objbench_plugins.slot_attention.rates import WarmedAdam

PLACES = 5.0
"""What the decoder's map of positions is multiplied by at the start, so that they count as much as slots do."""


class Seen(NamedTuple):
    """What the model makes of images."""

    slots: Tensor  # [n, K, D]
    colours: Tensor  # [n, K, C, h, w] in about -1..1
    masks: Tensor  # [n, K, h, w], the sum over slots is 1
    attention: Tensor  # [n, K, rows, columns] of the encoder's features, the sum over slots is 1

    @property
    def picture(self) -> Tensor:
        """The mixture of the slots' colours, [n, C, h, w] in about -1..1."""
        return (self.colours * self.masks[:, :, None]).sum(1)


class SlotAttentionDetector(Detector):
    """A segment is the set of pixels at which a slot's mask or attention is the largest; the what-latent is the slot.

    Slots start at random places. In detection these are the same for each image, and kept with the weights.
    """

    Config = SlotAttentionConfig
    config: SlotAttentionConfig
    noise: Tensor

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        """See `config.SETTINGS`."""
        return settings_for(SETTINGS, protocol, data)

    def __init__(self, config: SlotAttentionConfig, shape: SceneShape) -> None:
        super().__init__(config, shape)
        c, side = config, (shape.height, shape.width)
        self.encoder = Encoder(shape.channels, side, c.width, c.halvings)
        self.attention = SlotAttention(c.width, c.slot_size, c.hidden, c.iterations, c.seeds)
        self.decoder = Decoder(c.slot_size, shape.channels, side, c.width, c.grid, c.coarse, c.even)
        networks.started(self)
        if c.start == "k-means":
            networks.pass_colours(self.encoder, shape.channels)
            self.attention.start_as_k_means(c.sharpness)
            if c.frame == "image":
                with torch.no_grad():
                    self.decoder.position.map.weight *= PLACES
        self.register_buffer("noise", torch.randn(1, c.slots, c.slot_size))  # of detection

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The mean squared error of the picture, of values in -1..1 (Section 3.1)."""
        noise = torch.randn(len(images), *self.noise.shape[1:], device=images.device)
        seen = self.see(images, noise)
        return {"image": (seen.picture - scaled(images)).square().mean()}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam with a warm-up and a falling rate."""
        c = self.config
        return [WarmedAdam(self.parameters(), lr=c.lr, warmup=c.warmup, half_life=c.half_life)]

    def see(self, images: Tensor, noise: Tensor) -> Seen:
        """images: [n, C, h, w] in 0..1. noise: [n, K, D] standard normal."""
        slots, attention = self.attention(self.encoder(scaled(images)), noise)
        frame = None
        if self.config.frame == "slot":
            positions = self.encoder.position.grid[..., :2].flatten(0, 1)  # [N, 2] y, x in 0..1
            frame = Frame(*(part.flatten(0, 1) for part in networks.frame_of(attention, positions)))
        painted = self.decoder(slots.flatten(0, 1), frame).unflatten(
            0, slots.shape[:2]
        )  # [n, K, C + 1, h, w]
        shares = attention.mT.unflatten(2, self.encoder.position.grid.shape[:2])
        return Seen(slots, painted[:, :, :-1], painted[:, :, -1].softmax(1), shares)

    def detect(self, images: Tensor) -> Detections:
        """One detection a segment. Its score is (1 + its mean mask) / 2: every segment is present."""
        seen = self.see(images, self.noise.expand(len(images), -1, -1))
        masks = seen.masks
        if self.config.segments == "attention":
            masks = F.interpolate(seen.attention, self.shape[1:], mode="bilinear", align_corners=False)
        segments = torch.zeros_like(masks, dtype=torch.bool).scatter_(1, masks.argmax(1, keepdim=True), True)
        pixels = segments.sum((2, 3))  # [n, K]
        scores = 0.5 + 0.5 * (masks * segments).sum((2, 3)) / pixels.clamp(min=1)
        if self.config.background == "border":
            scores = scores.scatter(1, at_border(segments).argmax(1, keepdim=True), 0.0)
        return from_masks(segments, scores.clamp(0, 1), what=seen.slots)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The mixture of all slots."""
        seen = self.see(images, self.noise.expand(len(images), -1, -1))
        return ((seen.picture + 1) / 2).clamp(0, 1)


def scaled(images: Tensor) -> Tensor:
    """0..1 to -1..1."""
    return 2 * images - 1


def at_border(segments: Tensor) -> Tensor:
    """How many pixels at the image's border each segment [n, K, h, w] has, [n, K]; a corner counts twice."""
    return segments[..., [0, -1], :].sum((2, 3)) + segments[..., [0, -1]].sum((2, 3))
