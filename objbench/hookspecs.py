"""The hooks a plugin may implement, and the specs it returns from them.

A spec names its implementation as text ("package.module:Name"), so that listing what exists imports
neither torch nor the plugin's model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pluggy

hookspec = pluggy.HookspecMarker("objbench")
"""Marks what follows as a hook; only objbench has any."""
hookimpl = pluggy.HookimplMarker("objbench")
"""Marks a plugin's function, or wraps one, as the implementation of the hook that it is named after."""


@dataclass(frozen=True)
class ModelSpec:
    """A detector. `target` is a subclass of `objbench.detector.Detector`."""

    name: str
    """As `--models` names it: no dots, commas, spaces or `=`."""
    summary: str
    """What it is, in a line, for `objbench list`."""
    target: str
    """"package.module:Name"; imported when it is needed."""
    label: str = ""
    """How tables write it; the name when empty. A detector without clusters gets " + GMM" appended."""
    clusters: bool = True
    """False: the harness clusters its what-latents with a Gaussian mixture."""
    paper: str = ""
    """The publication, as one cites it."""
    code: str = ""
    """Where the authors' own code is."""
    licence: str = ""
    """The licence of that code."""
    differs: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> what differs from the publication under it; "*": what differs under every protocol."""
    prior_knowledge: str = ""
    """What it knows of the data beforehand, such as object sizes and the number of classes."""

    def differs_under(self, protocol: str) -> str:
        """What differs from the publication under a protocol."""
        return " ".join(self.differs[key] for key in ("*", protocol) if self.differs.get(key))


SAID = {
    "paper": "paper",
    "code": "original code",
    "licence": "licence of that code",
    "differs": "differs from the paper",
    "prior_knowledge": "knows beforehand",
}
"""Fields of a ModelSpec that say where it comes from -> their titles."""


@dataclass(frozen=True)
class DataSpec:
    """A source of scenes. `target` is a subclass of `objbench.scenes.SceneSource`."""

    name: str
    """As `--data` names it: no dots, commas, spaces or `=`."""
    summary: str
    """What it is, in a line, for `objbench list`."""
    target: str
    """"package.module:Name"; imported when it is needed."""
    label: str = ""
    """How tables write it; the name when empty."""
    stand_in_for: str = ""
    """The label of the data set this one imitates; tables then say that it is a stand-in."""


@dataclass(frozen=True)
class MetricSpec:
    """A metric. `target` is a function (Detections, GroundTruth) -> {name: value}: see `objbench.metric`."""

    name: str
    """As `objbench check` names it: no dots, commas, spaces or `=`."""
    summary: str
    """What it is, in a line, for `objbench list`."""
    target: str
    """"package.module:Name"; imported when it is needed."""
    version: int = 1
    """Raised when the definition changes: figures of another version are recomputed, never mixed."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Which of its values are columns of the main table, and their headings, in order.

    Higher is better in a column; a heading with "%" shows fractions as percent.
    """
    healthy: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Value -> the lowest and highest that a sound run gives; a run outside is counted as collapsed."""
    weighted: str = ""
    """Optional, "package.module:function": the same values for many draws of the scenes at once, which intervals
    need; see `objbench.metric.Weighted`. Without it the metric is called once a draw."""


@dataclass(frozen=True)
class Published:
    """A row of somebody's published table, to be printed beside ours."""

    model: str
    """The name of the model that the row is printed under; of one that nobody registers, a row of its own."""
    data: str
    """The name of the data set, likewise."""
    values: Mapping[str, tuple[float, float | None]]
    """Metric name -> (mean, standard deviation or None), as fractions in 0..1."""
    source: str
    """Where it was published: authors or a number, and the table."""
    model_label: str = ""
    """How tables write the model; as the registered model's label when empty."""
    data_label: str = ""
    """How tables write the data set; as the registered one's label when empty."""
    headings: Mapping[str, str] = field(default_factory=dict)
    """Headings for those of its values that no metric makes a column of."""
    note: str = ""
    """What a reader must know before comparing; printed once under the table."""


@hookspec
def objbench_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Detectors, so that `--models NAME` finds them."""


@hookspec
def objbench_data() -> Iterable[DataSpec]:  # type: ignore[empty-body]
    """Sources of scenes, so that `--data NAME` finds them."""


@hookspec
def objbench_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Metrics; every cell is scored by all of them."""


@hookspec
def objbench_published() -> Iterable[Published]:  # type: ignore[empty-body]
    """Published figures, so that `report --paper` can print them beside ours."""
