"""The conformance kit: whether a plugin keeps its contract, before the first long run.

`objbench check NAME` runs it, and so does pytest (see `objbench.pytest_plugin`). Models are tried on scenes of
the kit's own (`objbench.conformance.scenes`), with their `demo` settings.
"""

from objbench.conformance.kit import Check, Finding, Subject, examine, run_check
from objbench.conformance.subjects import find_subjects

__all__ = ["Check", "Finding", "Subject", "examine", "find_subjects", "run_check"]
