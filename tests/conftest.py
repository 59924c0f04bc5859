"""Marks for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

import compiled
import warm
from objbench.run.local import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ
"""Before torch is imported: else tests of two threads, in two workers on two cores, would spin most of the time."""

TRAIN = {"finished", "made", "trainings", "everything"}
"""Fixtures that run objbench in other processes: they take seconds, so every test that uses one is slow."""


LONGEST = (
    "test_day",
    "test_ray",
    "test_conformance",
    "test_our_clusterers",
    "test_statistics",
    "test_new",
    "test_on_gpu",
)
"""Files that take longest. They are run first: a worker that begins one at the end would leave the others idle."""


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use a slow fixture; the longest files come first."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
    for item in items:
        if TRAIN.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_configure() -> None:
    """Processes of objbench are forked from one that has imported torch, see `warm`; umap is compiled once."""
    compiled.install()
    if sys.platform == "linux":
        warm.install()


@pytest.fixture
def real_processes() -> Iterator[None]:
    """In this test each process is started as a user's is."""
    warm.uninstall()
    yield
    if sys.platform == "linux":
        warm.install()
