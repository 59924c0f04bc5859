"""The hooks that a plugin can implement, and the specs that they return.

A spec names its implementation as text ("package.module:Name"). So plugins can be listed without importing
torch or the plugin's model.
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
    """As `--models` names it: no dots, commas, spaces, `=` or `+`."""
    summary: str
    """What it is, in a line, for `objbench list`."""
    target: str
    """"package.module:Name"; imported when it is needed."""
    label: str = ""
    """The name in tables; `name` if empty. Where a clusterer clusters, " + " and its label are appended."""
    clusters: bool = True
    """False if the detector does not cluster: `--models NAME` alone then means `NAME+gmm`."""
    paper: str = ""
    """The citation of the publication."""
    code: str = ""
    """The location of the authors' code."""
    licence: str = ""
    """The licence of that code."""
    differs: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> differences from the publication under it; "*": differences under every protocol."""
    prior_knowledge: str = ""
    """What the detector knows about the data before training, such as object sizes or the number of classes."""
    generate: str = ""
    """Optional, "package.module:Name": a subclass of `objbench.generation.Generator`, for figures of what the detector
    generates. It is imported only for these, and is part of no key."""
    check: str = ""
    """Optional, "package.module:function": what is wrong with the options of a run, before it begins.

    The function gets the config, the `SceneShape` of the images and the names of the options that the user set (a
    frozenset). It returns an error message of one line, or "" if nothing is wrong. It is for what `Config` alone cannot
    see: options that do not suit the images, and options that are wrong only if the user set them (a schedule of the
    settings may be longer than a short training). It is part of no key."""

    def differs_under(self, protocol: str) -> str:
        """The differences from the publication under a protocol."""
        return " ".join(self.differs[key] for key in ("*", protocol) if self.differs.get(key))


SAID = {
    "paper": "paper",
    "code": "original code",
    "licence": "licence of that code",
    "differs": "differs from the paper",
    "prior_knowledge": "knows beforehand",
}
"""Fields of a ModelSpec or a ClustererSpec that describe its source and prior knowledge -> their titles."""


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
    """The label of the real data set that this one imitates; tables then mark it as a stand-in."""
    clusters: int = 0
    """How many clusters every clusterer makes here unless its `clusters` option says otherwise; 0 leaves it to them.

    It is prior knowledge, usually the number of classes, and the same for all.
    """


@dataclass(frozen=True)
class ClustererSpec:
    """A clusterer. `target` is a subclass of `objbench.clusterer.Clusterer`."""

    name: str
    """As `--models DETECTOR+NAME` names it: letters, digits, `-` and `_`; not `own`, which is a detector's own."""
    summary: str
    """What it is, in a line, for `objbench list`."""
    target: str
    """"package.module:Name"; imported when it is needed."""
    label: str = ""
    """The name in tables, after that of the detector and " + "; `name` if empty."""
    paper: str = ""
    """The citation of the publication."""
    code: str = ""
    """The location of the authors' code."""
    licence: str = ""
    """The licence of that code."""
    differs: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> differences from the publication under it; "*": differences under every protocol."""
    prior_knowledge: str = ""
    """What the clusterer knows about the data before it is fitted, such as the number of classes."""

    check: str = ""
    """Optional, "package.module:function": as `ModelSpec.check`, but the function gets the config and the names of the
    options that the user set."""

    def differs_under(self, protocol: str) -> str:
        """The differences from the publication under a protocol."""
        return " ".join(self.differs[key] for key in ("*", protocol) if self.differs.get(key))


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
    """Increase it when the definition changes: figures of another version are recomputed, never mixed."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Value -> column heading: the values that the main table shows, in order.

    Higher must be better. A heading with "%" shows fractions as percent.
    """
    more: Mapping[str, str] = field(default_factory=dict)
    """Value -> column heading: further values, which `report --more` shows after the columns. Lower may be better."""
    meaningful: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Column -> (another of the metric's values, its least): below that, tables print the column's figure in round
    brackets and say that it is not meaningful."""
    healthy: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Value -> (lowest, highest) of a successful run; a run outside this range is counted as collapsed."""
    weighted: str = ""
    """Optional, "package.module:function": computes the same values for many resamples of the scenes at once, for
    confidence intervals; see `objbench.metric.Weighted`. Without it the metric is called once per resample."""


@dataclass(frozen=True)
class Published:
    """A row of a published table; reports print it next to objbench's results."""

    model: str
    """The name of the model that the row is printed under, or MODEL+CLUSTERER as `--models` has it; of one that nobody
    registers, a row of its own."""
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
    """Headings for the values that are not columns of any metric."""
    note: str = ""
    """A note on how far the figures can be compared; printed once under the table."""


@hookspec
def objbench_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Returns the plugin's detectors; `--models NAME` selects them."""


@hookspec
def objbench_data() -> Iterable[DataSpec]:  # type: ignore[empty-body]
    """Returns the plugin's data sets; `--data NAME` selects them."""


@hookspec
def objbench_clusterers() -> Iterable[ClustererSpec]:  # type: ignore[empty-body]
    """Returns the plugin's clusterers; `--models DETECTOR+NAME` selects them."""


@hookspec
def objbench_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Returns the plugin's metrics; every cell is scored with all metrics."""


@hookspec
def objbench_published() -> Iterable[Published]:  # type: ignore[empty-body]
    """Returns published figures; `report --paper` prints them next to objbench's results."""
