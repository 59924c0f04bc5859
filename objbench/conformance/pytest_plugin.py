"""The conformance kit as a pytest plugin: each check of an objbench plugin is a separate test.

    import pytest

    @pytest.mark.objbench("my-detector")
    def test_contract(objbench_check):
        objbench_check()

The mark takes the same names as `objbench check`, and options as `options={"lr": "1e-3"}`. Every pytest run in an
environment with objbench imports this module, so it imports slow packages only when a test needs them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark."""
    config.addinivalue_line(
        "markers",
        "objbench(name, options={}): run a test with objbench_check once for each check of the plugin",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turns a test with `objbench_check` into one test per check."""
    if "objbench_check" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("objbench")
    if mark is None:
        raise pytest.UsageError('a test with objbench_check needs @pytest.mark.objbench("NAME")')

    from objbench.conformance.subjects import find_subjects
    from objbench.plugins import load_plugins

    (what,) = mark.args
    options = mark.kwargs.get("options", {})
    registry = load_plugins((what,) if what.endswith(".py") else ())
    pairs = [
        (subject, check)
        for subject in find_subjects(registry, what, {name: options for _, name in registry.owners})
        for check in subject.checks
    ]
    ids = [f"{subject.name}-{check.name}" for subject, check in pairs]
    metafunc.parametrize("objbench_check", pairs, indirect=True, ids=ids)


@pytest.fixture
def objbench_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Runs the check. A failure shows what was expected, what the plugin did, and where the docs explain it."""
    import torch

    from objbench.conformance.kit import run_check

    def run() -> None:
        __tracebackhide__ = True
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # batches are small, so more threads would only wait for each other
        try:
            finding = run_check(*request.param)
        finally:
            torch.set_num_threads(threads)
        if finding.outcome == "failed":
            pytest.fail(str(finding), pytrace=False)
        if finding.outcome == "skipped":
            pytest.skip(finding.came)

    return run
