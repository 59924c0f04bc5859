"""What is the same for every plugin: how it registers."""

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
EXPECTED = "importing the module that registers the plugin imports neither torch nor anything as heavy"

_IMPORT = (
    "import importlib, json, sys; sys.stdout, out = sys.stderr, sys.stdout; "
    "[importlib.import_module(name) for name in {modules!r}]; "
    "print(json.dumps([name for name in {heavy!r} if name in sys.modules]), file=out)"
)


CODE = "the code that its figures depend on is found: files of its own package, reached by import"


def code(registry: Registry, kind: str, name: str) -> str:
    """Names the files that are in a key, and the packages whose code is not."""
    table: dict[str, dict[str, ModelSpec | DataSpec | MetricSpec | ClustererSpec]] = {
        "model": {**registry.models},
        "data set": {**registry.data},
        "metric": {**registry.metrics},
        "clusterer": {**registry.clusterers},
    }
    target = table[kind][name].target
    files = clusterer_code_of(target) if kind == "clusterer" else code_of(target)
    others = foreign(target)
    return f"{len(files)} files in the key" + (f"; not {', '.join(others)}, imported too" if others else "")


def light(registry: Registry, kind: str, name: str) -> str:
    """Imports what its package registers by in a Python of its own, and looks at what that brought in."""
    owner = registry.owners[kind, name][0]
    if Path(owner).is_file():
        raise DoesNotApply(
            "a file is loaded only when it is named, so it may import torch; a package may not"
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
