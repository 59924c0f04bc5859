"""A tiny detector and a tiny data set, real enough to learn, train in about a second: what the tests run.

Squares of 4x4 pixels on a 4x4 grid of cells; a square's class is how bright it is.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from objbench import ClustererSpec, DataSpec, MetricSpec, ModelSpec, hookimpl
from objbench.clusterer import Clusterer, ClustererConfig, Cut, Objects, ObjectShape
from objbench.detector import Detections, Detector, DetectorConfig
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split

GRID, SIDE = 4, 4
TROUBLES = [
    "none",
    "nan",
    "raise",
    "exit",
    "vanish",
    "allocate",
    "hang",
    "nothing",
    "sulk",
    "print",
    "stumble",
]


@dataclass(frozen=True)
class SquaresConfig:
    """What the toy scenes are like."""

    most: int = option(3, "squares an image, at most", low=1, high=GRID * GRID)
    size: int = option(0, "scenes of the training split; 0 is without end", low=0)
    folder: str = option("", "changes nothing, as a path should not", identity=False)


class Squares(SceneSource):
    """Bright squares on black, `1 x 16 x 16`."""

    Config = SquaresConfig
    shape = SceneShape(1, GRID * SIDE, GRID * SIDE)
    classes = ("dim", "bright")

    def __init__(self, config: SquaresConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def size(self, split: Split) -> int | None:
        return (self.config.size or None) if split == "train" else None

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        images = torch.zeros(len(indices), *self.shape)
        boxes, labels = [], []
        for image, index in zip(images, indices.tolist(), strict=True):
            rng = np.random.default_rng([len(split), self.seed, index])
            cells = rng.choice(GRID * GRID, rng.integers(1, self.config.most + 1), replace=False)
            kinds = rng.integers(0, 2, len(cells))
            corners = torch.tensor([[SIDE * (c % GRID), SIDE * (c // GRID)] for c in cells.tolist()])
            for (x, y), kind in zip(corners.tolist(), kinds.tolist(), strict=True):
                image[:, y : y + SIDE, x : x + SIDE] = 0.7 + 0.3 * kind
            boxes.append(torch.cat([corners, corners + SIDE], 1))
            labels.append(torch.tensor(kinds))
        return Scenes(images, GroundTruth.of(boxes, labels))

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "drawn", "squares": self.config.most}


@dataclass(frozen=True)
class ToyConfig(DetectorConfig):
    """A toy detector's options; `trouble` is what makes it misbehave."""

    steps: int = option(60, "training steps", low=1)
    batch_size: int = option(8, "images a step", low=1)
    lr: float = option(0.03, "Adam's learning rate", above=0)
    clip_norm: float = option(1.0, "clip gradients to this norm; 0 does not", low=0)
    slow: str = option("", "while this file exists, steps from `at` on take half a second", identity=False)
    trouble: str = option("none", "what goes wrong", choices=TROUBLES)
    at: int = option(3, "the step it goes wrong at", low=0)


class Toy(Detector):
    """Reconstructs each 4x4 cell from a noisy code, with batch norm and dropout: every state matters."""

    Config = ToyConfig

    def __init__(self, config: ToyConfig, shape: SceneShape) -> None:
        super().__init__(config, shape)
        self.encode = nn.Sequential(
            nn.Conv2d(shape.channels, 8, SIDE, stride=SIDE), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.decode = nn.ConvTranspose2d(8, shape.channels, SIDE, stride=SIDE)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def training_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        if step == self.config.at:
            make_trouble(self.config.trouble)
        if step >= self.config.at and self.config.slow and os.path.exists(self.config.slow):
            time.sleep(0.5)
        code = self.norm(self.encode(images))
        code = code + 0.01 * torch.randn_like(code) * float(np.random.rand())
        error = (self.decode(self.drop(code)) - images).square().mean()
        nan = self.config.trouble == "nan" and step == self.config.at
        return {"reconstruction": error, "prior": 1e-3 * code.square().mean() * (torch.nan if nan else 1)}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        fused = torch.optim.Adam(self.encode.parameters(), lr=self.config.lr, fused=True)
        rest = [*self.norm.parameters(), *self.decode.parameters()]
        return [fused, torch.optim.SGD(rest, lr=self.config.lr, momentum=0.9)]

    def milestones(self) -> tuple[int, ...]:
        return (7,)

    def at_milestone(self, images: Tensor, step: int) -> None:
        assert self.decode.bias is not None
        self.decode.bias.data += 0.1 * torch.rand(1) * images.mean()

    def warnings(self) -> list[str]:
        return ["the toy stumbled"] if self.config.trouble == "stumble" else []

    def watch(self) -> dict[str, float]:
        return {"scale": float(self.norm.weight.detach().mean())}

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.norm(self.encode(images))).clamp(0, 1)

    def detect(self, images: Tensor) -> Detections:
        seen = nn.functional.avg_pool2d(self.reconstruct(images), SIDE).flatten(1)  # [n, 16]
        if self.config.trouble == "nothing":
            seen = seen * 0
        return Detections.from_padded(
            self.boxes().expand(len(images), -1, -1), seen, **self.groups(seen, images)
        )

    def boxes(self) -> Tensor:
        place = torch.arange(GRID * GRID)
        corners = SIDE * torch.stack([place % GRID, place // GRID], 1)
        return torch.cat([corners, corners + SIDE], 1).float()

    def groups(self, seen: Tensor, images: Tensor) -> dict[str, Tensor]:
        return {"clusters": (seen > 0.85).long()}


class ToyWithoutClusters(Toy):
    """The same, leaving the clustering to the harness."""

    def groups(self, seen: Tensor, images: Tensor) -> dict[str, Tensor]:
        if self.config.trouble == "sulk":
            return {}
        return {"what": torch.stack([seen, seen.square()], 2)}


class ToyFit(Detector):
    """Detects by a threshold that it fits."""

    @dataclass(frozen=True)
    class Config:
        """Nothing to tell it."""

    def __init__(self, config: Any, shape: SceneShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("threshold", torch.zeros(()))

    def fit(self, scenes: Scenes) -> None:
        assert len(scenes.truth.boxes) == 0, "only an oracle may see the truth"
        self.threshold.copy_(scenes.images.amax() / 4)

    def detect(self, images: Tensor) -> Detections:
        seen = nn.functional.avg_pool2d(images, SIDE).flatten(1)
        corners = SIDE * torch.stack([torch.arange(16) % GRID, torch.arange(16) // GRID], 1)
        boxes = torch.cat([corners, corners + SIDE], 1).float().expand(len(images), -1, -1)
        return Detections.from_padded(boxes, (seen > self.threshold).float(), (seen > 0.85).long())


class ToyOracle(ToyFit):
    """Is told."""

    oracle = True

    def fit(self, scenes: Scenes) -> None:
        assert len(scenes.truth.boxes) > 0, "an oracle must see the truth"

    def detect_scenes(self, scenes: Scenes) -> Detections:
        truth = scenes.truth
        return Detections(len(scenes), truth.image, truth.boxes, torch.ones(len(truth.image)), truth.labels)


def make_trouble(trouble: str) -> None:
    """Does what `trouble` says, at the step it should."""
    match trouble:
        case "raise":
            raise RuntimeError("the toy broke")
        case "exit":
            raise SystemExit(0)
        case "vanish":
            os._exit(0)
        case "allocate":
            torch.empty(1 << 60)
        case "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            time.sleep(3600)
        case "print":
            print("a plugin that prints to stdout")


@dataclass(frozen=True)
class ShadesConfig(ClustererConfig):
    """A toy clusterer's options; `trouble` is what makes it misbehave."""

    glimpse: int = option(4, "side of a glimpse", low=1)
    noise: float = option(0.0, "share of objects in no cluster", low=0, high=1)
    folder: str = option("", "changes nothing, as a path should not", identity=False)
    trouble: str = option("none", "what goes wrong")


class Shades(Clusterer):
    """Puts objects into bands of brightness, evenly spaced from the darkest to the brightest that it was fitted on."""

    Config = ShadesConfig

    @classmethod
    def settings(cls, protocol: str, data: str) -> dict[str, Any]:
        return {"glimpse": 6} if protocol == "small" else {}

    @classmethod
    def cut(cls, config: ShadesConfig) -> Cut:
        return Cut(config.glimpse, -1.0 if config.trouble == "cut" else 0.0)

    def __init__(self, config: ShadesConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        if config.trouble == "refuse":
            raise ValueError("it does not like such objects")
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))
        self.secret = 0.0
        self.few = False

    def fit(self, objects: Objects) -> None:
        assert objects.labels is None, "only an oracle may see labels"
        assert self.training, "training mode"
        assert torch.is_grad_enabled(), "with gradients"
        self.few = len(objects) < 2
        if not self.few:
            shades = objects.glimpses.mean((1, 2, 3))
            self.low.copy_(shades.min())
            self.high.copy_(shades.max() + 1e-4 * torch.rand(()))
        match self.config.trouble:
            case "raise":
                raise RuntimeError("the shades broke")
            case "sys.exit":
                raise SystemExit(3)
            case "exit":
                os._exit(7)
            case "hang":
                time.sleep(3600)
            case "allocate":
                torch.empty(1 << 60)
            case "change":
                objects.glimpses.mul_(0.5)
            case "forget":
                self.secret = 1.0
            case "grow":
                self.register_buffer("more", torch.ones(3))
            case "float64":
                torch.set_default_dtype(torch.float64)
            case "widen":
                object.__setattr__(self.config, "clusters", 1000)
            case "generators":
                torch.manual_seed(1)
                torch.set_num_threads(2)

    def assign(self, objects: Objects) -> Tensor:
        assert not self.training, "eval mode"
        assert not torch.is_grad_enabled(), "without gradients"
        assert objects.labels is None, "labels are for fit"
        share = (objects.glimpses.mean((1, 2, 3)) - self.low) / (self.high - self.low).clamp(min=1e-9)
        found = (share * self.config.clusters).long().clamp(0, self.config.clusters - 1)
        found[objects.scores < self.config.noise] = -1
        match self.config.trouble:
            case "many":
                return found + self.config.clusters
            case "negative":
                return found - 2
            case "short":
                return found[:-1]
            case "float":
                return found.float()
            case "list":
                return found.tolist()  # type: ignore[return-value]
            case "forget":
                return found * 0 + int(self.secret)
            case "order":
                return torch.arange(len(found)) % self.config.clusters
            case "batch":
                return (found + len(found).bit_length()) % self.config.clusters
            case "random":
                return torch.randint(0, self.config.clusters, (len(found),))
            case "meta":
                return found.to("meta")
            case "paint":
                objects.scores.zero_()
        return found

    def warnings(self) -> list[str]:
        if self.config.trouble == "text":
            return "a text, not a list"
        return ["too few to shade"] if self.few else []

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if self.config.trouble == "state":
            raise RuntimeError("the shades have no state")
        return super().state_dict(*args, **kwargs)


class ShadesByLabel(Clusterer):
    """Is told: the mean brightness of each class."""

    oracle = True

    def __init__(self, config: ClustererConfig, shape: ObjectShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("means", torch.full((config.clusters,), 9.0))

    def fit(self, objects: Objects) -> None:
        assert objects.labels is not None, "an oracle must see the labels"
        for label in set(objects.labels.tolist()) - {-1}:
            self.means[label] = objects.glimpses[objects.labels == label].mean()

    def assign(self, objects: Objects) -> Tensor:
        assert objects.labels is None, "labels are for fit"
        return (objects.glimpses.mean((1, 2, 3))[:, None] - self.means).abs().argmin(1)


def found_boxes(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """The share of true boxes that some detection of score >= 0.5 matches exactly."""
    sure = detections.scores >= 0.5
    keys = torch.cat([detections.image[:, None].float(), detections.boxes], 1)[sure]
    wanted = torch.cat([truth.image[:, None].float(), truth.boxes], 1)
    hits = (wanted[:, None] == keys[None]).all(2).any(1)
    return {"found": float(hits.float().mean()), "undefined": float("nan")}


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The toys."""
    return [
        ModelSpec("toy", "reconstructs squares", "toy_plugin:Toy"),
        ModelSpec("toy-plain", "does not cluster", "toy_plugin:ToyWithoutClusters", clusters=False),
        ModelSpec("toy-fit", "fits a threshold", "toy_plugin:ToyFit"),
        ModelSpec("toy-oracle", "is told the truth", "toy_plugin:ToyOracle"),
    ]


@hookimpl
def objbench_data() -> list[DataSpec]:
    """Squares."""
    return [DataSpec("squares", "bright squares on black", "toy_plugin:Squares")]


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """One that may misbehave, and an oracle."""
    return [
        ClustererSpec(
            "shades", "by brightness", "toy_plugin:Shades", label="Shades", paper="A paper on shades"
        ),
        ClustererSpec("shades-by-label", "is told", "toy_plugin:ShadesByLabel"),
    ]


@hookimpl
def objbench_metrics() -> list[MetricSpec]:
    """A column of the main table."""
    return [
        MetricSpec("toy-found", "share of boxes found", "toy_plugin:found_boxes", columns={"found": "FOUND"})
    ]
