"""The conformance kit: whether a plugin keeps its contract, before the first long run.

`objbench check NAME` runs it, and so does pytest (see `objbench.conformance.pytest_plugin`). Models are tried on scenes
of the kit's own (`objbench.conformance.shapes`), with their `demo` settings. Empty, as pytest imports it at start.
"""
