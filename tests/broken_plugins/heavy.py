"""Imports torch to say that it exists; its target is not there either."""

import torch  # noqa: F401

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models():
    return [ModelSpec("heavy", "imports torch", "heavy:Nothing")]
