"""Where a figure comes from: what somebody needs to get it again, or to see why not."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import objbench
from objbench.train.machine import device_name

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "safetensors")


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, git state, machine and date, as JSON values."""
    return {
        "objbench": objbench.__version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "platform": platform.platform(),
        "git": git_state(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "started": now(),
    }


def now() -> str:
    """The date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Commit, and whether files differ from it, of the checkout objbench runs from; None without one."""
    folder = Path(objbench.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # installed below somebody else's checkout is no checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
