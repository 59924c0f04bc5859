"""Prints to stdout when it is imported and when it is asked; otherwise sound."""

from objbench import ModelSpec, hookimpl

print("hello from a plugin")


@hookimpl
def objbench_models():
    print("hello from a hook")
    return [ModelSpec("prints", "talks too much", "prints:Nothing")]
