"""objbench: train and compare unsupervised object detectors that also cluster what they find.

A plugin's registration module needs only this (and imports no torch):

    from objbench import ClustererSpec, DataSpec, MetricSpec, ModelSpec, Published, hookimpl

The contracts it then implements are in `objbench.detector`, `objbench.clusterer`,
`objbench.scenes` and `objbench.metric`.
"""

from objbench.hookspecs import ClustererSpec, DataSpec, MetricSpec, ModelSpec, Published, hookimpl

__all__ = ["ClustererSpec", "DataSpec", "MetricSpec", "ModelSpec", "Published", "__version__", "hookimpl"]

__version__ = "0.1.0"
