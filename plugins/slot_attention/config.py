"""The options of Slot Attention, and their values for each protocol and data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from objbench.detector import DetectorConfig
from objbench.options import Settings, option


@dataclass(frozen=True)
class SlotAttentionConfig(DetectorConfig):
    """Defaults are those of the authors' code for object discovery on CLEVR6 at 128x128."""

    steps: int = option(500_000, "training steps (batches)", low=1)
    batch_size: int = option(64, "images a step", low=1)
    lr: float = option(4e-4, "Adam's learning rate after the warm-up", above=0)
    warmup: int = option(10_000, "steps in which the learning rate rises from 0", low=0)
    half_life: int = option(100_000, "steps in which the learning rate falls to a half", low=1)

    slots: int = option(7, "slots K: the most segments of an image, background included", low=2)
    iterations: int = option(3, "rounds of attention T", low=1)
    slot_size: int = option(64, "values D of a slot", low=1)
    hidden: int = option(128, "width of the hidden layer that updates slots", low=1)
    start: str = option(
        "random",
        "weights at the start: random; k-means: attention is about soft k-means on colours and places",
        choices=("random", "k-means"),
    )
    seeds: str = option(
        "noise",
        "where slots start: noise: around one learned place; far: around features of pixels that are far from each "
        "other in colour and place, the first of which is the top left one",
        choices=("noise", "far"),
    )
    sharpness: float = option(4.0, "inverse temperature of the k-means at the start", above=0)
    width: int = option(64, "channels of the encoder and the decoder", low=1)
    halvings: int = option(0, "how many of the encoder's four layers halve the resolution", low=0, high=4)
    grid: int = option(8, "side of the grid that a slot is broadcast to", low=2)
    coarse: int = option(
        1, "the decoder's layers double the grid up to the image's side divided by this", low=1
    )
    even: int = option(1, "layers of the decoder after those that double", low=0)

    frame: str = option(
        "image",
        "what the decoder's positions are relative to: image: its sides; slot: the slot's own centre and extent in the "
        "last round of attention, as in Biza et al. 2023",
        choices=("image", "slot"),
    )
    segments: str = option(
        "decoder",
        "what a segment is where it is the largest of all slots: decoder: the mask that the slot is painted with; "
        "attention: the last round's attention, enlarged bilinearly",
        choices=("decoder", "attention"),
    )
    background: str = option(
        "border",
        "border: the segment with most pixels at the image's border is no detection; kept: it is one",
        choices=("border", "kept"),
    )

    def __post_init__(self) -> None:
        if self.lr_end < 1:
            raise ValueError("lr_end must be 1, because half_life already lowers the learning rate")
        if self.start == "k-means" and self.width != self.slot_size:
            raise ValueError(f"start=k-means needs width={self.width} equal to slot_size={self.slot_size}")


SMALL: dict[str, Any] = {
    "batch_size": 8,
    "lr": 1e-3,
    "warmup": 100,
    "half_life": 1_500,
    "clip_norm": 1.0,
    # Where slots start far apart, one is left over for each object that is not there, and most of these share the
    # background with one another. With one slot for each object and one for the background, objects are merged.
    "slots": 8,
    "width": 24,
    "halvings": 1,
    "grid": 16,
    "coarse": 2,
    "even": 0,
    "slot_size": 24,
    "hidden": 48,
    "start": "k-means",
    "sharpness": 16.0,
    "seeds": "far",
    "frame": "slot",
    "segments": "attention",
}

SETTINGS: Settings = {
    ("demo", "*"): {**SMALL, "steps": 2_000},
    ("small", "*"): {**SMALL, "steps": 15_000, "half_life": 5_000},
}
