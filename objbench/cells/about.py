"""What is kept beside a training's identity, for people: the names that its plugins went by, and where they came from.

None of it is part of a key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objbench.cells.identity import identity_of
from objbench.cells.overrides import build_clusterer_config, build_model_config, build_source_config
from objbench.hookspecs import ClustererSpec, DataSpec, ModelSpec
from objbench.options import as_json, as_text
from objbench.plugins import Registry

KINDS = {"model": "model", "data": "data set"}
"""Part of an identity that names a plugin -> what `Registry.owners` calls its kind."""
NOT_SAID = ("name", "summary", "target", "generate", "check")
"""Fields of a spec that no table needs."""

About = dict[str, dict[str, Any]]
"""As `Training.about`."""


def own_of_source(registry: Registry, name: str, protocol: str, config: Any) -> dict[str, Any]:
    """As `_own`, of a data set under a protocol, and its config as it is to run. Runs the plugin's code."""
    return _own(config, build_source_config(registry, name, protocol, {}))


def own_of_detector(registry: Registry, name: str, protocol: str, data: str, config: Any) -> dict[str, Any]:
    """As `_own`, of a detector under a protocol on a data set. Runs the plugin's code."""
    return _own(config, build_model_config(registry, name, protocol, data, {}))


def own_of_clusterer(registry: Registry, name: str, protocol: str, data: str, config: Any) -> dict[str, Any]:
    """As `_own`, of a clusterer under a protocol on a data set. Runs the plugin's code."""
    return _own(config, build_clusterer_config(registry, name, protocol, data, {}))


def _own(config: Any, own: Any) -> dict[str, Any]:
    """`settings`: the config without the user's options, as an identity has it. `given`: the user's options that are in
    no identity, of a path the last part."""
    outside = [f.name for f in dataclasses.fields(own) if not f.metadata.get("identity", True)]
    chosen, usual = as_json(config), as_json(own)
    given = {name: chosen[name] for name in outside if chosen[name] != usual[name]}
    return {
        "settings": identity_of(own),
        "given": {name: re.split(r"[/\\]", str(as_text(v)).rstrip("/\\"))[-1] for name, v in given.items()},
    }


def about(
    registry: Registry,
    model: str,
    data: str,
    protocol: str,
    own_model: Mapping[str, Any],
    own_data: Mapping[str, Any],
) -> About:
    """What `Training.about` holds, by the plugins as they are registered now. Runs no code of theirs.

    own_model, own_data: what `own_of_detector` and `own_of_source` gave.
    """
    specs: dict[str, ModelSpec | DataSpec] = {
        "model": registry.model(model),
        "data": registry.data_spec(data),
    }
    own = {"model": own_model, "data": own_data}
    known: About = {}
    for kind, spec in specs.items():
        plugin = plugin_of(registry, KINDS[kind], spec.name)
        known[kind] = {**spec_words(spec, protocol), "plugin": plugin, **own[kind]}
    return known


def about_clusterer(
    registry: Registry, name: str, model: str, protocol: str, own: Mapping[str, Any]
) -> dict[str, Any]:
    """What `Cell.about` holds, by the plugins as they are registered now. Runs no code of theirs.

    own: what `own_of_clusterer` gave.
    """
    words = spec_words(registry.clusterer(name), protocol)
    return {
        **words,
        "plugin": plugin_of(registry, "clusterer", name),
        "replaces": registry.model(model).clusters,
        **own,
    }


def spec_words(spec: ModelSpec | DataSpec | ClustererSpec, protocol: str) -> dict[str, Any]:
    """What a spec says for tables, as JSON values; of what depends on the protocol, the part for this one."""
    words = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in NOT_SAID}
    if isinstance(spec, ModelSpec | ClustererSpec):
        words["differs"] = spec.differs_under(protocol)
    return words


def plugin_of(registry: Registry, kind: str, name: str) -> dict[str, str]:
    """Where a name comes from: `name` and `version` of the distribution, or the `file` without its folder.

    kind: as in `Registry.owners`. Empty when it is not known.
    """
    source = registry.owners.get((kind, name), [""])[0]
    if not source:
        return {}
    if Path(source).is_absolute():
        return {"file": Path(source).name}
    package, _, version = source.rpartition(" ")
    return {"name": package, "version": version}


def package_words(plugin: Mapping[str, str]) -> str:
    """What `plugin_of` gives, in words; "" when it is not known."""
    if "file" in plugin:
        return f"the file {plugin['file']}"
    return f"the package {plugin['name']} {plugin['version']}" if "name" in plugin else ""


def is_registered(registry: Registry, kind: str, name: str) -> bool:
    """Whether exactly one plugin registers a name, so that its spec can be used. kind: one of KINDS, or "clusterer"."""
    known: dict[str, Mapping[str, Any]] = {
        "model": registry.models,
        "data": registry.data,
        "clusterer": registry.clusterers,
    }
    return name in known[kind] and name not in registry.clashes(KINDS.get(kind, kind))
