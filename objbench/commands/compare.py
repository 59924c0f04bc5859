"""`objbench compare`: holds two cells, rows or stores against each other."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from objbench.cells.identity import with_clusterer
from objbench.commands.shared import (
    PLAN_TIMEOUT,
    as_typed,
    find_cell,
    json_option,
    out_option,
    plugin_option,
    warn_of_clashes,
)
from objbench.errors import UsageError, unknown
from objbench.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from objbench.report.rows import Row

ROW = re.compile(r"(?P<model>[^\[\]@]+)(?:\[(?P<options>[^\]]*)\])?(?:@(?P<data>.+))?")
"""How a row is named: MODEL, MODEL[KEY=VALUE,...], MODEL@DATA."""
KEY = re.compile(r"[0-9a-f]{3,16}(/.*)?")
"""What the beginning of a cell's key looks like."""


class Side(NamedTuple):
    """What A or B stands for."""

    word: str
    rows: list[Row]
    store: bool


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@out_option
@click.option(
    "--resamples",
    default=1000,
    show_default=True,
    type=click.IntRange(min=100),
    metavar="N",
    help="Draws of the test scenes.",
)
@plugin_option
@json_option
def compare(
    first: str, second: str, out: str, resamples: int, plugin_files: tuple[str, ...], as_json: bool
) -> None:
    """Say which of A and B is better: by how much, how sure that is, at what cost, in which scenes and classes.

    A and B are each a cell (the beginning of its key, or its folder), a row of the table of --out (MODEL, or
    MODEL@DATA, or MODEL[KEY=VALUE] where several rows have that name), or a directory of cells, whose rows are compared
    with those of the same name. Only runs on the same test scenes are compared, those of one seed with each other; the
    intervals are a bootstrap over scenes and seeds. One paragraph for each pair of rows.
    """
    click.echo(compared(first, second, out, resamples, plugin_files, as_json))


def compared(
    first: str, second: str, out: str, resamples: int, plugin_files: tuple[str, ...], as_json: bool
) -> str:
    """What `objbench compare` prints; warnings go to stderr. UsageError when nothing can be compared."""
    registry = load_plugins(plugin_files)
    warn_of_clashes(registry)
    from objbench.report.compare import duel, paragraph
    from objbench.report.drawn import Drawn
    from objbench.run.planning import Planner

    duels = []
    faults = []
    with Planner(plugin_files, PLAN_TIMEOUT) as planner:
        drawn = Drawn(registry, resamples, planner.draw)
        for a, b in pairs_named(first, second, out, registry, plugin_files):
            try:
                duels.append(duel(a, b, registry, drawn))
            except UsageError as error:
                faults.append(str(error))
    if not duels:
        raise UsageError(faults[0])
    for fault in faults:
        click.echo(f"warning: {fault}", err=True)
    if as_json:
        return json.dumps([d.as_json() for d in duels], indent=2)
    return "\n\n".join(paragraph(d) for d in duels)


def pairs_named(
    first: str, second: str, out: str, registry: Registry, plugin_files: tuple[str, ...]
) -> list[tuple[Row, Row]]:
    """The pairs of rows that A and B mean. UsageError when there are none, or too many."""

    @functools.cache
    def read(store: str, only: str = "") -> list[Row]:
        return rows_in(store, registry, plugin_files, only)

    return pairs_of(*(side_of(word, out, read) for word in (first, second)))


def two_cells(
    first: str, second: str, out: str, registry: Registry, plugin_files: tuple[str, ...]
) -> tuple[str, str]:
    """The keys of a cell of A and one of B, of the same seed where there are such. Raises UsageError as `compare`."""
    a, b = pairs_named(first, second, out, registry, plugin_files)[0]
    pairs = [(one, other) for one in a.done for other in b.done]
    one, other = min(pairs, key=lambda pair: pair[0].seed != pair[1].seed)
    return one.cell, other.cell


def side_of(word: str, out: str, read: Callable[..., list[Row]]) -> Side:
    """The rows that a word of the command line means. UsageError where it means none.

    read: gives the rows of a directory, or of one of its cells by key.
    """
    if (Path(word) / "cells").is_dir():
        return Side(word, read(word), True)
    if (
        (Path(word) / "cell.json").is_file()
        or (Path(word) / "training.json").is_file()
        or KEY.fullmatch(word)
    ):
        folder = find_cell(word, out)
        store = str(folder.parent.parent.parent)
        rows = read(store, f"{folder.parent.name}/{folder.name}")
        return Side(word, rows, False)
    named = ROW.fullmatch(word)
    if named is None or Path(word).exists():
        raise UsageError(
            f"'{word}' is no cell, no directory of cells, and not the name of a row such as gmair@multimnist"
        )
    rows = read(out)
    model, data = named["model"].strip(), (named["data"] or "").strip()
    names = {name for row in rows for name in (row.model, *names_of(row))}
    if model not in names:
        raise unknown("row", model, names)
    rows = [row for row in rows if model in names_of(row)] or [row for row in rows if model == row.model]
    if data and data not in (known := {row.data for row in rows}):
        raise unknown("data set", data, known)
    options = [part.strip() for part in (named["options"] or "").split(",") if part.strip()]
    found = [r for r in rows if data in ("", r.data) and {*options} <= {*r.options, *r.data_options}]
    if not found:
        there = "; ".join(", ".join(row.options) or "none" for row in rows)
        raise UsageError(f"'{word}': no row of {model} has all of these options (rows: {there})")
    return Side(word, found, False)


def names_of(row: Row) -> list[str]:
    """What a row is called by: as `--models` has it, also with its clusterer."""
    return [row.name, *([with_clusterer(row.model, row.clusterer)] if row.clusterer else [])]


def rows_in(out: str, registry: Registry, plugin_files: tuple[str, ...], only: str = "") -> list[Row]:
    """The rows of a directory's finished cells, or of one of them; figures by the metrics as they are now."""
    from objbench.cells.store import Store
    from objbench.report.believed import Wanted, read_cells
    from objbench.report.rows import rows_of
    from objbench.run.planning import Planner

    hint = as_typed("run", "--out", out, plugins=plugin_files)
    with Planner(plugin_files, PLAN_TIMEOUT) as planner:
        results, cells = read_cells(Store(out), registry, Wanted(), None, planner.rescore, hint)
    chosen = [result for result in results if only in ("", result.cell)]
    rows = [row for row in rows_of(chosen, cells, registry) if row.done]
    if not rows:
        raise UsageError(f"{only or out} has no finished cell" if chosen else f"cell {only} cannot be used")
    return rows


def pairs_of(first: Side, second: Side) -> list[tuple[Row, Row]]:
    """Rows of the same data and protocol that are to be compared. UsageError where there are none, or too many."""
    pairs = []
    for row in first.rows:
        others = [r for r in second.rows if (r.protocol, r.data) == (row.protocol, row.data)]
        if first.store and second.store:
            others = [r for r in others if r.name == row.name]
            exact = [r for r in others if (r.options, r.data_options) == (row.options, row.data_options)]
            others = exact or others
        for side, rows in (
            (second, others),
            (first, [r for r in first.rows if same_place(r, row, first.store)]),
        ):
            if len(rows) > 1:
                names = "; ".join(
                    f"{r.name}[{','.join([*r.options, *r.data_options])}]@{r.data}" for r in rows
                )
                raise UsageError(
                    f"'{side.word}' means {len(rows)} rows of {row.data} ({row.protocol}): {names}; name one"
                )
        pairs += [(row, other) for other in others]
    if not pairs:
        there = " and ".join(
            f"'{side.word}' has {', '.join(sorted({f'{r.data} ({r.protocol})' for r in side.rows}))}"
            for side in (first, second)
        )
        what = (
            "no row of the same name, data set and protocol"
            if first.store and second.store
            else "no data set and protocol"
        )
        raise UsageError(f"{what} is in both: {there}")
    return pairs


def same_place(one: Row, other: Row, store: bool) -> bool:
    """Whether two rows of one side would be compared with the same row of the other."""
    alike = (one.protocol, one.data) == (other.protocol, other.data)
    return alike and (not store or one is other or (one.name, one.options) == (other.name, other.options))
