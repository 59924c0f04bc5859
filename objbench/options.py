"""Typed options: what a plugin's config dataclass is made of, and how `-o name.key=value` is read into it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

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
) -> Any:
    """A dataclass field with its meaning and the values it may take.

    low, high: inclusive bounds; above: exclusive lower bound; choices: the words allowed. identity: False
    keeps the field out of a cell's identity; right for a path, whose content a fingerprint names instead.
    """
    limits = {"low": low, "high": high, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata={"meaning": meaning, "identity": identity, **limits})


Settings = Mapping[tuple[str, str], Mapping[str, Any]]
"""(protocol, data) -> config values that differ from the defaults there; "*" is any."""


def settings_for(table: Settings, protocol: str, data: str) -> dict[str, Any]:
    """The values of all rows for this protocol and data set; later rows go over earlier ones."""
    chosen: dict[str, Any] = {}
    for (for_protocol, for_data), values in table.items():
        if for_protocol in ("*", protocol) and for_data in ("*", data):
            chosen |= values
    return chosen


def widths(text: str, key: str) -> tuple[int, ...]:
    """Widths of layers written as "256-128". ValueError, naming the option, when they are not."""
    found = tuple(int(w) if w.isdecimal() else 0 for w in text.split("-"))
    if min(found) < 1:
        raise ValueError(f"{key}={text} is not like 256-128")
    return found


@dataclasses.dataclass(frozen=True)
class OptionRow:
    """One config field, as `objbench info` shows it."""

    name: str
    type: str
    default: Any
    meaning: str
    allowed: str


def describe(config: type) -> list[OptionRow]:
    """Every field of a config dataclass."""
    hints = get_type_hints(config)
    return [
        OptionRow(
            f.name, _type_name(hints[f.name]), f.default, f.metadata.get("meaning", ""), _allowed(f.metadata)
        )
        for f in dataclasses.fields(config)
    ]


def build(config: type, owner: str, *layers: Mapping[str, Any]) -> Any:
    """An instance of `config`: its defaults, overlaid by each layer in turn.

    Values given as text are converted to the field's type. owner: the plugin's name, for messages.
    Raises UsageError on an unknown key (with the nearest) or a value of the wrong type or range.
    """
    fields = {f.name: f for f in dataclasses.fields(config)}
    hints = get_type_hints(config)
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key not in fields:
                raise unknown(f"{owner} option", key, fields)
            values[key] = _checked(f"{owner}.{key}", value, hints[key], fields[key].metadata)
    try:
        return config(**values)
    except ValueError as error:  # a dataclass may check in __post_init__ what no single field can
        raise UsageError(f"{owner}: {error}") from None


def _checked(key: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    kind = hint
    if get_origin(hint) is not None and type(None) in get_args(hint):  # `int | None`
        if value is None or value == "none":
            return None
        kind = next(a for a in get_args(hint) if a is not type(None))
    converted = _converted(key, value, kind)
    choices = limits.get("choices")
    if choices and converted not in choices:
        raise UsageError(f"{key}={value} is not one of: {', '.join(choices)}")
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
        outside = (
            (low is not None and converted < low)
            or (high is not None and converted > high)
            or (above is not None and converted <= above)
            or not math.isfinite(converted)
        )
        if outside:
            raise UsageError(f"{key}={value} is out of range: {_allowed(limits) or 'must be finite'}")
    return converted


def _converted(key: str, value: Any, kind: Any) -> Any:
    wrong = UsageError(f"{key}={value} is not {_article(_type_name(kind))}")
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise wrong
    if kind is str:
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise wrong from None
    if kind is int:
        if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
            return int(value)  # exact beyond 2**53
        if not number.is_integer():
            raise wrong
        return int(number)
    return number


def _type_name(hint: Any) -> str:
    if get_origin(hint) is not None:
        return " or ".join(_type_name(a) for a in get_args(hint))
    return {int: "integer", float: "number", bool: "boolean", str: "text", type(None): "none"}.get(
        hint, str(hint)
    )


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _allowed(limits: Mapping[str, Any]) -> str:
    parts = []
    if limits.get("choices"):
        parts.append("one of " + ", ".join(limits["choices"]))
    for name, words in (("above", "above"), ("low", "at least"), ("high", "at most")):
        if limits.get(name) is not None:
            parts.append(f"{words} {limits[name]:g}")
    return ", ".join(parts)
