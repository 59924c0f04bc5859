"""Marks for all tests."""

from __future__ import annotations

import pytest

TRAIN = {"finished", "made", "trainings", "everything"}
"""Fixtures that run objbench in other processes: they take seconds, so every test that uses one is slow."""


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use a slow fixture."""
    for item in items:
        if TRAIN.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
