"""Matrix files: what `objbench run` is to do, as TOML; options on the command line take precedence.

    models = ["gmair", "spair+gmm"]
    data = ["multimnist"]
    protocol = "demo"
    seeds = 3                  # or "3-5,7", or [3, 4, 5, 7]
    workers = 2

    [options.gmair]
    recon = [4, 8, 16]         # a sweep: a row of each

A key is an option of the command, without its dashes. Paths are relative to the folder where the command runs, as on
the command line.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from objbench.cells.overrides import parse_overrides
from objbench.cells.sweeps import split
from objbench.errors import UsageError, unknown
from objbench.writing import write_file

OPTIONS = "options"
"""The table of plugins' options."""
NEVER = ("help", "force", "plan", "json", "save")
"""Options of `run` that are of one call, not of a matrix."""
READ = "objbench.matrix_file"
"""Where click's context keeps the file that was read."""

Keys = tuple[str, ...]


class MatrixFile:
    """A file that was read."""

    def __init__(self, path: str) -> None:
        """UsageError when it cannot be read, or is not TOML."""
        self.path = path
        try:
            self.text = Path(path).read_text("utf-8-sig")  # some editors begin a file with a byte order mark
            self.body = tomllib.loads(self.text)
        except OSError as error:
            hint = "" if Path(path).suffix else "; name detectors with --models"
            raise UsageError(f"the matrix file {path} cannot be read ({error.strerror}){hint}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{path} is not a TOML file: {error}") from None
        self.options: tuple[str, ...] = ()
        """Its plugins' options, as `-o` takes them."""

    def fault(self, keys: Keys, text: str) -> UsageError:
        """An error at the line of a key."""
        return UsageError(f"{self.path}, line {line_of(self.text, keys)}: {text}")

    def blamed(self, error: UsageError) -> UsageError:
        """The error with the line of the file that it is about, if it is about one."""
        text = str(error)
        for owner, options in self.body.get(OPTIONS, {}).items():
            for key in options:
                if f"{owner}.{key}=" in text or f"no {owner} option named '{key}'" in text:
                    return self.fault((OPTIONS, owner, key), text)
            if f"-o {owner}..." in text or f"named '{owner}'" in text:
                return self.fault((OPTIONS, owner), text)
        for key, value in self.body.items():
            words = value if isinstance(value, list) else [value]
            parts = [part for w in words if isinstance(w, str) for part in re.split(r"[,+\s]+", w) if part]
            if key != OPTIONS and any(f"'{part}'" in text for part in parts):
                return self.fault((key,), text)
        return error


def line_of(text: str, keys: Keys) -> int:
    """The line, from 1, on which a key of a TOML file stands; that of its table, where it is not found."""
    table: Keys = ()
    best = (0, 1)
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\[\]]+)\]", line):
            table = path = tuple(_names(header[1]))
        elif entry := re.match(r"\s*((?:[\w.\s-]|\"[^\"]*\"|'[^']*')+?)\s*=", line):
            path = (*table, *_names(entry[1]))
        else:
            continue
        if path[: len(keys)] == keys:
            return number
        if path == keys[: len(path)] and len(path) > best[0]:
            best = (len(path), number)
    return best[1]


def _names(dotted: str) -> Iterator[str]:
    for found in re.finditer(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)", dotted):
        yield found[1] or found[2] or found[3]


def from_matrix_file(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the argument FILE and the option --save; the options of plugins in the file come before those of
    the command line. The command calls `save` when what was asked turned out to be possible."""

    @click.argument(
        "matrix_file",
        metavar="[FILE.toml]",
        required=False,
        is_eager=True,
        callback=_read,
        expose_value=False,
    )
    @click.option(
        "--save",
        "save_to",
        metavar="FILE",
        expose_value=False,
        callback=_saved,
        help="Write what was asked for as a matrix file, which `objbench run FILE` does again.",
    )
    @functools.wraps(command)
    def with_file(**words: Any) -> None:
        read: MatrixFile | None = click.get_current_context().meta.get(READ)
        if read is None:
            command(**words)
            return
        words["options"] = (*read.options, *words["options"])
        try:
            command(**words)
        except UsageError as error:
            raise read.blamed(error) from None

    return with_file


def _read(context: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    read = MatrixFile(path)
    known = {name: p for p in context.command.params for name in _keys(p) if name not in NEVER}
    defaults: dict[str, Any] = {}
    for key, value in read.body.items():
        if key == OPTIONS:
            continue
        if key not in known:
            raise read.fault((key,), str(unknown("key", key, [*known, OPTIONS])))
        parameter = known[key]
        words = _words(read, key, value, parameter)
        try:
            parameter.process_value(context, words)
        except click.BadParameter as error:
            raise read.fault((key,), f"{key}: {error.message}") from None
        if parameter.name == "options":
            read.options += tuple(words)
        elif parameter.name is not None:
            defaults[parameter.name] = words
    read.options += tuple(_options(read))
    context.default_map = defaults
    context.meta[READ] = read


def _keys(parameter: click.Parameter) -> list[str]:
    """The keys that a parameter goes by: its long options."""
    return [name[2:] for name in parameter.opts if name.startswith("--")]


def _words(read: MatrixFile, key: str, value: Any, parameter: click.Parameter) -> Any:
    """A value of the file as the command line would give it."""
    scalar = isinstance(value, str | int | float)
    listed = isinstance(value, list) and all(isinstance(v, str | int) for v in value) and value
    if parameter.multiple and (isinstance(value, str) or (listed and all(isinstance(v, str) for v in value))):
        return [value] if isinstance(value, str) else value
    if parameter.multiple:
        raise read.fault((key,), f"{key} is {_shown(value)}; write a text or a list of texts, not empty")
    if key == "seeds" and listed:  # a number alone is how many
        return ",".join(f"{v}-{v}" if isinstance(v, int) else v for v in value)
    if not scalar:
        raise read.fault((key,), f"{key} is {_shown(value)}; write one value")
    return value if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _options(read: MatrixFile) -> Iterator[str]:
    """The table of options as `-o` takes them."""
    table = read.body.get(OPTIONS, {})
    if not isinstance(table, Mapping):
        raise read.fault(
            (OPTIONS,), f"{OPTIONS} is {_shown(table)}; write a table for each plugin, as [options.gmair]"
        )
    for owner, options in table.items():
        if not isinstance(options, Mapping):
            plugin, dot, key = owner.partition(".")
            hint = f"[options.{plugin}]" + (f" with {key} = {_shown(options)}" if dot else "")
            raise read.fault(
                (OPTIONS, owner), f"{OPTIONS}.{owner} is {_shown(options)}; write a table: {hint}"
            )
        for key, value in options.items():
            if isinstance(value, Mapping) or not isinstance(value, str | int | float | list):
                raise read.fault(
                    (OPTIONS, owner, key), f"{owner}.{key} is {_shown(value)}, which no option can be"
                )
            yield f"{owner}.{key}={_as_typed(value)}"


def _as_typed(value: Any) -> str:
    """A value of TOML as `-o` takes it; a text stands for itself, a list as it stands for the depth of the option."""
    if isinstance(value, str):
        plain = value == value.strip() and "," not in value and value[:1] not in ('"', "[")
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, default=str, ensure_ascii=False)


def _saved(context: click.Context, _: click.Parameter, path: str | None) -> None:
    context.meta[f"{READ}.save"] = path


def save(options: Iterable[str]) -> None:
    """Writes the file that `--save` names, if it does; options: those of plugins, the file's own included.

    UsageError when that cannot be done.
    """
    context = click.get_current_context()
    path = context.meta.get(f"{READ}.save")
    if path is None:
        return
    lines = []
    given = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    for parameter in context.command.params:
        keys = [key for key in _keys(parameter) if key not in NEVER]
        name = parameter.name
        if not keys or name is None or name == "options" or context.get_parameter_source(name) not in given:
            continue
        value = context.params[name]
        lines.append(f"{keys[0]} = {_toml(_seeds(value) if keys[0] == 'seeds' else value)}")
    tables, verbatim = [], []
    for owner, texts in parse_overrides(options).items():
        entries = []
        for key, text in texts.items():
            value = _from_typed(text)
            if value is None:
                verbatim.append(f"{owner}.{key}={text}")
            else:
                entries.append(f"{_name(key)} = {_toml(value)}")
        if entries:
            tables.append("\n".join([f"[{OPTIONS}.{_name(owner)}]", *entries]))
    if verbatim:
        lines.append(f"option = {_toml(verbatim)}")
    try:
        write_file(Path(path), "\n".join(["\n".join(lines), *(f"\n{t}" for t in tables), ""]).encode())
    except OSError as error:
        raise UsageError(f"--save {path}: {error.strerror}") from None


def _seeds(seeds: list[int]) -> int | list[int]:
    return len(seeds) if seeds == list(range(len(seeds))) else seeds


def _from_typed(text: str) -> Any:
    """A text of `-o` as a value of TOML that is read as the same text would be; None where there is none."""
    if text.startswith("["):
        try:
            listed = json.loads(text)
        except ValueError:
            return text if _as_typed(text) == text else None
        return listed if isinstance(listed, list) and not _has_null(listed) else None
    parts = split(text)
    if parts is None or ("," not in text and not text.startswith('"')):
        return _scalar(text) if "," not in text else None
    if len(parts) == 1:
        return parts[0][1]
    if any(quoted for quoted, _ in parts) or not all(value for _, value in parts):
        return None
    return [_scalar(value) for _, value in parts]


def _has_null(value: Any) -> bool:
    return (
        value is None or isinstance(value, dict) or (isinstance(value, list) and any(map(_has_null, value)))
    )


def _scalar(text: str) -> Any:
    """A number or a word that is written as this text and no other, else the text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            if json.dumps(kind(text)) == text and text.strip("-")[:1].isdigit():
                return kind(text)
        except ValueError:
            continue
    return text


def _toml(value: Any) -> str:
    """A value as TOML: a text, a number, true or false, or a list of these."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def _name(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)
