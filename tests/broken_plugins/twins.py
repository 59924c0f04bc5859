"""Takes the names of a model, a data set and a metric that `rivals` takes too."""

from objbench import DataSpec, MetricSpec, ModelSpec, hookimpl


@hookimpl
def objbench_models():
    return [ModelSpec("twin-model", "one of two", "twins:Nothing")]


@hookimpl
def objbench_data():
    return [DataSpec("twin-data", "one of two", "twins:Nothing")]


@hookimpl
def objbench_metrics():
    return [MetricSpec("twin-metric", "one of two", "twins:nothing", columns={"twin": "Twin"})]
