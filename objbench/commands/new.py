"""`objbench new`: a plugin package that works as it is, to be changed into one's own."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from objbench.errors import UsageError
from objbench.plugins import load_plugins

KINDS = ["model", "data", "metric", "clusterer"]


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option("--to", "folder", metavar="DIR", help="A folder that is new or empty; ./NAME when not given.")
def new(kind: str, name: str, folder: str | None) -> None:
    """Write a package with a new model, data set, metric or clusterer, which works as it is.

    Then: pip install -e DIR, and objbench check NAME.
    """
    module = module_name(name)
    target = Path(folder or name)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} is there already and not an empty folder; choose another with --to")
    class_name = "".join(part.capitalize() for part in module.split("_"))
    words = {"new_plugin": module, "new-plugin": name, "NewPlugin": class_name}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
            write_tree(files("objbench") / "templates" / kind, Path(beside, target.name), words)
            os.replace(Path(beside, target.name), target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from None
    click.echo(
        f"{target}: next, pip install -e '{target}[test]', then objbench check {name}; {target}/README.md says more"
    )


def module_name(name: str) -> str:
    """The module of a plugin of that name. UsageError when it cannot be one, or there is one already."""
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise UsageError(
            f"'{name}' cannot name a plugin; take lower-case letters, digits and hyphens, such as my-detector"
        )
    registry = load_plugins()
    if name in {taken for _, taken in registry.owners}:
        raise UsageError(
            f"there is a plugin named '{name}' already (objbench plugins lists them); choose another"
        )
    if importlib.util.find_spec(module) is not None:
        raise UsageError(f"a Python module named '{module}' is installed already; choose another name")
    return module


def write_tree(source: Traversable, target: Path, words: dict[str, str]) -> None:
    """Copies a folder of text files, each of `words` replaced in names and contents."""
    target.mkdir()
    for entry in source.iterdir():
        name = replaced(entry.name, words)
        if entry.is_dir():
            if name != "__pycache__":
                write_tree(entry, target / name, words)
        else:
            (target / name).write_text(replaced(entry.read_text("utf-8"), words), "utf-8")


def replaced(text: str, words: dict[str, str]) -> str:
    """The text with each of the words replaced."""
    return re.sub("|".join(words), lambda match: words[match.group()], text)
