"""Typed options: the fields of a plugin's config dataclass, and the parsing of `-o name.key=value`.

A value has three forms: the Python value in the config, JSON (`as_json`: stored in `cell.json`), and text
(`as_text`: written by a user). `build` reads all three.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum, Flag
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from objbench.errors import UsageError, unknown


def option(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    identity: bool = True,
    instead_of: Sequence[str] = (),
) -> Any:
    """A dataclass field with its description and its allowed values.

    The field's type is one of TYPES. low, high: inclusive bounds; above: exclusive lower bound; choices: the
    allowed words. In a tuple, they apply to each value. identity: False excludes the field from a cell's identity;
    use it for a path, because the fingerprint identifies the content instead. instead_of: names of options that have
    no effect when this one is set; a user cannot set both.
    """
    limits = {"low": low, "high": high, "above": above, "choices": choices}
    rules = {"identity": identity, "instead_of": tuple(instead_of)}
    return dataclasses.field(default=default, metadata={"meaning": meaning, **rules, **limits})


TYPES = (
    "bool, int, float, str, pathlib.Path, an Enum, a Literal of str, int or bool, tuple[...] of these, "
    "or one of these | None"
)
"""The types that an option can have. An optional one reads "none" as None, so "none" cannot be one of its words."""

Settings = Mapping[tuple[str, str], Mapping[str, Any]]
"""(protocol, data) -> config values that differ from the defaults; "*" matches any protocol or data set."""


def settings_for(table: Settings, protocol: str, data: str) -> dict[str, Any]:
    """The values of all rows for this protocol and data set; later rows override earlier rows."""
    chosen: dict[str, Any] = {}
    for (for_protocol, for_data), values in table.items():
        if for_protocol in ("*", protocol) and for_data in ("*", data):
            chosen |= values
    return chosen


def widths(text: str, key: str) -> tuple[int, ...]:
    """Parses layer widths written as "256-128". Raises ValueError with the option's name if the text is invalid."""
    found = tuple(int(w) if w.isdecimal() else 0 for w in text.split("-"))
    if min(found) < 1:
        raise ValueError(f"{key}={text} is not like 256-128")
    return found


@dataclasses.dataclass(frozen=True)
class OptionRow:
    """One config field, for `objbench info`."""

    name: str
    """The field's."""
    type: str
    """What its values are, in words."""
    default: Any
    """As JSON."""
    meaning: str
    """Its description, as given to `option`."""
    allowed: str
    """The limits or the words that values must keep to; empty where all are allowed."""


def describe(config: type, owner: str = "") -> list[OptionRow]:
    """Returns every option of a config dataclass. Raises UsageError if an option has an unsupported type."""
    return [
        OptionRow(
            name,
            _type_name(hint),
            as_json(default),
            f.metadata.get("meaning", ""),
            _allowed(hint, f.metadata),
        )
        for name, (f, hint, default) in _fields(config, owner or config.__name__).items()
    ]


def build(config: type, owner: str, *layers: Mapping[str, Any]) -> Any:
    """Makes an instance of `config`: its defaults, then each layer overrides the values before it.

    A value may have the field's type, or be its JSON or text form. owner: the plugin's name, for messages.
    Raises UsageError for an unknown key (the message gives the most similar key), for a value of the wrong type or
    out of range, for a field type not in TYPES, and for a default that does not have the type of its field.
    """
    fields = _fields(config, owner)
    values = {name: default for name, (_, _, default) in fields.items()}
    for layer in layers:
        for key, value in layer.items():
            if key not in fields:
                raise unknown(f"{owner} option", key, fields)
            field, hint, _ = fields[key]
            values[key] = _checked(f"{owner}.{key}", value, hint, field.metadata)
    try:
        return config(**values)
    except ValueError as error:  # a dataclass may check several fields together in __post_init__
        raise UsageError(f"{owner}: {error}") from None


def refuse_contradictions(config: Any, owner: str, given: Iterable[str]) -> None:
    """Raises UsageError if a user set an option of `config` together with one that it is `instead_of`.

    given: the keys that the user set. An option that was set to its default excludes nothing.
    """
    set_by_user = set(given)
    for f in dataclasses.fields(config):
        without = [key for key in f.metadata.get("instead_of", ()) if key in set_by_user]
        if f.name in set_by_user and without and getattr(config, f.name) != f.default:
            keys = ", ".join(f"{owner}.{key}" for key in without)
            raise UsageError(
                f"{owner}.{f.name} is set, so {keys} would have no effect; leave one or the other out"
            )


def list_depth(config: type, key: str) -> int:
    """How deep lists in the values of an option are: 0 for a single value, 1 for a list; 0 for an unknown option."""

    def depth(hint: Any) -> int:
        kind, _ = _kind_of(hint)
        if get_origin(kind) is not tuple:
            return 0
        return 1 + max(depth(a) for a in get_args(kind) if a is not ...)

    fields = _fields(config, config.__name__)
    return depth(fields[key][1]) if key in fields else 0


def as_json(value: Any) -> Any:
    """Converts a value or a whole config to JSON values: a Path to text, an Enum to its name, a tuple to a list."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    return value


def as_text(value: Any) -> str:
    """Converts a value to the text that a user writes after "=": words, numbers, "none", comma-separated values.

    A tuple that cannot be comma-separated, such as a tuple of tuples, is written as a JSON list.
    """
    value = as_json(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, list):
        return str(value)
    parts = [as_text(v) for v in value]
    plain = all(part and part == part.strip() and "," not in part and part[0] != "[" for part in parts)
    return ",".join(parts) if parts and plain else json.dumps(value)


def _fields(config: type, owner: str) -> dict[str, tuple[dataclasses.Field[Any], Any, Any]]:
    """Each option's field, type and default. Raises UsageError if a type or a default is invalid."""
    try:
        hints = get_type_hints(config)
    except Exception as error:  # for example, a name that is imported only for type checkers
        raise UsageError(f"the types of the options of {owner} cannot be read: {error}") from None
    found = {}
    for f in dataclasses.fields(config):
        if not f.init:
            continue
        key, hint = f"{owner}.{f.name}", hints[f.name]
        if not _readable(hint):
            name = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
            raise UsageError(f"{key}: the type of an option cannot be {name}; it can be {TYPES}")
        if f.default is not dataclasses.MISSING:
            default = f.default
        elif f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        else:
            raise UsageError(f"{key} has no default; every option needs one")
        try:
            read = _checked(key, default, hint, f.metadata)
        except UsageError as error:
            raise UsageError(f"the default of an option is wrong: {error}") from None
        if not _same(read, default):
            noun = _article(_type_name(hint))
            raise UsageError(f"the default of an option is wrong: {key}={default!r} is not {noun}")
        found[f.name] = (f, hint, read)
    return found


def _same(read: Any, default: Any) -> bool:
    """Whether a default already has its type; an integer counts as a float."""
    if isinstance(read, tuple) and isinstance(default, tuple):
        return all(map(_same, read, default))
    return read == default and (type(read) is type(default) or (type(read), type(default)) == (float, int))


# Types: each is a kind, or optional


def _kind_of(hint: Any) -> tuple[Any, bool]:
    """`X | None` as X and True; any other type as it is, and False."""
    if get_origin(hint) in (Union, types.UnionType, Literal):
        none = None if get_origin(hint) is Literal else type(None)
        rest = tuple(a for a in get_args(hint) if a is not none)
        if len(rest) < len(get_args(hint)) and rest:
            if get_origin(hint) is Literal:
                return Literal[rest], True
            if len(rest) == 1:
                return _kind_of(rest[0])[0], True
    return hint, False


def _readable(hint: Any) -> bool:
    """Whether it is one of TYPES."""
    kind, optional = _kind_of(hint)
    if kind in (bool, int, float, str, Path):
        return True
    if get_origin(kind) is tuple:
        parts = [a for a in get_args(kind) if a is not ...]
        return bool(parts) and all(map(_readable, parts))
    words = _words(kind)
    return bool(words) and not (optional and "none" in words)


def _words(kind: Any) -> dict[str, Any]:
    """The words of a Literal or an Enum -> their values; empty for other types, or if two words look the same."""
    if get_origin(kind) is Literal:
        values = get_args(kind)
        words = {as_text(v): v for v in values if type(v) in (str, int, bool)}
        return words if len(words) == len(values) else {}
    if isinstance(kind, type) and issubclass(kind, Enum) and not issubclass(kind, Flag):
        return {member.name: member for member in kind}
    return {}


def _parts(kind: Any, count: int) -> list[Any] | None:
    """The types of a tuple's `count` values; None if the tuple cannot have `count` values."""
    first, *rest = get_args(kind)
    if rest == [...]:
        return [first] * count
    return [first, *rest] if len(rest) + 1 == count else None


# Values


def _checked(key: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """Converts a value in any form to the field's type. Raises UsageError for a wrong type or range."""
    given = as_json(value)
    try:
        converted = _converted(given, hint)
    except (TypeError, ValueError, OverflowError):
        how = "; write it with commas, such as 3,4" if get_origin(_kind_of(hint)[0]) is tuple else ""
        if words := _allowed(hint, {}):
            raise UsageError(f"{key}={_shown(given)} is not {words}{how}") from None
        raise UsageError(f"{key}={_shown(given)} is not {_article(_type_name(hint))}{how}") from None
    choices = limits.get("choices")
    low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
    for v in _leaves(converted):
        if choices and as_json(v) not in choices:
            raise UsageError(f"{key}={_shown(given)} is not one of: {', '.join(choices)}")
        if isinstance(v, int | float) and not isinstance(v, bool | Enum):
            outside = (
                (low is not None and v < low)
                or (high is not None and v > high)
                or (above is not None and v <= above)
                or (isinstance(v, float) and not math.isfinite(v))
            )
            if outside:
                allowed = (_allowed(hint, limits) if math.isfinite(v) else "") or "must be finite"
                raise UsageError(f"{key}={_shown(given)} is out of range: {allowed}")
    return converted


def _leaves(value: Any) -> Iterator[Any]:
    """All values inside nested tuples; a value that is not a tuple itself; nothing for None."""
    if isinstance(value, tuple):
        for v in value:
            yield from _leaves(v)
    elif value is not None:
        yield value


def _converted(value: Any, hint: Any) -> Any:
    """Converts JSON or text to the type. Raises TypeError, ValueError or OverflowError if that is impossible."""
    kind, optional = _kind_of(hint)
    if optional and (value is None or value == "none"):
        return None
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        return (
            words[value.lower()] if isinstance(value, str) and value.lower() in words else _only(bool, value)
        )
    if kind is str or kind is Path:
        return kind(_only(str, value))
    if get_origin(kind) is tuple:
        return _tuple(value, kind)
    if words := _words(kind):
        return _meant(value, kind, words)
    if isinstance(value, bool):
        raise TypeError
    if kind is int and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)  # exact beyond 2**53
    if kind is int and isinstance(value, int):
        return value
    number = float(value)
    if kind is int and not number.is_integer():
        raise ValueError
    return int(number) if kind is int else number


def _only(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    """Parses a JSON list, a JSON list as text, or comma-separated values."""
    if isinstance(value, str) and value.strip().startswith("["):
        value = json.loads(value)
    elif isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    parts = _parts(kind, len(_only(list, value)))
    if parts is None:
        raise ValueError
    return tuple(map(_converted, value, parts))


def _meant(value: Any, kind: Any, words: Mapping[str, Any]) -> Any:
    """The value of a Literal, or the member of an Enum: by its name, else by its value."""
    text = as_text(value)
    if isinstance(value, str | int) and text in words:
        return words[text]
    (member,) = (m for m in words.values() if isinstance(m, Enum) and as_text(m.value) == text)
    return member


# Words


def _shown(value: Any) -> str:
    """A value as text for an error message of one line."""
    text = as_text(value)
    return text if text.isprintable() else repr(text)


def _type_name(hint: Any) -> str:
    kind, optional = _kind_of(hint)
    if optional:
        return f"{_type_name(kind)} or none"
    if get_origin(kind) is tuple:
        first, *rest = names = [_type_name(a) for a in get_args(kind) if a is not ...]
        if get_args(kind)[-1] is ...:
            return f"list of {_plural(first)}"
        if all(name == first for name in rest) and rest:
            return f"list of {len(names)} {_plural(first)}"
        return "list of " + ", ".join(map(_article, names))
    nouns = {int: "integer", float: "number", bool: "boolean", str: "text", Path: "path"}
    return nouns.get(kind, "word")


def _plural(noun: str) -> str:
    if noun.startswith("list of "):
        return f"lists{noun.removeprefix('list')}"
    noun, space, rest = noun.partition(" ")
    return f"{noun}s{space}{rest}"


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _allowed(hint: Any, limits: Mapping[str, Any]) -> str:
    """The limits on an option's value, in words; for a tuple, the limits on each value."""
    kind, optional = _kind_of(hint)
    parts = []
    if words := limits.get("choices") or list(_words(kind)):
        parts.append("one of " + ", ".join(words) + (" or none" if optional and _words(kind) else ""))
    elif get_origin(kind) is tuple:
        of_parts = (_allowed(a, {}) for a in get_args(kind) if a is not ...)
        parts += [f"each {words}" for words in dict.fromkeys(of_parts) if words]
    for name, words in (("above", "above"), ("low", "at least"), ("high", "at most")):
        if limits.get(name) is not None:
            parts.append(f"{words} {limits[name]:g}")
    return ", ".join(parts)
