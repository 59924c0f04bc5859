"""What is known of a cell once it has run, as the tables and `--json` see it. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["new", "running", "done", "failed", "interrupted", "out of memory", "timed out"]


@dataclass(frozen=True)
class CellResult:
    """One cell of the matrix: what it was asked to do, how it ended, what it scored."""

    cell: str
    """The cell's identity, which is also the name of its directory."""
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
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions, git state, device, data source and so on."""

    def as_json(self) -> dict[str, Any]:
        """The fields that `objbench run --json` prints; a metric that is not finite is null, as JSON has it."""
        names = ["cell", "model", "data", "protocol", "seed", "status", "metrics", "seconds", "train_steps"]
        names += ["images_per_second", "peak_memory_mb", "path", "error"]
        metrics = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return {name: getattr(self, name) for name in names} | {"metrics": metrics}
