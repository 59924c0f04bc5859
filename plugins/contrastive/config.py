"""The options of the contrastive clusterer, and their values for each protocol and data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from objbench.options import Settings, option, settings_for
from objbench_plugins.glimpses.base import GlimpseConfig


@dataclass(frozen=True)
class ContrastiveConfig(GlimpseConfig):
    """Defaults are what was chosen on scenes of overlapping digits."""

    most: int = option(12_000, "objects used for fitting, drawn at random where there are more", low=1)
    features: int = option(128, "features of the network", low=1)
    batch_size: int = option(256, "objects a step", low=2)
    neighbour: float = option(0.3, "probability of a piece of another glimpse in a view", low=0, high=1)

    # Contrastive features
    epochs: float = option(12.0, "epochs of contrastive training", above=0)
    lr: float = option(3e-3, "highest learning rate of contrastive training", above=0)
    temperature: float = option(0.3, "temperature of NT-Xent", above=0)

    # Clusters of features
    sure: float = option(
        0.95,
        "where clusterings of the features agree less than this, raw glimpses are clustered too, and what agrees "
        "better with itself is taken; 0 never does",
        low=0,
        high=1,
    )
    neighbours: int = option(10, "neighbours of the embedding", low=2)
    dimensions: int = option(10, "dimensions of the embedding", low=1)
    embeddings: int = option(3, "embeddings, whose clusterings are joined", low=1)
    starts: int = option(5, "mixtures on each embedding, of which the likeliest is taken", low=1)

    # Self-training
    rounds: int = option(2, "rounds of self-training, each on the clusters of the features before it", low=1)
    round_epochs: float = option(6.0, "epochs of a round", above=0)
    round_lr: float = option(2e-3, "highest learning rate of a round", above=0)
    smoothing: float = option(0.1, "share of a target that is spread over all clusters", low=0, high=1)
    consistency: float = option(1.0, "weight of the divergence between two views", low=0)
    balance: float = option(
        0.5, "weight of the divergence of a batch's clusters from the shares that the mixture found", low=0
    )


SETTINGS: Settings = {
    ("demo", "*"): {"embeddings": 2, "epochs": 8.0, "round_epochs": 4.0},  # for two minutes of one core
}  # fmt: skip


def settings(protocol: str, data: str) -> dict[str, Any]:
    """Values that differ from the defaults."""
    return settings_for(SETTINGS, protocol, data)


@dataclass(frozen=True)
class CeilingConfig(GlimpseConfig):
    """Options of the same network, trained with labels."""

    most: int = option(12_000, "objects used for fitting, drawn at random where there are more", low=1)
    features: int = option(128, "features of the network", low=1)
    batch_size: int = option(128, "objects a step", low=2)
    neighbour: float = option(0.3, "probability of a piece of another glimpse in a view", low=0, high=1)
    epochs: float = option(6.0, "epochs", above=0)
    lr: float = option(4e-3, "highest learning rate", above=0)
