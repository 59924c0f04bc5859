"""What is known of a cell once it has run, as the tables and `--json` see it. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Status = Literal["new", "running", "done", "failed", "interrupted", "out of memory", "timed out"]


class Event(TypedDict, total=False):
    """What a cell's process reports while it runs; each report holds some of these."""

    phase: str
    """What it does other than training steps: "fitting", "detecting", "clustering", "scoring"."""
    cell: str
    """The key of the cell that begins now: the training is done."""
    step: int
    steps: int
    seconds: float
    """Of training so far; evaluation and checkpoints are not counted."""
    steps_per_second: float
    """Of late; pauses are not counted."""
    loss: float
    terms: dict[str, float]
    """Of the loss, by name."""
    watch: dict[str, float]
    """What the detector's `watch` says."""
    metrics: dict[str, float]
    """The running figures."""
    notice: str
    """A line for the user."""
    disk_full: str
    """The file that could not be written, and why: nothing else can run then."""


@dataclass(frozen=True)
class CellResult:
    """One cell of the matrix: what it was asked to do, how it ended, what it scored."""

    cell: str
    """The cell's key, "<training>/<clusterer>", which is also where it lies in a store."""
    model: str
    data: str
    protocol: str
    seed: int
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    """Metric values on the test scenes, fractions in 0..1 where the field writes percents."""
    seconds: float = 0.0
    """Seconds of training, evaluation not counted."""
    train_steps: int = 0
    images_per_second: float = 0.0
    peak_memory_mb: float = 0.0
    path: str = ""
    error: str = ""
    """One line of why it failed; empty otherwise."""
    model_config: dict[str, Any] = field(default_factory=dict)
    """The resolved config of the detector."""
    data_config: dict[str, Any] = field(default_factory=dict)
    clusterer: str = ""
    """The name of the clusterer, "own" where the detector clusters; empty where an earlier version recorded none."""
    clusterer_seconds: float = 0.0
    """Seconds that the clusterer took to fit and to assign the test objects; 0 where the detector clusters."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions, git state, device, data source and so on."""
    trained: str = ""
    """The key of the training whose weights were evaluated on other scenes; empty when the cell has its own."""

    def as_json(self) -> dict[str, Any]:
        """The fields that `objbench run --json` prints; a metric that is not finite is null, as JSON has it."""
        names = ["cell", "model", "clusterer", "data", "protocol", "seed", "status", "metrics", "seconds"]
        names += ["train_steps", "images_per_second", "peak_memory_mb", "clusterer_seconds", "path", "error"]
        metrics = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return {name: getattr(self, name) for name in names} | {"metrics": metrics}


@dataclass
class Position:
    """How far a training has come."""

    step: int = 0
    """Steps done."""
    images: int = 0
    """Training images seen."""
    seconds: float = 0.0
    """Spent in training; evaluation and checkpoints are not counted."""
    peak_memory_mb: float = 0.0
    machine: str = ""
    """Device and threads; resuming elsewhere need not give the same bits."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """The running figures so far, a row an evaluation."""


@dataclass(frozen=True)
class Trained:
    """How a training ended: recorded once, when all that it gave is on disk."""

    training: str
    """The training's key, which is also the name of its directory."""
    position: Position
    classes: tuple[str, ...]
    """The names of the true objects' labels."""
    shape: tuple[int, int, int]
    """Channels, height and width of the images that it was trained on."""
    oracle: bool
    """Whether the detector is given the true boxes."""
    warnings: list[str]
    provenance: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    """Name -> sha256 of the files that it left."""
