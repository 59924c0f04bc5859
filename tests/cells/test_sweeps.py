"""Sweeps: what a text with commas means, by the type of its option."""

from __future__ import annotations

import pytest

from objbench.cells.sweeps import expanded, values_of
from objbench.errors import UsageError


@pytest.mark.parametrize(
    ("text", "depth", "values"),
    [
        ("4", 0, ["4"]),
        ("4,8,16", 0, ["4", "8", "16"]),
        (" 4 , 8 ", 0, ["4", "8"]),
        ("8,4,8", 0, ["8", "4"]),
        ("3,4", 1, ["3,4"]),  # a list, as it always was
        ('"3,4","5,6"', 1, ["3,4", "5,6"]),
        ('"a,b","c"', 0, ["a,b", "c"]),
        ('"a,b",c', 0, ["a,b", "c"]),
        ('"a,b"', 0, ["a,b"]),
        ('"a\\"b",""', 0, ['a"b', ""]),
        ("[4, 8]", 0, ["4", "8"]),
        ("[3, 4]", 1, ["[3, 4]"]),
        ("[[3, 4], [5]]", 1, ["[3, 4]", "[5]"]),
        ("[[3, 4], [5]]", 2, ["[[3, 4], [5]]"]),
        ("[true, null, 1e-4]", 0, ["true", "none", "0.0001"]),
        ("[]", 1, ["[]"]),
        ("[ab],c", 0, ["[ab],c"]),  # begins like a list, and is none
        ('5" disk, 3" disk', 0, ['5" disk', '3" disk']),
        ('"open, c', 0, ['"open, c']),
        ("", 0, [""]),
    ],
)
def test_values(text: str, depth: int, values: list[str]) -> None:
    assert values_of("toy.x", text, lambda: depth) == values


@pytest.mark.parametrize("text", ["4,,8", "4,", ",4", "[]"])
def test_a_sweep_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"toy\.x="):
        values_of("toy.x", text, lambda: 0)


def test_the_type_is_asked_only_where_it_matters() -> None:
    def asked(owner: str, key: str) -> int:
        raise AssertionError(f"{owner}.{key}")

    assert expanded({"a": {"x": "1"}, "b": {"y": ""}}, asked) == [{"a": {"x": "1"}, "b": {"y": ""}}]


def test_all_combinations_the_last_fastest() -> None:
    rows = expanded({"a": {"x": "1,2", "y": "7"}, "b": {"z": "3,4"}}, lambda *_: 0)
    assert [(r["a"]["x"], r["a"]["y"], r["b"]["z"]) for r in rows] == [
        ("1", "7", "3"), ("1", "7", "4"), ("2", "7", "3"), ("2", "7", "4"),
    ]  # fmt: skip


def test_too_many_are_a_slip() -> None:
    many = ",".join(map(str, range(40)))
    with pytest.raises(UsageError, match="1600 combinations"):
        expanded({"a": {"x": many, "y": many}}, lambda *_: 0)
