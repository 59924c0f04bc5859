"""The code that a figure depends on, file by file, as it stands on the disk.

A key holds the code that runs: syntax trees, without comments, docstrings and what only registers a plugin, so that
a comment retires no finished cell. Which files these are follows from imports, which are read and not executed:

- of a plugin, all files that its target's module reaches by import inside its own top-level package, with the
  `__init__.py` of each package on the way; for a file given by `--plugin`, itself and the files beside it that it
  imports;
- of objbench, the numerics (`NUMERICS`) that the training loop and the plugins reach.

What a plugin imports from other packages cannot be covered; `foreign` names these packages. Neither are imports whose
name is computed, or files that code reads as data.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

NUMERICS = (
    "objbench.train",
    "objbench.score.detect",
    "objbench.score.random_state",
    "objbench.score.trained",
    "objbench.spatial",
    "objbench.latents",
    "objbench.masks",
    "objbench.detector",
    "objbench.clusterer",
)
"""The modules and packages of objbench that can change what a training gives; everything else only runs or reports."""
TRAINING = "objbench.train.outcome"
"""Where the harness's own part of a training begins."""
CLUSTERING = "objbench.score.clustering"
"""Where the harness's own part of clustering begins: it finds objects, cuts glimpses, fits and assigns."""

Code = dict[str, str]
"""File, named by its module ("pkg/models/net.py") -> digest of its syntax tree, 16 hex digits."""


def code_of(target: str) -> Code:
    """The code of the plugin that "package.module:Name" lies in. ModuleNotFoundError when there is none."""
    return _plugin(target)[0]


def numerics_of(*targets: str) -> Code:
    """The code of objbench that the training loop and these plugins reach."""
    imported = {name for target in targets for name in _plugin(target)[1] if _numeric(name)}
    return _walk([TRAINING, *imported], _numeric)[0]


def clusterer_code_of(target: str) -> Code:
    """The code that the clusters of a clusterer depend on: its plugin's, and that of objbench which cuts, fits and
    assigns or which the plugin imports. ModuleNotFoundError when there is no such plugin."""
    code, outside = _plugin(target)
    imported = {name for name in outside if _numeric(name)}
    mine = (CLUSTERING, "objbench.matching")
    return code | _walk([CLUSTERING, *imported], lambda name: name in mine or _numeric(name))[0]


def foreign(target: str) -> list[str]:
    """The packages outside its own, objbench and Python that the plugin imports: their code is in no key."""
    tops = {name.partition(".")[0] for name in _plugin(target)[1]}
    return sorted(tops - sys.stdlib_module_names - {"objbench"})


def digest(code: Code) -> str:
    """One digest of all the files, 16 hex digits."""
    return _short("".join(f"{name}\0{code[name]}\n" for name in sorted(code)).encode())


def changed_files(then: Code, now: Code) -> list[str]:
    """The files that are not as they were: changed, gone or new."""
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def _plugin(target: str) -> tuple[Code, set[str]]:
    """The files of a plugin, and the modules that they import from elsewhere."""
    module = target.partition(":")[0]
    top = module.partition(".")[0]
    code, outside = _walk([module], lambda name: name.partition(".")[0] == top or _beside(top, name))
    if not code:
        raise ModuleNotFoundError(f"no module named '{module}'")
    return code, outside


def _walk(modules: Iterable[str], inside: Callable[[str], bool]) -> tuple[Code, set[str]]:
    """Follows imports from `modules` through those that are `inside`: their files, and what they import else."""
    code: Code = {}
    outside: set[str] = set()
    waiting, seen = list(modules), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if not inside(name):
            outside.add(name)
            continue
        if "." in name:  # to import a module executes the packages around it first
            package = name.rpartition(".")[0]
            waiting += [package] if inside(package) else []
        if (file := _file(name)) is not None:  # else it names something in a module, not a module
            tail = "/__init__.py" if file.stem == "__init__" else file.suffix
            code[name.replace(".", "/") + tail], imported = _read(file, name)
            waiting += imported
    return code, outside


def _numeric(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in NUMERICS)


def _beside(top: str, module: str) -> bool:
    """Whether `module` is imported from the folder that the lone file `top` lies in, and that is its author's."""
    folder = _folder_of_file(top)
    return folder is not None and _folder_of_file(module.partition(".")[0], folder) == folder


def _folder_of_file(top: str, package_in: Path | None = None) -> Path | None:
    """The folder of a top-level module that is a file, not a package, and not one among all that is installed.

    package_in: a package there counts as well.
    """
    if top in sys.stdlib_module_names or (spec := _spec(top)) is None or not spec.origin:
        return None
    file = Path(spec.origin)
    folder = file.parent.parent if spec.submodule_search_locations else file.parent
    if folder.name in ("site-packages", "dist-packages") or (
        spec.submodule_search_locations and folder != package_in
    ):
        return None
    return folder


def _file(module: str) -> Path | None:
    """The file of a module, found without importing it; None when there is no such module."""
    top, *rest = module.split(".")
    if (spec := _spec(top)) is None:
        return None
    if not rest and not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    for location in spec.submodule_search_locations or ():
        base = Path(location, *rest)
        compiled = sorted(base.parent.glob(f"{base.name}.*.so")) if rest else []
        for file in (base / "__init__.py", *([base.with_name(f"{base.name}.py")] if rest else []), *compiled):
            if file.is_file():
                return file
    return None


def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that is half loaded, or says nothing of itself
        return None


def _read(file: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """The digest of a module's file, and the modules that it imports when it runs."""
    stat = file.stat()
    return _read_version(file, module, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1024)
def _read_version(file: Path, module: str, _changed: int, _size: int) -> tuple[str, tuple[str, ...]]:
    data = file.read_bytes()
    try:
        tree = ast.parse(data if file.suffix == ".py" else "(")
    except SyntaxError:  # compiled, or it will fail when it is imported
        return _short(data), ()
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    return _short(_dumped(tree).encode()), tuple(_imports(tree, package))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that are imported when a file of `package` runs; also names in them, which may be modules too."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and any("TYPE_CHECKING" in vars(n).values() for n in ast.walk(node.test)):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package) if package else base
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str):
                yield importlib.util.resolve_name(name, package) if name.startswith(".") and package else name


def _dumped(node: Any) -> str:
    """A syntax tree as text, alike in all versions of Python: what is empty or None is left out, as are positions,
    strings that stand for themselves (docstrings), and functions marked as hook implementations."""
    if isinstance(node, list):
        return "".join(_dumped(child) for child in node)
    if not isinstance(node, ast.AST):
        return repr(node)
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return ""
    if isinstance(node, ast.FunctionDef) and any("hookimpl" in ast.unparse(d) for d in node.decorator_list):
        return ""
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    return f"{type(node).__name__}({','.join(f'{name}={_dumped(value)}' for name, value in fields)})"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
