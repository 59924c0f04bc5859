"""The options of SPAIR, and their values for each protocol and data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from objbench.detector import DetectorConfig
from objbench.options import Settings, option, widths


@dataclass(frozen=True)
class SpairConfig(DetectorConfig):
    """Defaults are those of the original code (auto_yolo, branch aaai_2019) but for two changes.

    The changes are those of GMAIR's comparison (its Appendix B.1): A = 256, originally 50, and anchor 72, originally
    48. That comparison ran the PyTorch port (SPAIR_pytorch), whose defaults are others: `ModelSpec.differs` lists them.
    """

    steps: int = option(300_000, "training steps (batches)", low=1)
    batch_size: int = option(32, "images a step", low=1)
    clip_norm: float = option(1.0, "clip gradients to this norm; 0 does not clip", low=0)

    # Architecture
    what_dim: int = option(256, "dimension A of the what-latent", low=1)
    anchor: float = option(72.0, "largest box side in pixels", above=0)
    stride: int = option(12, "pixels of a cell's side; a multiple of 4", low=4)
    glimpse: int = option(14, "side of a glimpse in pixels", low=4)
    backbone_width: int = option(128, "channels of the backbone's layers", low=1)
    features: int = option(100, "backbone features of a cell", low=1)
    carry: int = option(100, "features carried from box to depth to presence network", low=1)
    hidden: int = option(100, "width of the two hidden layers of box, depth and presence network", low=1)
    encoder_widths: str = option("512-256", "hidden widths of the what-encoder; reversed, the decoder's")

    # Latents
    size_prior: float = option(0.1, "box side that the prior expects, in anchors", above=0, high=0.999)
    size_prior_std: float = option(0.5, "standard deviation of the size prior, in logits", above=0)
    temperature: float = option(1.0, "temperature of the relaxed presence", above=0)
    presence_bias: float = option(0.0, "added to presence logits: above 0, cells start present")
    colour_bias: float = option(0.0, "added to colour logits: below 0, glimpses start dark")

    # Loss and its schedules, in steps
    recon: float = option(1.0, "coefficient of the reconstruction term", low=0)
    pixel_floor: float = option(
        1e-9, "added to the probability of a pixel inside the logarithm of the reconstruction term", above=0
    )
    presence_kl: str = option(
        "clean", "probability in the presence KL: sigmoid of the logit, or of the logit with sampling noise",
        choices=["clean", "noisy"],
    )  # fmt: skip
    where_frozen_steps: int = option(
        1_000, "steps without a gradient to where, depth and presence (the original's training wheels)", low=0
    )
    count_start: float = option(1e6, "odds of the geometric prior on counts at step 0", above=0)
    count_floor: float = option(
        0.0125, "odds of the prior on counts at the end; at most count_start", above=0
    )
    count_decay_steps: float = option(1_000, "steps in which the odds fall to a tenth", above=0)

    # Presence gating: decode and paint only the cells of highest presence
    gate_cells: int = option(0, "cells kept in each image once gating starts; 0 keeps all", low=0)
    gate_step: int = option(0, "step at which gating starts", low=0)
    warmup_images: int = option(0, "images of each batch used before gating starts; 0 uses all", low=0)

    # Detection
    trim: float = option(
        0.2, "cut boxes to decoded glimpse pixels at least this bright, as GMAIR does; 0 does not cut", low=0
    )
    trim_edges: str = option(
        "glimpse",
        "where a cut box ends: between pixels of its glimpse (published), where the brightness crosses `trim`, or "
        "there rounded to pixels of the image",
        choices=["glimpse", "crossing", "pixels"],
    )
    trim_hidden: bool = option(
        False, "cut boxes also to where the object, not one in front of it or beside it, makes the picture"
    )

    def __post_init__(self) -> None:
        self.widths()
        if self.stride % 4:
            raise ValueError(f"stride={self.stride} is not a multiple of 4")
        if self.count_floor > self.count_start:
            raise ValueError(
                f"count_floor={self.count_floor:g} is above count_start={self.count_start:g}, and odds only fall"
            )

    def widths(self) -> tuple[int, ...]:
        """`encoder_widths` as numbers."""
        return widths(self.encoder_widths, "encoder_widths")


SMALL: dict[str, Any] = {
    "batch_size": 32,
    "lr": 1e-3,
    "lr_end": 0.1,
    "what_dim": 32,
    "anchor": 36.0,
    "glimpse": 16,
    "backbone_width": 32,
    "encoder_widths": "256-256",
    # The prior knows the anchor alone, as GMAIR's: N(0, 1) on the logit of a side, so half of the anchor is expected.
    # With the published prior it would be a tenth of the anchor, 4 pixels: too small to cover objects.
    "size_prior": 0.5,
    "size_prior_std": 1.0,
    "presence_bias": 2.0,
    "colour_bias": -2.0,
    "recon": 3.0,
    # A bright pixel that no box covers costs 14 nats, not 21.
    "pixel_floor": 1e-6,
    # At this learning rate boxes find their objects without it.
    "where_frozen_steps": 0,
    "count_decay_steps": 40,
    # Until the prior has lowered the number of objects, all cells are decoded, but of half a batch.
    "gate_cells": 12,
    "gate_step": 100,
    "warmup_images": 16,
    "trim_edges": "crossing",
}

FRUITS: dict[str, Any] = {
    "stride": 8,
    # A box also shows the fruits that touch its own, and cut to what is bright it kept them: 14 px a side, true 10.
    "trim_hidden": True,
    "gate_cells": 36,
    # Eight images hold 120 objects, and a step of 8 costs half of a step of 32.
    "batch_size": 8,
    "warmup_images": 0,
    # Large fruits were covered with several small boxes, and twice as many objects detected as there are (AP 0.29 after
    # 1,000 steps). A lower weight of pixels, and objects that cost 23 nats each, mended that (AP 0.51; counts 1.5 off).
    "recon": 2.0,
    "count_floor": 1e-10,
    "count_decay_steps": 25,
}
"""For up to 36 touching fruits of 4 to 27 pixels on 64; chosen on validation scenes of `fruit2d-sim`."""

DIGITS: dict[str, Any] = {
    "trim": 0.25,
    # Digits are placed on whole pixels, and their true boxes hold whole pixels.
    "trim_edges": "pixels",
}

FRUIT_DATA = ("fruit2d", "fruit2d-sim")

SETTINGS: Settings = {
    ("demo", "*"): {**SMALL, "steps": 1_200},
    ("small", "*"): {**SMALL, "steps": 9_000},
    ("demo", "multimnist"): DIGITS,
    ("small", "multimnist"): DIGITS,
    # The official Fruit2D has up to 36 objects too.
    **{("demo", data): {**FRUITS, "steps": 1_700} for data in FRUIT_DATA},
    **{("small", data): FRUITS for data in FRUIT_DATA},
}
