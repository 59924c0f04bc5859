"""objbench: train and compare unsupervised object detectors that also cluster what they find.

A plugin's registration module needs only this (and imports no torch):

    from objbench import ClustererSpec, DataSpec, MetricSpec, ModelSpec, Published, hookimpl

Whoever reads results needs `load`. The contracts it then implements are in `objbench.detector`, `objbench.clusterer`,
`objbench.scenes` and `objbench.metric`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from objbench.hookspecs import ClustererSpec, DataSpec, MetricSpec, ModelSpec, Published, hookimpl

if TYPE_CHECKING:
    from objbench.report.frames import Results

__all__ = [
    "ClustererSpec",
    "DataSpec",
    "MetricSpec",
    "ModelSpec",
    "Published",
    "__version__",
    "hookimpl",
    "load",
]

__version__ = "0.1.0"


def load(
    out: str | Path = "runs",
    *,
    protocol: str | None = None,
    models: list[str] | None = None,
    data: list[str] | None = None,
    plugins: tuple[str, ...] = (),
) -> Results:
    """The results in a directory that `objbench run --out` wrote: `.cells` and `.objects`, pandas frames.

    protocol, models, data: only cells of these. plugins: files of plugins, as `--plugin`. UsageError when there is no
    cell. See docs/results.md.
    """
    from objbench.report.frames import load as read  # torch, pandas

    return read(out, protocol=protocol, models=models, data=data, plugins=plugins)
