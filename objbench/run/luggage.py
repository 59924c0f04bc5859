"""What a training needs beside its own folder when it runs on another machine: plugin files, data, and versions that
are the same there."""

from __future__ import annotations

import io
import os
import platform
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import objbench
from objbench.cells.code import clusterer_code_of, code_of, digest
from objbench.cells.identity import OWN, Cell, Training
from objbench.cells.matrix import code_now
from objbench.errors import UsageError, error_line
from objbench.plugins import Registry

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "safetensors")
"""Packages on whose version figures may depend."""
TRAVELS = ("OBJBENCH_PLUGINS",)
"""Environment variables that are the same on every machine."""
MOST_MB = 2000
"""More data than this is not sent."""

Names = list[tuple[str, str, str]]
"""(model, data set, clusterer) of each kind of cell."""


@dataclass(frozen=True)
class PluginFile:
    """A file of `--plugin`, with the files beside it that it imports."""

    name: str
    files: dict[str, bytes] = field(repr=False)
    """By their paths in the folder of the plugin."""


def names_of(cells: Iterable[Cell]) -> Names:
    """The plugins of these cells."""
    found: dict[tuple[str, str, str], None] = {}
    for cell in cells:
        identity = cell.training.identity
        found[identity["model"], identity["data"], cell.clusterer["name"]] = None
    return list(found)


def facts(registry: Registry, names: Names) -> dict[str, str]:
    """What must be the same on all machines, and how it is on this one. Runs no plugin's code, and imports none.

    What is not there has the value "missing", with the plugins that could not be loaded.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"Python": python, "objbench": objbench.__version__}
    found |= {name: _version(name) for name in PACKAGES}
    broken = "; ".join(
        f"{plugin.name} did not load: {plugin.error}" for plugin in registry.plugins if plugin.error
    )
    missing = f"missing ({broken})" if broken else "missing"
    for model, data, clusterer in names:
        used = {"model": model, "data set": data} | ({"clusterer": clusterer} if clusterer != OWN else {})
        for kind, name in used.items():
            owner = registry.owners.get((kind, name), [""])[0]
            found[f"the {kind} '{name}'"] = _source(owner) or missing
        try:
            codes = {name: digest(code) for name, code in code_now(registry, model, data).items()}
            if clusterer != OWN:
                codes["clusterer"] = digest(clusterer_code_of(registry.clusterer(clusterer).target))
        except (UsageError, ModuleNotFoundError) as error:
            found[f"the plugins of {model} on {data}"] = error_line(error)
            continue
        found[f"the code of '{model}'"] = codes["model_code"]
        found[f"the code of '{data}'"] = codes["data_code"]
        found[f"objbench's code for '{model}' on '{data}'"] = codes["harness_code"]
        if clusterer != OWN:
            found[f"the code of '{clusterer}'"] = codes["clusterer"]
    for name in registry.metrics:
        found[f"the metric '{name}'"] = _source(registry.owners["metric", name][0])
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What differs on another machine, most telling first; both as `facts` gives them."""
    return [
        f"{name} is {there.get(name, 'missing')}, here {value}"
        for name, value in here.items()
        if there.get(name) != value
    ]


def plugin_files(registry: Registry, files: Iterable[str]) -> list[PluginFile]:
    """The files of `--plugin`, as they are to be sent: all that they import from their own folders."""
    found = []
    for file in files:
        path = Path(file).resolve()
        tables: list[Mapping[str, Any]] = [
            registry.models,
            registry.data,
            registry.clusterers,
            registry.metrics,
        ]
        kinds = ("model", "data set", "clusterer", "metric")
        modules = {path.stem}
        for kind, table in zip(kinds, tables, strict=True):
            for name, spec in table.items():
                if str(path) in registry.owners.get((kind, name), []):
                    modules.add(str(spec.target).partition(":")[0])
        names = {name for module in modules for name in code_of(module)}
        there = {name: path.parent / name for name in names}
        sent = {name: file.read_bytes() for name, file in there.items() if file.is_file()}
        found.append(PluginFile(path.name, sent | {path.name: path.read_bytes()}))
    return found


def paths_of(training: Training) -> Iterator[str]:
    """The values of options that are paths on this machine. They are in no key."""
    for kind in ("model_config", "data_config"):
        config = getattr(training, kind)
        for name, value in config.items():
            if (
                name not in training.identity[kind]
                and isinstance(value, str)
                and value
                and os.path.exists(value)
            ):
                yield value


def with_paths(training: Training, places: Mapping[str, str]) -> Training:
    """The same training, whose files lie at other places. places: path here -> path there."""
    configs = {kind: dict(getattr(training, kind)) for kind in ("model_config", "data_config")}
    for kind in configs:
        for name, value in configs[kind].items():
            if name not in training.identity[kind] and isinstance(value, str) and value in places:
                configs[kind][name] = places[value]
    return replace(training, model_config=configs["model_config"], data_config=configs["data_config"])


def archive(path: str) -> bytes:
    """A file, or a folder with all that is in it. UsageError when it is too large to be sent."""
    place = Path(path)
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    if (mb := sum(file.stat().st_size for file in files) / 1e6) > MOST_MB:
        raise UsageError(
            f"{path} has {mb:,.0f} MB, and a node lacks it; over {MOST_MB:,} MB are not sent: put it at the same path "
            "on every node"
        )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(path, place.name)
    return stream.getvalue()


def unarchive(data: bytes, to: Path) -> Path:
    """Writes what `archive` read below the folder `to`; the path of it."""
    to.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        name = tar.getnames()[0].partition("/")[0]
        tar.extractall(to, filter="data")
    return to / name


def _source(owner: str) -> str:
    """A plugin's distribution and version, or the name of its file: its folder is another on every machine."""
    return Path(owner).name if os.path.isabs(owner) else owner


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
