"""The provenance of a figure: everything that is needed to reproduce it, or to see why it differs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

import objbench
from objbench.cells.about import plugin_of
from objbench.plugins import Registry
from objbench.train.machine import device_name

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "safetensors")


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, git state, machine and date, as JSON values."""
    return {
        "objbench": objbench.__version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "platform": platform.platform(),
        "git": git_state(Path(objbench.__file__).parent, "__init__.py"),
        "node": os.environ.get("OBJBENCH_NODE") or platform.node(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "started": now(),
    }


def now() -> str:
    """The date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def where_from(registry: Registry, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Kind -> where the plugin of that name is from: see `plugin_of`; with `git` (as `git_state`) where that is an
    editable checkout, or a file in one. names: kind, as in `Registry.owners`, -> name."""
    found: dict[str, dict[str, Any]] = {}
    for kind, name in names.items():
        plugin: dict[str, Any] = dict(plugin_of(registry, kind, name))
        git = None
        if "file" in plugin:
            file = Path(registry.owners[kind, name][0])
            git = git_state(file.parent, file.name)
        elif "name" in plugin and (folder := editable_folder(plugin["name"])):
            git = git_state(folder, ".")
        found[kind] = plugin | ({"git": git} if git else {})
    return found


def editable_folder(package: str) -> Path | None:
    """The source folder of a distribution that is installed in editable mode; None for other distributions."""
    try:
        said = json.loads(distribution(package).read_text("direct_url.json") or "{}")
        folder = Path(url2pathname(urlsplit(said["url"]).path)) if said["dir_info"]["editable"] else None
    except (PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    return folder if folder and folder.is_dir() else None


def git_state(folder: Path, known: str) -> dict[str, Any] | None:
    """The commit of the git checkout that contains a folder, and whether files differ from it; None without a checkout.

    known: a file in the folder, or "." for any file. Git must track it: else the folder is only an installation inside
    an unrelated checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", known):
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
