"""The conformance kit as pytest sees it: each check of a plugin is a test of its own.

    import pytest

    @pytest.mark.objbench("my-detector")
    def test_contract(objbench_check):
        objbench_check()

The mark takes what `objbench check` takes, and options as `options={"lr": "1e-3"}`. Every pytest run where
objbench is installed imports this module, so it imports nothing heavy until a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Makes the mark known."""
    config.addinivalue_line(
        "markers", "objbench(name, options={}): the test's objbench_check is each check of that plugin"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes one test a check out of a test that takes `objbench_check`."""
    if "objbench_check" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("objbench")
    if mark is None:
        raise pytest.UsageError('a test that takes objbench_check needs @pytest.mark.objbench("NAME")')

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
    """Runs the check: fails with what was expected, what came and where to read; skips with the reason."""
    import torch

    from objbench.conformance.kit import run_check

    def run() -> None:
        __tracebackhide__ = True
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # batches are small: threads would only wait for one another
        try:
            finding = run_check(*request.param)
        finally:
            torch.set_num_threads(threads)
        if finding.outcome == "failed":
            pytest.fail(str(finding), pytrace=False)
        if finding.outcome == "skipped":
            pytest.skip(finding.came)

    return run
