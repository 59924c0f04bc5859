"""Takes a name that `prints` has."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models():
    return [ModelSpec("prints", "the same name", "clashes:Nothing")]
