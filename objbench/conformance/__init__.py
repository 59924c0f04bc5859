"""The conformance kit checks that a plugin keeps its contract, before its first long run.

It runs from `objbench check NAME` and from pytest (see `objbench.conformance.pytest_plugin`). Models are tested on the
kit's own scenes (`objbench.conformance.shapes`), with their `demo` settings. This file is empty because pytest imports
it at start.
"""
