"""Takes the names of a model, a data set and a metric that `twins` takes too."""

from objbench import DataSpec, MetricSpec, ModelSpec, hookimpl


@hookimpl
def objbench_models():
    return [ModelSpec("twin-model", "the other", "rivals:Nothing")]


@hookimpl
def objbench_data():
    return [DataSpec("twin-data", "the other", "rivals:Nothing")]


@hookimpl
def objbench_metrics():
    return [MetricSpec("twin-metric", "the other", "rivals:nothing", columns={"twin": "Twin"})]
