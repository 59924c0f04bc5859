"""docs/masks.md: its detector is run as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import objbench, rows_of

PAGE = (Path(__file__).parents[1] / "docs" / "masks.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[Path]:
    """The page's detector in a file, as a reader would save it."""
    file = tmp_path / "slots.py"
    file.write_text(CODE)
    yield file
    sys.modules.pop("slots", None)


@pytest.mark.slow
def test_it_passes_the_kit(slots: Path) -> None:
    ran = objbench("check", str(slots))
    assert ran.code == 0, ran.out


@pytest.mark.slow
def test_its_masks_become_boxes_of_the_digits(slots: Path, tmp_path: Path) -> None:
    ran = objbench(
        "run", "--plugin", str(slots), "--models", "slots", "--data", "multimnist", "--out", str(tmp_path / "runs"),
        "-o", "slots.steps=10", "-o", "gmm.restarts=1", "--points", "1", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (row,) = rows_of(ran)
    assert row["metrics"]["ap50"] > 0.8


def test_the_page_is_about_what_the_code_does() -> None:
    for name in re.findall(r"`(?!objbench|\[|masks >|slots\.py)(\w+(?:\.\w+)?)`", PAGE):
        assert name in CODE, f"`{name}` is on the page but not in its code"
    assert [line for line in PAGE.splitlines() if line.startswith("objbench ")] == [
        "objbench check slots.py",
        "objbench run --plugin slots.py --models slots --data multimnist",
    ]
