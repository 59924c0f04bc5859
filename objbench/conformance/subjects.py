"""Finds the plugins that a name, file or package stands for."""

from __future__ import annotations

from pathlib import Path

from objbench.cells.overrides import Overrides
from objbench.conformance import detections, devices, models, training
from objbench.conformance.clusterers import ClustererSubject
from objbench.conformance.data import DataSubject
from objbench.conformance.kit import Subject
from objbench.conformance.metrics import MetricSubject
from objbench.conformance.models import ModelSubject
from objbench.errors import UsageError, unknown
from objbench.plugins import Registry

OF_MODELS = [*models.CHECKS, *training.CHECKS, *detections.CHECKS, *devices.CHECKS]


def find_subjects(registry: Registry, what: str, overrides: Overrides | None = None) -> list[Subject]:
    """What `what` means: a model, data set, metric or clusterer, else all that a plugin file or a package registers.

    The registry must have been loaded with the file. UsageError when nothing is found, or the plugin did not load.
    """
    overrides = overrides or {}
    path = str(Path(what).resolve())
    names = [(kind, name) for kind, name in registry.owners if name == what]
    if not names:
        names = [
            key for key, owners in registry.owners.items() if path in owners or what in map(_package, owners)
        ]
    if not names:
        for plugin in registry.plugins:
            if what in (plugin.name, _package(plugin.source), plugin.module.partition(".")[0]) or (
                path == plugin.source
            ):
                nothing = "registers no model, data set, metric or clusterer; its hooks do that, see docs/plugins.md"
                reason = f"did not load: {plugin.error}" if plugin.error else nothing
                raise UsageError(f"the plugin '{plugin.name}' of {plugin.source} {reason}")
        packages = {_package(plugin.source) for plugin in registry.plugins}
        known = {*registry.models, *registry.data, *registry.metrics, *registry.clusterers}
        raise unknown("plugin", what, known | packages)
    return [_subject(registry, kind, name, overrides) for kind, name in names]


def _package(source: str) -> str:
    """ "objbench 0.1.0" -> "objbench"."""
    return source.rpartition(" ")[0] or source


def _subject(registry: Registry, kind: str, name: str, overrides: Overrides) -> Subject:
    if kind == "model":
        return ModelSubject(registry, registry.model(name), overrides.get(name, {}), OF_MODELS)
    if kind == "data set":
        return DataSubject(registry, registry.data_spec(name), overrides.get(name, {}))
    if kind == "clusterer":
        return ClustererSubject(registry, registry.clusterer(name), overrides.get(name, {}))
    return MetricSubject(registry, registry.metric(name))
