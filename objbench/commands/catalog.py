"""`objbench list`, `info` and `plugins`: what exists, and which options it takes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from objbench.cells.protocols import PROTOCOLS
from objbench.commands.shared import json_option, plugin_option
from objbench.errors import unknown
from objbench.guarded import calling
from objbench.hookspecs import SAID, ClustererSpec, ModelSpec
from objbench.plugins import Registry, load_plugins, load_target

KINDS = {"models": "model", "data": "data set", "metrics": "metric", "clusterers": "clusterer"}
"""What `objbench list` takes -> what `Registry.owners` calls that kind."""


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)))
@json_option
@plugin_option
def list_(kind: str, as_json: bool, plugin_files: tuple[str, ...]) -> None:
    """List the models, data sets, metrics or clusterers there are."""
    registry = load_plugins(plugin_files)
    specs = getattr(registry, kind)
    clashes = registry.clashes(KINDS[kind])
    summaries = {name: spec.summary for name, spec in specs.items()}
    summaries |= {name: "" for name in clashes}  # neither of the two is meant
    if as_json:
        rows = [{"name": n, "summary": s, "claimed_by": clashes.get(n, [])} for n, s in summaries.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(map(len, summaries), default=0)
    for name, summary in summaries.items():
        owners = clashes.get(name)
        line = f"CLASH: {len(owners)} plugins register it: {', '.join(owners)}" if owners else summary
        click.echo(f"{name:<{width}}  {line}")


@click.command()
@json_option
@plugin_option
def plugins(as_json: bool, plugin_files: tuple[str, ...]) -> None:
    """List every plugin, where it comes from, and the error of each that failed to load."""
    registry = load_plugins(plugin_files)
    if as_json:
        click.echo(json.dumps([asdict(p) for p in registry.plugins], indent=2))
        return
    for plugin in registry.plugins:
        module = f"  ({plugin.module})" if plugin.module else ""
        click.echo(f"{plugin.name:<14}  {plugin.source}{module}")
        if plugin.error:
            click.echo(f"{'':<14}  NOT LOADED: {plugin.error}")
    for (kind, name), owners in registry.owners.items():
        if len(owners) > 1:
            click.echo(f"{name:<14}  CLASH: {len(owners)} plugins register this {kind}: {', '.join(owners)}")


@click.command()
@click.argument("name")
@json_option
@plugin_option
def info(name: str, as_json: bool, plugin_files: tuple[str, ...]) -> None:
    """Show what a model, data set, metric or clusterer is, and every option it takes, per protocol."""
    registry = load_plugins(plugin_files)
    facts = _facts(registry, name)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return

    from objbench.options import as_text

    click.echo(f"{facts['name']} ({facts['kind']}): {facts['summary']}\nfrom {facts['target']}\n")
    click.echo(facts["doc"])
    for title, words in facts["said"].items():
        click.echo("\n" + click.wrap_text(f"{title}: {words}", 100, subsequent_indent="    "))
    outside = f"; that of {', '.join(facts['foreign'])} is not" if facts["foreign"] else ""
    click.echo(f"\ncode in the key of its cells: {', '.join(facts['code']) or 'none'}{outside}")
    for row in facts["options"]:
        allowed = f" ({row['allowed']})" if row["allowed"] else ""
        default = shlex.quote(f"{name}.{row['name']}={as_text(row['default'])}")
        click.echo(f"\n  -o {default}  [{row['type']}{allowed}]")
        click.echo(f"      {row['meaning']}")
        for label, value in row["settings"].items():
            click.echo(f"      {label}: {as_text(value)}")


def _facts(registry: Registry, name: str) -> dict[str, Any]:
    from inspect import getdoc

    from objbench.cells.code import clusterer_code_of, code_of, foreign
    from objbench.options import as_json, describe

    kinds: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
        "model": (registry.models, registry.model),
        "data set": (registry.data, registry.data_spec),
        "metric": (registry.metrics, registry.metric),
        "clusterer": (registry.clusterers, registry.clusterer),
    }
    kind = next((kind for kind, taken in registry.owners if name == taken), None)
    if kind is None:
        raise unknown("plugin", name, [n for known, _ in kinds.values() for n in known])
    spec = kinds[kind][1](name)
    with calling(f"'{name}'", "its module"):
        target = load_target(spec.target)
    options = []
    if kind != "metric":
        settings: dict[str, dict[str, Any]] = {}
        with calling(f"'{name}'", "its settings"):
            for protocol in PROTOCOLS:
                if kind == "data set":
                    settings[protocol] = target.settings(protocol)
                else:  # those of a model or a clusterer may differ by data set
                    for data, of_data in registry.data.items():
                        here = dict(target.settings(protocol, data))
                        if kind == "clusterer" and of_data.clusters:
                            here["clusters"] = of_data.clusters
                        settings[f"{protocol}, {data}"] = here
        for row in describe(target.Config, name):
            here = {
                label: as_json(values[row.name]) for label, values in settings.items() if row.name in values
            }
            options.append({**asdict(row), "settings": here})
    return {
        "name": name,
        "kind": kind,
        "summary": spec.summary,
        "target": spec.target,
        "doc": getdoc(target) or "",
        "code": sorted((clusterer_code_of if kind == "clusterer" else code_of)(spec.target)),
        "foreign": foreign(spec.target),
        "said": _oracle(kind, target) | _said(spec) if isinstance(spec, ModelSpec | ClustererSpec) else {},
        "options": options,
    }


def _oracle(kind: str, target: Any) -> dict[str, str]:
    """What an oracle is given, under its title; nothing for others."""
    given = "the true boxes" if kind == "model" else "the true labels, to fit"
    is_oracle = getattr(target, "oracle", False)
    return {"oracle": f"it is given {given}; a bound to compare with, marked in tables"} if is_oracle else {}


def _said(spec: ModelSpec | ClustererSpec) -> dict[str, str]:
    """What a model's or a clusterer's spec says beside its name, each under its title, where it says anything."""
    said = {title: getattr(spec, part) for part, title in SAID.items() if part != "differs"}
    differs = {
        f"{SAID['differs']} under {'every protocol' if p == '*' else p}": words
        for p, words in spec.differs.items()
    }
    return {title: words for title, words in (said | differs).items() if words}
