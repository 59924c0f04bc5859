"""The conformance kit: each check of the contract is a test of its own."""

from collections.abc import Callable

import pytest


@pytest.mark.objbench("new-plugin")
def test_contract(objbench_check: Callable[[], None]) -> None:
    objbench_check()
