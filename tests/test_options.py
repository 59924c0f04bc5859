"""Options: every allowed type is read from text and JSON, every other is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from enum import Enum, IntEnum, IntFlag
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objbench.errors import UsageError
from objbench.options import TYPES, as_json, as_text, build, describe, option, refuse_contradictions
from running import TOY, objbench


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Swapped(Enum):
    """Each one's value is the other's name."""

    A = "B"
    B = "A"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Bits(IntFlag):
    ONE = 1


class WithNone(Enum):
    none = 1


def config(hint: Any, default: Any, **limits: Any) -> type:
    """A config with one option, `x`."""
    return dataclasses.make_dataclass("Config", [("x", hint, option(default, "", **limits))], frozen=True)


def read(hint: Any, default: Any, value: Any, **limits: Any) -> Any:
    return build(config(hint, default, **limits), "m", {"x": value}).x


@pytest.mark.parametrize(
    ("hint", "default", "text", "value"),
    [
        (Path, Path("a"), "b/c.pt", Path("b/c.pt")),
        (Path | None, None, "b", Path("b")),
        (Path | None, Path("a"), "none", None),
        (Size, Size.SMALL, "LARGE", Size.LARGE),
        (Size, Size.SMALL, "large", Size.LARGE),
        (Swapped, Swapped.B, "A", Swapped.A),
        (Level, Level.LOW, "2", Level.HIGH),
        (Optional[Level], None, "HIGH", Level.HIGH),  # noqa: UP045
        (Literal["fast", "slow"], "fast", "slow", "slow"),
        (Literal[1, 2, "auto", True], 1, "2", 2),
        (Literal[1, 2, "auto", True], 1, "true", True),
        (Literal["a", None], None, "a", "a"),
        (Literal["a", None], "a", "none", None),
        (tuple[int, ...], (32, 64), "3", (3,)),
        (tuple[int, ...], (32, 64), "3, 4,5", (3, 4, 5)),
        (tuple[int, ...], (32, 64), "", ()),
        (tuple[int, ...], (), "[3, 4]", (3, 4)),
        (tuple[float, float], (0.5, 1), "1,2e-3", (1.0, 0.002)),
        (tuple[str, ...], (), '["a,b", " c"]', ("a,b", " c")),
        (tuple[int, str], (1, "a"), "2,b", (2, "b")),
        (tuple[int, ...] | None, None, "none", None),
        (tuple[int | None, ...], (), "1,none", (1, None)),
        (tuple[tuple[int, int], ...], ((1, 2),), "[[3, 4], [5, 6]]", ((3, 4), (5, 6))),
        (tuple[Size, Path], (Size.SMALL, Path("a")), "large,b", (Size.LARGE, Path("b"))),
        (tuple[Literal["a", "b"], ...], (), "b,a", ("b", "a")),
        (float, 1, "2", 2.0),
        (int, 0, str(10**400), 10**400),
    ],
    ids=str,
)
def test_text_is_read_as_the_type_has_it(hint: Any, default: Any, text: str, value: Any) -> None:
    assert read(hint, default, text) == value
    assert type(read(hint, default, text)) is type(value)


class Odd:
    """A class of a plugin's own."""


@pytest.mark.parametrize(
    ("hint", "default", "name"),
    [
        (dict[str, int], None, "dict[str, int]"),
        (dict, None, "dict"),
        (list[int], None, "list[int]"),
        (set, None, "set"),
        (Any, 0, "Any"),
        (object, 0, "object"),
        (Odd, None, "Odd"),
        (Bits, Bits.ONE, "Bits"),
        (int | str, 0, "int | str"),
        (Union[int, str, None], 0, "int"),  # noqa: UP007
        (tuple, (), "tuple"),
        (tuple[Odd, ...], (), "Odd"),
        (complex, 0j, "complex"),
        (bytes, b"", "bytes"),
        (Literal[b"a"], b"a", "Literal"),
        (Literal["1", 1], 1, "Literal"),  # which one "1" means cannot be told
        (Literal["none"] | None, None, "Literal"),
        (WithNone | None, None, "WithNone"),
        (None, None, "NoneType"),
    ],
    ids=str,
)
def test_other_types_are_refused_with_the_fields_name_and_the_types_allowed(
    hint: Any, default: Any, name: str
) -> None:
    for look in (lambda c: build(c, "m"), lambda c: describe(c, "m")):
        with pytest.raises(UsageError) as error:
            look(config(hint, default))
        said = str(error.value)
        assert said.startswith("m.x: the type of an option cannot be ")
        assert name in said
        assert said.endswith(f"; it can be {TYPES}")
        assert "\n" not in said


@pytest.mark.parametrize(
    ("hint", "default", "said"),
    [
        (int, 1.5, "m.x=1.5 is not an integer"),
        (int, 2.0, "m.x=2.0 is not an integer"),
        (int, True, "m.x=true is not an integer"),
        (int, None, "m.x=none is not an integer"),
        (bool, 1, "m.x=1 is not a boolean"),
        (str, Path("a"), "m.x=PosixPath('a') is not a text"),
        (Path, "a", "m.x='a' is not a path"),
        (Size, "SMALL", "m.x='SMALL' is not a word"),
        (Literal["a", "b"], "c", "m.x=c is not one of a, b"),
        (tuple[int, ...], 3, "m.x=3 is not a list of integers; write it with commas, such as 3,4"),
        (tuple[int, int], (1, 2, 3), "m.x=1,2,3 is not a list of 2 integers; "),
        (str | None, "none", "m.x='none' is not a text or none"),
    ],
    ids=str,
)
def test_a_default_of_the_wrong_type_is_refused(hint: Any, default: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        build(config(hint, default), "m")
    assert str(error.value).startswith(f"the default of an option is wrong: {said}")


def test_a_default_out_of_range_or_missing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"default of an option is wrong: m.x=0 is out of range: at least 1"):
        build(config(int, 0, low=1), "m")
    with pytest.raises(UsageError, match=r"m\.x has no default; every option needs one"):
        build(dataclasses.make_dataclass("Config", [("x", int)]), "m")


@dataclasses.dataclass(frozen=True)
class Unresolved:
    x: Nowhere = option(None, "")  # type: ignore[name-defined]  # noqa: F821, RUF009


@dataclasses.dataclass(frozen=True)
class Others:
    """Fields that are no options."""

    shared: ClassVar[dict[str, int]] = {}
    x: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))
    derived: dict[str, int] = dataclasses.field(init=False, default_factory=dict)


def test_types_that_cannot_be_looked_up_are_one_line() -> None:
    with pytest.raises(
        UsageError, match=r"the types of the options of m cannot be read: name 'Nowhere' is not"
    ):
        build(Unresolved, "m")


def test_fields_that_are_no_options_are_left_alone() -> None:
    made = build(Others, "m", {"x": "3"})
    assert as_json(made) == {"x": [3]}
    assert [(row.name, row.default) for row in describe(Others)] == [("x", [1, 2])]


@pytest.mark.parametrize(
    ("hint", "default", "text", "said"),
    [
        (tuple[int, ...], (), "3,x", "m.x=3,x is not a list of integers; write it with commas, such as 3,4"),
        (tuple[float, float], (0, 0), "3", "m.x=3 is not a list of 2 numbers; write it with commas"),
        (tuple[int, str], (0, ""), "a,b", "m.x=a,b is not a list of an integer, a text; write"),
        (tuple[str, ...], (), "[a", "m.x=[a is not a list of texts; write"),
        (Size, Size.SMALL, "medium", "m.x=medium is not one of SMALL, LARGE"),
        (Size | None, None, "medium", "m.x=medium is not one of SMALL, LARGE or none"),
        (Literal["a", 1], "a", "b", "m.x=b is not one of a, 1"),
        (tuple[Size, ...], (), "SMALL,b", "m.x=SMALL,b is not each one of SMALL, LARGE; write"),
        (int, 0, "²", "m.x=² is not an integer"),
        (int, 0, "9" * 5000, "m.x=999"),
        (int | None, 0, "a", "m.x=a is not an integer or none"),
        (float, 0.0, "1\n2", "m.x='1\\n2' is not a number"),
        (float, 0.0, "1e999", "m.x=1e999 is out of range: must be finite"),
        (tuple[float, ...], (), "1,nan", "m.x=1,nan is out of range: must be finite"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_is_one_line(hint: Any, default: Any, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(hint, default, text)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class FileOrMade:
    file: str = option("", "a file", instead_of=("height", "width"))
    height: int = option(5, "of a scene")
    width: int = option(5, "of a scene")
    name: str = option("", "of the whole")


@pytest.mark.parametrize(
    ("given", "without"),
    [
        ({"file": "a", "height": "5"}, "o.height"),
        ({"width": "6", "height": "5", "name": "b", "file": "a"}, "o.height, o.width"),
        ({"file": "", "height": "6"}, ""),
        ({"file": "a", "name": "b"}, ""),
        ({"height": "6", "width": "6"}, ""),
    ],
)
def test_an_option_without_effect_is_refused_only_where_a_user_set_it(
    given: dict[str, str], without: str
) -> None:
    built = build(FileOrMade, "o", {"height": 7, "width": 7}, given)
    if not without:
        return refuse_contradictions(built, "o", given)
    with pytest.raises(UsageError, match=f"^o.file is set, so {without} would have no effect"):
        refuse_contradictions(built, "o", given)
    return None


def test_limits_and_choices_hold_for_each_value_of_a_tuple() -> None:
    assert read(tuple[int, ...], (1,), "1,2", low=1, high=2) == (1, 2)
    with pytest.raises(UsageError, match=r"m\.x=1,3 is out of range: at least 1, at most 2"):
        read(tuple[int, ...], (1,), "1,3", low=1, high=2)
    with pytest.raises(UsageError, match=r"m\.x=inf is out of range: must be finite"):  # it is above 0
        read(float, 1.0, "inf", above=0)
    with pytest.raises(UsageError, match=r"m\.x=a,c is not one of: a, b"):
        read(tuple[str, ...], ("a",), "a,c", choices=["a", "b"])


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(st.characters(codec="utf-8") | st.sampled_from('[],"\n none')),
    Path: st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(Path),
    Size: st.sampled_from(Size),
    Swapped: st.sampled_from(Swapped),
    Level: st.sampled_from(Level),
    Literal["fast", "[", "a,b", 3, True, ""]: st.sampled_from(["fast", "[", "a,b", 3, True, ""]),
}


def optional(of: tuple[Any, Any]) -> tuple[Any, Any]:
    """A type and a value, made optional; the word "none" is no value of an optional one."""
    hint, value = of
    return hint | None, None if as_json(value) == "none" else value


def together(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    return tuple[tuple(hint for hint, _ in parts)], tuple(value for _, value in parts)


def several(hint: Any) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.lists(SCALARS[hint], max_size=4).map(lambda values: (tuple[hint, ...], tuple(values)))


scalars = st.sampled_from(list(SCALARS)).flatmap(lambda hint: st.tuples(st.just(hint), SCALARS[hint]))
hints_and_values = st.recursive(
    scalars | st.sampled_from(list(SCALARS)).flatmap(several),
    lambda inner: inner.map(optional) | st.lists(inner, min_size=1, max_size=3).map(together),
    max_leaves=6,
)


@given(hints_and_values)
def test_any_value_of_any_type_survives_text_and_json(of: tuple[Any, Any]) -> None:
    hint, value = of
    made = config(hint, value)
    by_default = build(made, "m")
    by_text = build(made, "m", {"x": as_text(value)})
    by_json = build(made, "m", json.loads(json.dumps(as_json(by_text))))
    assert by_default.x == by_text.x == by_json.x == value
    assert repr(by_json.x) == repr(value)
    assert describe(made)[0].default == as_json(value)


PLUGIN = """
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from objbench import ModelSpec, hookimpl
from objbench.options import option
from toy_plugin import Toy


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True)
class Config(Toy.Config):
    weights: Path | None = option(Path("none.pt"), "weights", identity=False)
    layers: tuple[int, ...] = option((32, 64), "widths", low=1)
    mode: Literal["fast", "slow"] = option("fast", "mode")
    size: Size = option(Size.SMALL, "size")
    names: tuple[str, ...] = option(("a b",), "names")


class Typed(Toy):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        expected = (Path("w.pt"), (3, 4), "slow", Size.LARGE, ("a b",))
        if (config.weights, config.layers, config.mode, config.size, config.names) != expected:
            raise ValueError(f"got {config}")


class Refused(Toy):
    @dataclass(frozen=True)
    class Config(Toy.Config):
        table: dict[str, int] = option(None, "no type of an option")


Typed.Config = Config


@hookimpl
def objbench_models():
    return [ModelSpec("typed", "", "typed:Typed"), ModelSpec("refused", "", "typed:Refused")]
"""
CHOSEN = ["weights=w.pt", "layers=3,4", "mode=slow", "size=large"]


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[list[str]]:
    """The words that load the plugin above, and the toys that it is made of."""
    file = tmp_path / "typed.py"
    file.write_text(PLUGIN)
    yield ["--plugin", TOY, "--plugin", str(file)]
    sys.modules.pop("typed", None)


@pytest.mark.slow
def test_a_cell_gets_the_values_that_the_user_wrote(typed: list[str], tmp_path: Path) -> None:
    words = [
        "run",
        "--models",
        "typed",
        "--data",
        "squares",
        "--out",
        str(tmp_path / "runs"),
        "--json",
        *typed,
    ]
    ran = objbench(*words, *(word for chosen in CHOSEN for word in ("-o", f"typed.{chosen}")))
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)
    assert (row["status"], row["error"]) == ("done", "")
    again = objbench(*words, *(word for chosen in CHOSEN for word in ("-o", f"typed.{chosen}")))
    assert json.loads(again.out)[0]["cell"] == row["cell"]
    kept = json.loads((Path(row["path"]).parent / "training.json").read_text())
    assert kept["model_config"]["weights"] == "w.pt"
    assert "weights" not in kept["identity"]["model_config"]
    assert kept["identity"]["model_config"]["size"] == "LARGE"
    assert kept["identity"]["model_config"]["layers"] == [3, 4]


def test_info_says_types_and_words_as_one_writes_them(typed: list[str]) -> None:
    out = objbench("info", "typed", *typed).out
    assert "-o typed.weights=none.pt  [path or none]" in out
    assert "-o typed.layers=32,64  [list of integers (at least 1)]" in out
    assert "-o typed.mode=fast  [word (one of fast, slow)]" in out
    assert "-o typed.size=SMALL  [word (one of SMALL, LARGE)]" in out
    assert "-o 'typed.names=a b'  [list of texts]" in out
    rows = {
        row["name"]: row for row in json.loads(objbench("info", "typed", "--json", *typed).out)["options"]
    }
    assert rows["layers"]["default"] == [32, 64]
    assert rows["size"]["default"] == "SMALL"


@pytest.mark.parametrize("words", ["info refused", "run --plan --models refused --data squares"])
def test_a_config_of_other_types_is_refused_by_every_command(words: str, typed: list[str]) -> None:
    ran = objbench(*words.split(), *typed)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("objbench: refused.table: the type of an option cannot be dict[str, int]; ")
    assert len(ran.err.splitlines()) == 1


def test_check_refuses_it_too(typed: list[str]) -> None:
    ran = objbench("check", "refused", *typed)
    assert ran.code == 1
    assert (
        "got:      refused.table: the type of an option cannot be dict[str, int]; it can be bool, " in ran.out
    )
