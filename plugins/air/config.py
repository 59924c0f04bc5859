"""The options of AIR, and their values for each protocol and data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from objbench.detector import DetectorConfig
from objbench.options import Settings, option, widths


@dataclass(frozen=True)
class AirConfig(DetectorConfig):
    """Defaults are those of the paper for its scenes of up to three digits, where it prints them.

    The others are those of two reimplementations: glimpse, deviation of a pixel, optimiser and batch of Kosiorek's,
    widths of hidden layers, scale prior and baseline's rate of Pyro's.
    """

    steps: int = option(200_000, "training steps (batches)", low=1)
    batch_size: int = option(64, "images a step", low=1)
    optimizer: str = option("rmsprop", "rmsprop: with a momentum of .9; adam", choices=["rmsprop", "adam"])
    baseline_lr: float = option(1e-3, "learning rate of the baseline; only with estimator=nvil", above=0)

    # Inference
    objects: int = option(3, "steps N of the recurrent network: the most objects of an image", low=1)
    look: str = option(
        "image",
        "what the recurrent network sees: image: always the image; difference: what is left of the image after the "
        "objects so far (the paper's DAIR)",
        choices=["image", "difference"],
    )
    encoder: str = option(
        "none",
        "what the image goes through before the recurrent network: none; convolutions: two, and a layer",
        choices=["none", "convolutions"],
    )
    estimator: str = option(
        "nvil",
        "how presence gets its gradient: nvil: samples of 0 and 1, and their score function with a baseline; relaxed: "
        "samples of the relaxed Bernoulli",
        choices=["nvil", "relaxed"],
    )
    temperature: float = option(
        1.0, "temperature of the relaxed presence; only with estimator=relaxed", above=0
    )

    # Architecture
    hidden: int = option(256, "units of the recurrent network", low=1)
    what_dim: int = option(50, "dimension A of the what-latent", low=1)
    glimpse: int = option(20, "side of a glimpse in pixels", low=4)
    encoder_widths: str = option("200", "hidden widths of the what-encoder; reversed, the decoder's")
    presence_bias: float = option(0.0, "added to presence logits: above 0, objects start present")
    colour_bias: float = option(-2.0, "added to the decoder's logits: below 0, glimpses start dark")

    # Model
    sigma: float = option(0.3, "standard deviation of a pixel", above=0)
    scale_prior: float = option(0.33, "box side that the prior expects, in image sides", above=0, high=0.999)
    scale_prior_std: float = option(0.2, "standard deviation of the scale prior, in logits", above=0)
    where_std: float = option(0.5, "standard deviation that where-latents start with", above=0)
    count_start: float = option(
        1e15, "the geometric prior's odds of one object more, at step 0; at least count_end", above=0
    )
    count_end: float = option(1e-5, "the same after count_steps", above=0)
    count_steps: int = option(100_000, "steps in which these odds fall, evenly in their logarithm", low=1)

    # Detection
    trim: float = option(
        0.2, "cut boxes to decoded glimpse pixels at least this bright, as GMAIR does; 0 does not cut", low=0
    )
    trim_edges: str = option(
        "glimpse",
        "where a cut box ends: between pixels of its glimpse, where the brightness crosses `trim`, or there rounded to "
        "pixels of the image",
        choices=["glimpse", "crossing", "pixels"],
    )

    def __post_init__(self) -> None:
        self.widths()
        if self.count_end > self.count_start:
            raise ValueError(
                f"count_end={self.count_end:g} is above count_start={self.count_start:g}, and odds only fall"
            )

    def widths(self) -> tuple[int, ...]:
        """`encoder_widths` as numbers."""
        return widths(self.encoder_widths, "encoder_widths")


SMALL: dict[str, Any] = {
    "objects": 5,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 1e-3,
    "lr_end": 0.3,
    "clip_norm": 10.0,
    "look": "difference",
    "encoder": "convolutions",
    "estimator": "relaxed",
    "what_dim": 32,
    "glimpse": 16,
    "presence_bias": 2.0,
    "where_std": 0.2,
    "scale_prior_std": 0.5,
    # With .3, as published, digits stay blurred, and thin ones are not worth an object.
    "sigma": 0.2,
    # Twice the cost of a pixel needs twice the pull that keeps objects present until they have found something.
    "count_start": 1e25,
    "count_steps": 3_000,
    "trim_edges": "crossing",
}

DIGITS: dict[str, Any] = {
    # Digits are placed on whole pixels, and their true boxes hold whole pixels.
    "trim_edges": "pixels",
}

SETTINGS: Settings = {
    ("demo", "*"): {**SMALL, "steps": 3_300},
    ("small", "*"): {**SMALL, "steps": 16_000, "count_steps": 6_000},
    ("demo", "multimnist"): DIGITS,
    ("small", "multimnist"): DIGITS,
}
