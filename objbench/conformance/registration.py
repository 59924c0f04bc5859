"""Checks of registration, the same for every kind of plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from objbench.cells.code import clusterer_code_of, code_of, foreign
from objbench.conformance.kit import DoesNotApply, Wrong
from objbench.hookspecs import ClustererSpec, DataSpec, MetricSpec, ModelSpec
from objbench.plugins import Registry

HEAVY = ["torch", "torchvision", "numpy", "pandas", "matplotlib", "scipy", "sklearn"]
EXPECTED = f"the module that registers the plugin imports none of the slow packages {', '.join(HEAVY)}"

_IMPORT = (
    "import importlib, json, sys; sys.stdout, out = sys.stderr, sys.stdout; "
    "[importlib.import_module(name) for name in {modules!r}]; "
    "print(json.dumps([name for name in {heavy!r} if name in sys.modules]), file=out)"
)


CODE = "the code that its figures depend on can be found: the files of its own package that it imports"


def code(registry: Registry, kind: str, name: str) -> str:
    """Lists how many files are part of the key, and the imported packages that are not."""
    table: dict[str, dict[str, ModelSpec | DataSpec | MetricSpec | ClustererSpec]] = {
        "model": {**registry.models},
        "data set": {**registry.data},
        "metric": {**registry.metrics},
        "clusterer": {**registry.clusterers},
    }
    target = table[kind][name].target
    files = clusterer_code_of(target) if kind == "clusterer" else code_of(target)
    others = foreign(target)
    return f"{len(files)} files in the key" + (
        f"; imported but not in it: {', '.join(others)}" if others else ""
    )


def light(registry: Registry, kind: str, name: str) -> str:
    """Imports the registering modules of the plugin's package in a new process, and checks what they import."""
    owner = registry.owners[kind, name][0]
    if Path(owner).is_file():
        raise DoesNotApply(
            "a plugin file may import torch, because it is loaded only when it is named; a package may not"
        )
    modules = [p.module.partition(":")[0] for p in registry.plugins if p.source == owner and not p.error]
    ran = subprocess.run(
        [sys.executable, "-c", _IMPORT.format(modules=modules, heavy=HEAVY)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    if ran.returncode:
        raise Wrong(f"importing {', '.join(modules)}: {ran.stderr.strip().splitlines()[-1]}")
    if found := json.loads(ran.stdout):
        raise Wrong(f"importing {', '.join(modules)} imports {', '.join(found)}")
    return f"{', '.join(modules)}" if len(modules) == 1 else f"{len(modules)} modules of {owner}"
