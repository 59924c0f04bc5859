"""`objbench report`: prints the table of all cells in a directory."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from objbench.cells.protocols import PROTOCOLS, protocol
from objbench.commands.compare import compared, two_cells
from objbench.commands.shared import (
    PLAN_TIMEOUT,
    as_typed,
    names,
    out_option,
    plugin_option,
    warn_of_clashes,
)
from objbench.errors import UsageError
from objbench.plugins import load_plugins

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ["table", "md", "latex", "csv", "json", "parquet"]
FRAMES = ["rows", "cells", "objects"]


@click.command()
@out_option
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--paper", is_flag=True, help="Also print published figures, and the difference between ours and them."
)
@click.option(
    "--intervals/--no-intervals",
    default=True,
    show_default=True,
    help="Print 95 % intervals, computed from the raw detections; the best figures and those tied with them are bold.",
)
@click.option(
    "--pairs",
    is_flag=True,
    help="Also print the difference of each two rows on the same scenes, with its interval.",
)
@click.option(
    "--resamples",
    default=1000,
    show_default=True,
    type=click.IntRange(min=100),
    metavar="N",
    help="Number of bootstrap draws of the test scenes for intervals.",
)
@click.option("--protocol", "protocol_name", metavar="|".join(PROTOCOLS), help="Only cells of this protocol.")
@click.option(
    "--models",
    multiple=True,
    callback=names,
    metavar="NAME[+CLUSTERER][,...]",
    help="Only cells of these detectors, with any clusterer or with that one.",
)
@click.option(
    "--data", multiple=True, callback=names, metavar="NAME[,NAME]", help="Only cells of these data sets."
)
@click.option(
    "--current", is_flag=True, help="Only cells that were run with the code and data that are installed now."
)
@click.option(
    "--long",
    "long_",
    is_flag=True,
    help="Add for each detector and clusterer its paper, code and licence, what differs from the paper, and what it "
    "knows beforehand; and the time that clusterers took.",
)
@click.option(
    "--more",
    is_flag=True,
    help="Add further columns: COCO AP, count error, F1, ACC over all objects, and what other metrics list.",
)
@click.option(
    "--of",
    "which",
    type=click.Choice(FRAMES),
    default="rows",
    show_default=True,
    help="With csv or parquet: the rows of the table, all cells, or all detections and missed objects.",
)
@click.option("--to", "target", metavar="FILE", help="Write to this file instead of stdout.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    help="Write one page that shows everything: the table with --paper and --pairs, scenes, errors, curves, and "
    "where it comes from. It needs no network and no other file.",
)
@click.option(
    "--compare",
    "sides",
    nargs=2,
    metavar="A B",
    help="Instead of the table: say which of A and B is better, by how much, how sure, and at what cost, as "
    "`objbench compare A B` does; as text, or with --format json. With --html: the page opens with a cell of each, "
    "in the scenes where they differ.",
)
@plugin_option
def report(
    out: str,
    form: str,
    which: str,
    paper: bool,
    intervals: bool,
    pairs: bool,
    resamples: int,
    protocol_name: str | None,
    models: list[str],
    data: list[str],
    current: bool,
    long_: bool,
    more: bool,
    target: str | None,
    page: str | None,
    sides: tuple[str, str] | None,
    plugin_files: tuple[str, ...],
) -> None:
    """Print the table of all cells in a directory, in the form of Table 2 of the GMAIR paper.

    Figures are mean ± standard deviation over seeds, with the 95 % interval of the mean below. The last column gives
    the number of seeds, and the status of cells that are not done. [Brackets] contain options that differ from the
    protocol's settings, and code that differs from the installed code.
    """
    if protocol_name is not None:
        protocol(protocol_name)
    check_format(form, which, target)
    if sides and page is None:
        if form not in ("table", "json") or which != "rows":
            raise UsageError("--compare prints a paragraph, or JSON with --format json; leave out --of")
        said = compared(*sides, out, resamples, plugin_files, form == "json") + "\n"
        if target is None:
            click.echo(said, nl=False)
        else:
            write_to(Path(target), said.encode())
        return
    if page is not None:
        if target is not None or form != "table":
            raise UsageError(
                "--html FILE writes a page; leave out --to and --format, which are of a printed table"
            )
        paper = intervals = pairs = True
    if pairs and not intervals:
        raise UsageError("--pairs prints intervals; leave out --no-intervals")
    registry = load_plugins(plugin_files)
    warn_of_clashes(registry)

    from objbench.cells.store import Store
    from objbench.report import tables, text
    from objbench.report.believed import Wanted, read_cells
    from objbench.report.rows import rows_of, seeds_that_lack
    from objbench.run.planning import Planner
    from objbench.run.progress import console_on

    hint = as_typed("run", "--out", out, plugins=plugin_files)
    wanted = Wanted(protocol_name, models, data, current)
    with Planner(plugin_files, PLAN_TIMEOUT) as planner:  # its process starts when metrics must be computed
        score = planner.score if intervals and which == "rows" else None
        results, cells = read_cells(Store(out), registry, wanted, score, planner.rescore, hint)
        if which != "rows":
            from objbench.report.frames import Results

            found = Results(registry, results, cells)
            write_frame(found.cells if which == "cells" else found.objects, form, target)
            return
        published = registry.published if paper else []
        rows = rows_of(results, cells, registry, published)
        for line in seeds_that_lack(rows):
            click.echo(f"warning: {line}", err=True)
        comparison = None
        if intervals:
            from objbench.report.drawn import Drawn
            from objbench.report.statistics import compare_rows

            comparison = compare_rows(rows, registry, Drawn(registry, resamples, planner.draw))
    columns = tables.columns_of(registry, published, results, more)
    table = tables.build(rows, columns, registry, comparison, long_)
    if not pairs and form != "json":
        table = replace(table, pairs=table.pairs.iloc[:0])
    if form == "parquet":
        write_frame(table.frame, form, target)
        return
    if page is not None:
        from objbench.report.page.write import page as page_of

        pair = two_cells(*sides, out, registry, plugin_files) if sides else ("", "")
        if left := [key for key in pair if key and key not in cells]:
            raise UsageError(f"--compare with --html: cell {left[0]} is not among the cells of this page")
        html, problems = page_of(rows, cells, table, registry, pair)
        for problem in problems:
            click.echo(f"warning: {problem}", err=True)
        write_to(Path(page), html.encode(), "--html")
        click.echo(page)
        return
    console = console_on(stderr=False) if target is None and sys.stdout.isatty() else None
    writers = {"md": text.markdown, "latex": text.latex, "csv": text.csv, "json": text.as_json}
    written = text.draw(table, console) if form == "table" else writers[form](table)
    if target is None:
        click.echo(written, nl=False)
    else:
        write_to(Path(target), written.encode())


def check_format(form: str, which: str, target: str | None) -> None:
    """UsageError, before anything is read, when a frame cannot be written so."""
    if which != "rows" and form not in ("csv", "parquet"):
        raise UsageError(f"--of {which} needs --format csv or --format parquet")
    if form == "parquet":
        if target is None and sys.stdout.isatty():
            raise UsageError("a Parquet file is not text; write it to a file with --to FILE")
        from objbench.report.frames import parquet_writer

        parquet_writer()


def write_frame(frame: pd.DataFrame, form: str, target: str | None) -> None:
    """Writes a frame as CSV or Parquet to a file or stdout."""
    if form == "csv":
        data = frame.to_csv(index=False).encode()
    else:
        from objbench.report.frames import parquet_writer

        data = parquet_writer()(frame)
    if target is None:
        click.echo(data, nl=False)
    else:
        write_to(Path(target), data)


def write_to(target: Path, written: bytes, option: str = "--to") -> None:
    """Writes a file; never leaves an incomplete one. UsageError, which names the option, when it cannot be written."""
    from objbench.writing import write_file

    try:
        write_file(target, written)
    except BrokenPipeError:  # the reader of `--to /dev/stdout` has closed it
        raise
    except OSError as error:
        raise UsageError(f"{option} {shlex.quote(str(target))}: {error.strerror}") from None
