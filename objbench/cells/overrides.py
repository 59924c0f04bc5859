"""`-o name.key=value`: reads the user's options, and builds the configs of plugins from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from objbench.errors import UsageError
from objbench.options import build, refuse_contradictions
from objbench.plugins import Registry, load_target

Overrides = Mapping[str, Mapping[str, str]]
"""Plugin name -> option -> the value as the user typed it."""


def parse_overrides(options: Iterable[str]) -> dict[str, dict[str, str]]:
    """`("gmair.lr=1e-4",)` -> `{"gmair": {"lr": "1e-4"}}`; a later value of the same key wins.

    Raises UsageError when a text is not of that form.
    """
    overrides: dict[str, dict[str, str]] = {}
    for text in options:
        target, equals, value = text.partition("=")
        name, dot, key = (part.strip() for part in target.partition("."))
        if not (equals and dot and name and key):
            raise UsageError(f"-o {text}: write it as NAME.KEY=VALUE, such as -o gmair.lr=1e-4")
        overrides.setdefault(name, {})[key] = value.strip()
    return overrides


def build_model_config(registry: Registry, model: str, protocol: str, data: str, overrides: Overrides) -> Any:
    """The config of a detector: its defaults, its settings for protocol and data set, the user's options.

    Raises UsageError on an unknown model or option, a bad value, or options that contradict each other.
    """
    cls = load_target(registry.model(model).target)
    return _built(cls.Config, model, [cls.settings(protocol, data)], overrides)


def build_clusterer_config(
    registry: Registry, name: str, protocol: str, data: str, overrides: Overrides
) -> Any:
    """The config of a clusterer: its defaults, its settings for protocol and data set, the number of clusters that the
    data set's spec gives to all clusterers, the user's options.

    Raises UsageError on an unknown clusterer or option, a bad value, or options that contradict each other.
    """
    cls = load_target(registry.clusterer(name).target)
    clusters = registry.data[data].clusters if data in registry.data else 0
    layers = [cls.settings(protocol, data), {"clusters": clusters} if clusters else {}]
    config = _built(cls.Config, name, layers, overrides)
    if not isinstance(getattr(config, "clusters", None), int):
        raise UsageError(
            f"{name}: its Config has no option 'clusters'; make it a subclass of ClustererConfig"
        )
    return config


def build_source_config(registry: Registry, name: str, protocol: str, overrides: Overrides) -> Any:
    """The config of a data set: its defaults, its settings for the protocol, the user's options.

    Raises UsageError on an unknown data set or option, a bad value, or options that contradict each other.
    """
    cls = load_target(registry.data_spec(name).target)
    return _built(cls.Config, name, [cls.settings(protocol)], overrides)


def _built(config: type, name: str, layers: list[Mapping[str, Any]], overrides: Overrides) -> Any:
    given = overrides.get(name, {})
    built = build(config, name, *layers, given)
    refuse_contradictions(built, name, given)
    return built
