"""`objbench report`: the table of all cells in a directory."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from objbench.commands.catalog import as_typed, plugin_option, warn_of_clashes
from objbench.commands.run import out_option
from objbench.errors import UsageError
from objbench.plugins import Registry, load_plugins, load_target
from objbench.protocols import PROTOCOLS, protocol

if TYPE_CHECKING:
    from objbench.report.statistics import Comparison
    from objbench.report.tables import Row, Table
    from objbench.results import CellResult
    from objbench.store import Store

FORMATS = ["table", "md", "latex", "csv", "json"]


@click.command()
@out_option
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--paper", is_flag=True, help="Print published figures, and the difference from them, beside ours."
)
@click.option(
    "--intervals",
    is_flag=True,
    help="Compute 95 % intervals from the raw detections, and set in bold what is best or tied with it.",
)
@click.option(
    "--resamples",
    default=1000,
    show_default=True,
    type=click.IntRange(min=100),
    metavar="N",
    help="Draws of the test scenes, for --intervals.",
)
@click.option("--protocol", "protocol_name", metavar="|".join(PROTOCOLS), help="Only cells of this protocol.")
@click.option("--to", "target", metavar="FILE", help="Write to this file instead of stdout.")
@plugin_option
def report(
    out: str,
    form: str,
    paper: bool,
    intervals: bool,
    resamples: int,
    protocol_name: str | None,
    target: str | None,
    plugin_files: tuple[str, ...],
) -> None:
    """Print the table of all cells in a directory, with the rows and columns of Table 2 of the GMAIR paper.

    Figures are mean ± standard deviation over seeds. The last column says how many these are, and how the
    cells that are not done ended.
    """
    if protocol_name is not None:
        protocol(protocol_name)
    registry = load_plugins(plugin_files)
    warn_of_clashes(registry)

    from objbench.report import cells, tables, text
    from objbench.store import Store

    results, identities = read_cells(
        Store(out), registry, protocol_name, recheck=intervals, plugin_files=plugin_files
    )
    published = registry.published if paper else []
    rows = tables.rows_of(results, identities, registry, published)
    for line in cells.seeds_that_lack(rows):
        click.echo(f"warning: {line}", err=True)
    comparison = compare_rows(rows, registry, resamples) if intervals else None
    table = tables.build(rows, tables.columns_of(registry, published), registry, comparison)
    on_screen = target is None and sys.stdout.isatty()
    writers = {"md": text.markdown, "latex": text.latex, "csv": text.csv, "json": text.as_json}
    written = draw(table, on_screen) if form == "table" else writers[form](table)
    if target is None:
        click.echo(written, nl=False)
    else:
        write_to(Path(target), written)


def read_cells(
    store: Store,
    registry: Registry,
    protocol_name: str | None,
    recheck: bool,
    plugin_files: tuple[str, ...] = (),
) -> tuple[list[CellResult], dict[str, dict[str, Any]]]:
    """Cells that can be believed, by the metrics as they are now, and their identities.

    A line on stderr for each of the others. UsageError when nothing is left. recheck: whether the figures of
    finished cells are held against their raw detections, which takes torch and time. plugin_files: for hints.
    """
    from objbench.report.cells import check_figures, identity_of
    from objbench.store import Damaged

    found, warnings = store.results()
    results, identities = [], {}
    versions = {name: spec.version for name, spec in registry.metrics.items()}
    for result in found:
        if protocol_name not in (None, result.protocol):
            continue
        try:
            identities[result.cell] = identity_of(result)
            if result.status == "done" and result.provenance.get("metric_versions") != versions:
                from objbench.evaluation import rescore  # heavy, and seldom needed

                result = rescore(registry, result)
            elif result.status == "done" and recheck:
                check_figures(registry, result)
        except Damaged as error:
            warnings.append(f"cell {result.cell} is left out: {error}")
            continue
        results.append(result)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if not results:
        which = f" of protocol {protocol_name}" if protocol_name else ""
        hint = as_typed("run", "--out", str(store.out), plugins=plugin_files)
        raise UsageError(f"no cells{which} in {store.out}; run some with `{hint}`")
    return results, identities


def compare_rows(rows: list[Row], registry: Registry, resamples: int) -> Comparison:
    """Intervals and paired comparisons, from the raw detections of all finished cells."""
    import torch

    from objbench.evaluation import load_detections, load_truth
    from objbench.report.statistics import Run, compare, resample, scenes_digest

    torch.set_num_threads(1)  # the tensors are small: threads would only wait for one another
    metrics = [load_target(spec.target) for spec in registry.metrics.values() if spec.columns]
    runs: list[dict[tuple[int, bytes], dict[str, Run]]] = [{} for _ in rows]
    total = sum(len(row.done) for row in rows) * resamples
    with click.progressbar(length=total, label="drawing test scenes again", file=sys.stderr) as bar:
        for row, of_row in zip(rows, runs, strict=True):
            for result in row.done:
                found, truth = load_detections(Path(result.path)), load_truth(Path(result.path))
                key = (result.seed, scenes_digest(truth))
                of_row[key] = resample(found, truth, metrics, resamples, lambda: bar.update(1))
    contenders = [not row.oracle for row in rows]
    return compare(runs, [row.block for row in rows], contenders, resamples)


def draw(table: Table, on_screen: bool) -> str:
    """The table for a terminal, wrapped to its width; for a file or a pipe as wide as it is, uncoloured."""
    from rich.console import Console

    from objbench.progress import console_on
    from objbench.report.text import one_line, terminal

    file = Console(width=10_000, color_system=None, force_terminal=False, emoji=False)
    console = console_on(stderr=False) if on_screen else file
    with console.capture() as capture:
        for grid in terminal(table, console.width):
            console.print(grid, "")
        for note in map(one_line, table.notes):
            console.print(note, markup=False, highlight=False, style="dim", soft_wrap=not on_screen)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().strip("\n").splitlines())


def write_to(target: Path, written: str) -> None:
    """Writes a file as a whole. UsageError when that cannot be done."""
    from objbench.store import write_file

    try:
        write_file(target, written.encode())
    except BrokenPipeError:  # whoever read `--to /dev/stdout` has enough
        raise
    except OSError as error:
        raise UsageError(f"--to {shlex.quote(str(target))}: {error.strerror}") from None
