"""Keeps what tables are made of: `python results/publish.py RUNS results/demo`, or, to renew the tables alone,
`python results/publish.py results/demo`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from objbench.cells.files import read_json, write_file, write_json
from objbench.cells.identity import Cell
from objbench.cells.result import CellResult
from objbench.cells.store import Store, read_curve, write_record
from objbench.plugins import load_plugins
from objbench.report.pictures import draw_found, draw_true
from objbench.score.arrays import flat, load_detections, save_tensors
from objbench.score.trained import build_cell

README = Path(__file__).parents[1] / "README.md"
TABLES = {"table.md": "md", "table.csv": "csv", "table.tex": "latex"}
BLOCK = re.compile(r"(<!-- table:([a-z]+) -->\n).*?(<!-- /table:\2 -->)", re.DOTALL)


def main() -> None:
    """Copies cells, then writes tables, curves and the README's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("to", type=Path, nargs="?")
    parser.add_argument("--ours-alone", action="store_true", help="no published figures in the tables")
    told = parser.parse_args()
    folder: Path = told.to or told.runs
    if told.to:
        for result in Store(told.runs).results()[0]:
            if result.status == "done":
                keep(result, Store(folder))
    for name, form in TABLES.items():
        write_file(folder / name, report(folder, form, paper=not told.ours_alone).encode())
    draw_curves(folder)
    draw_scenes(folder)
    write_file(README, with_tables(README.read_text()).encode())


def keep(result: CellResult, store: Store) -> None:
    """Copies one cell, without weights and what-latents."""
    source, folder = Path(result.path), store.folder(result.cell)
    folder.mkdir(parents=True, exist_ok=True)
    kept = ["detections.safetensors", "truth.safetensors"]
    save_tensors(folder / kept[0], flat(replace(load_detections(source), what=None)))
    cell = read_json(source / "cell.json")
    for name in ("model_config", "data_config"):  # what is no part of the identity is where files lay
        cell[name] = cell["identity"][name]
    write_json(folder / "cell.json", cell)
    for name in ("truth.safetensors", "curve.jsonl"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    if (folder / "curve.jsonl").exists():
        kept.append("curve.jsonl")
    write_record(folder, result, kept)


def report(folder: Path, form: str, paper: bool = True) -> str:
    """What `objbench report --out FOLDER --format FORM` prints, with `--paper` if wanted."""
    command = [sys.executable, "-m", "objbench", "report", "--out", str(folder), "--format", form]
    command += ["--paper"] if paper else []
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def with_tables(readme: str) -> str:
    """The README with every table between its markers made again from `results/NAME`."""

    def renewed(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{report(README.parent / 'results' / name, 'md').strip()}\n{match[3]}"

    return BLOCK.sub(renewed, readme)


def draw_curves(folder: Path) -> None:
    """AP, ACC and NMI on validation scenes over training, as the paper's Fig. 2a: a panel a data set and metric."""
    metrics = {"ap50": "AP at IoU 0.5", "acc": "ACC, one to one", "nmi": "NMI"}
    runs: dict[str, dict[str, list[Sequence[dict]]]] = defaultdict(lambda: defaultdict(list))
    for result in Store(folder).results()[0]:
        if curve := read_curve(Path(result.path)):
            runs[result.data][result.model].append(curve)
    if not runs:
        return
    figure = Figure(figsize=(11, 2.9 * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), len(metrics), squeeze=False, sharey=True)
    for row, (data, models) in zip(panels, sorted(runs.items(), reverse=True), strict=True):
        for axes, (metric, label) in zip(row, metrics.items(), strict=True):
            for number, (model, curves) in enumerate(sorted(models.items())):
                for i, curve in enumerate(curves):
                    values = [point["metrics"].get(metric) for point in curve]
                    share = [100 * point["step"] / curve[-1]["step"] for point in curve]
                    axes.plot(share, values, color=f"C{number}", alpha=0.8, label=model if i == 0 else None)
            axes.set(title=f"{label}, {data}", ylim=(0, 1), xlabel="share of training (%)")
            axes.grid(alpha=0.3)
    panels[0][0].legend()
    figure.savefig(folder / "curves.png", dpi=110)


def draw_scenes(folder: Path, across: int = 5) -> None:
    """The first test scenes of each data set: what is in them, then what the first seed of every model finds there."""
    registry = load_plugins()
    blocks: dict[str, dict[str, CellResult]] = defaultdict(dict)
    for result in sorted(Store(folder).results()[0], key=lambda r: (r.data, r.model, r.seed)):
        if result.status == "done":
            blocks[result.data].setdefault(result.model, result)
    lines = sum(1 + len(models) for models in blocks.values())
    figure = Figure(figsize=(2.3 * across, 2.4 * lines), layout="constrained")
    panels = iter(figure.subplots(lines, across, squeeze=False))
    for data, models in sorted(blocks.items(), reverse=True):
        cell = Cell(**read_json(Path(next(iter(models.values())).path) / "cell.json"))
        source = build_cell(registry, cell, "cpu").evaluation
        if source.fingerprint() != cell.identity["fingerprint"]:
            print(f"{folder}: no pictures, for the data of {data} is not that of the cells", file=sys.stderr)
            return
        scenes = source.scenes("test", torch.arange(across))
        for title, result in [(f"{data}, the truth", None), *models.items()]:
            found = None if result is None else load_detections(Path(result.path))
            for i, axes in enumerate(next(panels)):
                picture = scenes.images[i].permute(1, 2, 0).expand(-1, -1, 3)
                height, width = picture.shape[:2]
                axes.imshow(picture, interpolation="nearest", extent=(0, width, height, 0))
                axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
                if found is None:
                    draw_true(axes, scenes, i, source.classes)
                else:
                    draw_found(axes, found, i)
                if i == 0:
                    axes.set_ylabel(title)
    figure.savefig(folder / "scenes.png", dpi=90)


if __name__ == "__main__":
    main()
