"""Returns from a hook what is no spec."""

from objbench import hookimpl


@hookimpl
def objbench_metrics():
    return ["my-metric"]
