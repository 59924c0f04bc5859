"""`objbench figure`: a figure of the GMAIR paper, from finished cells."""

from __future__ import annotations

import io
from pathlib import Path

import click

from objbench.commands.shared import find_cell, out_option, plugin_option
from objbench.errors import UsageError
from objbench.plugins import load_plugins

FIGURES = {
    "curves": "AP, ACC and NMI over the training steps: mean and standard deviation over seeds (Figure 2a)",
    "iterations": "validation scenes through the training steps: boxes and reconstructions (Figures 2e-2h)",
    "latents": "t-SNE of what-latents, with classes, clusters, and wrongly clustered objects (Figures 2b-2d and 5)",
    "generated": "objects generated from each cluster (Figure 3)",
    "varied": "scenes with other categories, styles and places (Figure 4)",
}
"""Name -> what it shows."""
OF_TRAINING = ("curves", "iterations")
"""Those that need nothing of a finished cell, so that a long training can be looked at while it runs."""
FORMATS = ("png", "svg", "pdf")


@click.command(
    epilog="\b\nFigures:\n" + "\n".join(f"  {name:<10} {what}" for name, what in FIGURES.items()),
)
@click.argument("name", type=click.Choice(list(FIGURES)), metavar="NAME")
@click.argument("cells", nargs=-1, required=True, metavar="CELL...")
@click.option("--to", "target", required=True, metavar="FILE", help="Write to this file: .png, .svg or .pdf.")
@click.option(
    "--over",
    type=click.Choice(["step", "seconds"]),
    default="step",
    show_default=True,
    help="With curves: over training steps, or over seconds of training.",
)
@out_option
@plugin_option
def figure(
    name: str, cells: tuple[str, ...], target: str, over: str, out: str, plugin_files: tuple[str, ...]
) -> None:
    """Draw a figure of the GMAIR paper from finished cells, of any detector.

    CELL is the beginning of a cell's key, or its directory. "curves" takes any number of cells, and joins those that
    differ in the seed alone; other figures are of one cell. "generated" and "varied" need the cell's weights, and a
    detector that generates (`ModelSpec.generate`). "curves" and "iterations" can also be drawn while a cell is
    running, and of one that was interrupted.
    """
    form = Path(target).suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f"--to {target}: the name must end in .{', .'.join(FORMATS)}")
    if over != "step" and name != "curves":
        raise UsageError(f"--over is for the figure 'curves', not for '{name}'")
    folders = list(dict.fromkeys(find_cell(cell, out) for cell in cells))
    registry = load_plugins(plugin_files)

    from objbench.cells.files import Damaged
    from objbench.cells.store import read_record
    from objbench.report.paper_figures import draw
    from objbench.writing import write_file

    written = io.BytesIO()
    try:
        for folder in folders:
            result, _ = read_record(folder)
            if result.status != "done" and name not in OF_TRAINING:
                raise UsageError(f"cell {result.cell} is not done but {result.status}; run it first")
        draw(name, folders, registry, over).savefig(written, format=form, dpi=150, bbox_inches="tight")
    except Damaged as error:
        raise UsageError(f"the figure '{name}' cannot be drawn: {error}; run the cell again") from None
    try:
        write_file(Path(target), written.getvalue())
    except OSError as error:
        raise UsageError(f"--to {target}: {error.strerror}") from None
    click.echo(target)
