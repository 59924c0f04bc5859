"""The options of GMAIR, and their values for each protocol and data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from objbench.detector import DetectorConfig
from objbench.options import Settings, option, widths


@dataclass(frozen=True)
class GmairConfig(DetectorConfig):
    """Defaults are the paper's (Table 7), or those of the published code where the two disagree."""

    # Architecture
    what_dim: int = option(256, "dimension A of the what-latent", low=1)
    clusters: int = option(10, "number of clusters C", low=1)
    base_box: float = option(72.0, "largest box side in pixels; boxes start at about half of it", above=0)
    glimpse: int = option(32, "side of a glimpse in pixels", low=4)
    backbone: str = option(
        "resnet18", "network that makes the grid of features", choices=["resnet18", "small"]
    )
    backbone_width: int = option(16, "first width of the small backbone; its last is four times that", low=1)
    head_width: int = option(128, "width of the presence, depth and where heads", low=1)
    head_layers: int = option(3, "3x3 convolutions in each head", low=0)
    encoder_widths: str = option(
        "512-512-512", "hidden widths of the cat- and what-encoder (the paper's Table 5 has 128-256-512)"
    )
    decoder: str = option(
        "conv", "glimpse decoder: Table 6, or a multilayer perceptron", choices=["conv", "mlp"]
    )
    decoder_width: int = option(256, "hidden width of the mlp decoder", low=1)

    renderer: str = option(
        "published",
        "published: interpolate colour, alpha and importance, then multiply; linear: the reverse, which is faster",
        choices=["published", "linear"],
    )
    glimpse_outside: str = option(
        "border",
        "what a glimpse shows outside the image: border: its outermost pixels again, as published; zeros: black",
        choices=["border", "zeros"],
    )

    # Latents
    temperature: float = option(1.0, "temperature of the Gumbel-Softmax of the cat-latent", above=0)
    presence: str = option(
        "mean", "presence used in training: its probability, as published, or a relaxed sample (App. A)",
        choices=["mean", "relaxed"],
    )  # fmt: skip
    where_norm: float = option(
        0.5,
        "scale of the batch normalisation of where means, which keeps their KL alive (BN-VAE); 0: none",
        low=0,
    )
    presence_bias: float = option(0.0, "added to presence logits: above 0, cells start present")
    colour_bias: float = option(0.0, "added to colour logits: below 0, glimpses start dark")
    alpha_bias: float = option(5.0, "added to alpha logits: above 0, glimpses start opaque")

    clamp: bool = option(
        False, "clamp to -10..10: presence logits, means of where and depth, deviations before their softplus"
    )

    # Loss (Eq. 11) and its schedules, in steps
    recon: float = option(8.0, "coefficient of the reconstruction term", low=0)
    pres: float = option(1.0, "coefficient of the presence KL", low=0)
    where: float = option(1.0, "coefficient of the where KL", low=0)
    depth: float = option(1.0, "coefficient of the depth KL", low=0)
    cat: float = option(1.0, "coefficient of the cat KL", low=0)
    what: float = option(1.0, "coefficient of the what KL", low=0)
    overlap: float = option(2.0, "coefficient of the overlap loss while it lasts", low=0)
    overlap_mean: bool = option(
        False, "average the overlap over pixels, as the paper says, not sum them, as published"
    )
    overlap_steps: int = option(5_001, "steps the overlap loss lasts", low=0)
    prior_decay: float = option(0.01, "the prior of presence falls as exp(-prior_decay step)", above=0)
    prior_floor: float = option(6e-6, "where the prior of presence stays", above=0, high=1)
    detach_steps: int = option(2_001, "steps for which the mixture prior gets no gradient", low=0)
    lr_what: float = option(1e-4, "learning rate of encoders and glimpse decoder", above=0)

    # Presence gating: encode, decode and paint only the cells of highest presence
    gate_cells: int = option(0, "cells kept in each image once gating starts; 0 keeps all", low=0)
    gate_step: int = option(0, "step at which gating starts", low=0)

    warmup_images: int = option(0, "images of each batch used before gating starts; 0 uses all", low=0)

    # A start of the mixture from the what-latents (see `mixture.py`); not in the paper
    mixture_start: int = option(
        0, "step at which the mixture is started from the what-latents; 0: never", low=0
    )

    start_with: str = option(
        "gmm",
        "what gives the mixture its first clusters: gmm, a Gaussian mixture of the what-latents, or any installed "
        "clusterer (objbench list clusterers), fitted on the objects that are present",
    )
    hold_clusters: bool = option(
        False,
        "after the start the cat-encoder learns the assignment of that clusterer alone, and nothing from the ELBO",
    )

    # Detection
    trim: float = option(
        0.2, "cut boxes to glimpse pixels at least this bright (section 4); 0 does not cut", low=0
    )
    trim_edges: str = option(
        "glimpse",
        "where a cut box ends: between pixels of its glimpse (published), where the brightness crosses `trim`, or "
        "there rounded to pixels of the image",
        choices=["glimpse", "crossing", "pixels"],
    )

    def __post_init__(self) -> None:
        self.widths()
        if self.backbone_width < 8 and self.backbone == "small" and 8 % self.backbone_width:
            raise ValueError("backbone_width below 8 must divide 8")
        if self.decoder == "conv" and self.glimpse != 32:
            raise ValueError(
                f"decoder=conv makes glimpses of 32 pixels, but glimpse={self.glimpse}; use decoder=mlp"
            )

        if self.hold_clusters and not self.runs_clusterer:
            raise ValueError(
                "hold_clusters needs a clusterer to hold to: set start_with to one (objbench list clusterers), and "
                "mixture_start above 0"
            )

    @property
    def runs_clusterer(self) -> bool:
        """Whether the mixture is started from the clusters of a clusterer."""
        return self.start_with != "gmm" and self.mixture_start > 0

    def widths(self) -> tuple[int, ...]:
        """`encoder_widths` as numbers."""
        return widths(self.encoder_widths, "encoder_widths")


SMALL: dict[str, Any] = {
    "renderer": "linear",
    "glimpse_outside": "zeros",
    "clamp": True,
    "batch_size": 16,
    "lr": 1.5e-3,
    "lr_what": 1.5e-3,
    "lr_end": 0.1,
    "clip_norm": 10.0,
    "what_dim": 32,
    "base_box": 36.0,
    "glimpse": 16,
    "backbone": "small",
    "head_width": 32,
    "head_layers": 1,
    "encoder_widths": "256-256",
    "decoder": "mlp",
    "presence": "relaxed",
    "presence_bias": 2.0,
    "colour_bias": -2.0,
    "overlap_steps": 1_000_000_000,  # to the end: digits were split in two where it stopped earlier
    "detach_steps": 0,
    "gate_cells": 8,
    "gate_step": 200,
    "warmup_images": 8,
    "trim_edges": "crossing",
}
"""For scenes of 64x64 pixels with up to 5 objects of about 14, on a CPU; chosen on validation scenes, see
results/tuning.md."""

MANY: dict[str, Any] = {
    "gate_cells": 36,
    "gate_step": 250,
    "lr": 1e-3,
    "lr_what": 1e-3,
    # Many objects in each image: more steps of fewer images. With recon=8 a large fruit was covered with several small
    # boxes, and 7 objects too many were detected in each image; with 2, a shorter training detected as well (AP 0.55)
    # with 2.6 too many.
    "batch_size": 8,
    "warmup_images": 0,
    "recon": 2.0,
}
"""For up to 36 touching fruits of 4 to 27 pixels on 64; chosen on validation scenes."""

FRUIT: dict[str, Any] = {
    "clusters": 9,
    # As published: no overlap loss on fruit, as fruits that touch are not one object in two boxes, and the mixture
    # prior learns from the second step on.
    "overlap": 0.0,
    "detach_steps": 1,
}
"""For fruit under every protocol."""

PIXELS: dict[str, Any] = {"trim_edges": "pixels"}
"""Digits are placed on whole pixels, and their true boxes hold whole pixels."""

SETTINGS: Settings = {
    ("demo", "*"): {**SMALL, "steps": 2_400, "mixture_start": 1_500},
    # Digits that overlap: with the published coefficient of 2 the overlap loss kept pairs of them in one box.
    ("small", "*"): {**SMALL, "steps": 16_000, "mixture_start": 3_000, "overlap": 1.0},
    ("demo", "multimnist"): PIXELS,
    ("small", "multimnist"): PIXELS,
    ("*", "fruit2d"): FRUIT,
    ("*", "fruit2d-sim"): FRUIT,
    ("paper", "fruit2d"): {"lr_what": 5e-5},
    ("paper", "fruit2d-sim"): {"lr_what": 5e-5},
    ("demo", "fruit2d"): MANY,
    ("demo", "fruit2d-sim"): MANY,
    ("small", "fruit2d"): {**MANY, "steps": 9_000, "mixture_start": 2_000},
    ("small", "fruit2d-sim"): {**MANY, "steps": 9_000, "mixture_start": 2_000},
}
