"""Keeps what tables are made of: `python results/publish.py RUNS results/demo`, or, to renew the tables alone,
`python results/publish.py results/demo`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from objbench.cells.files import read_json, write_file, write_json
from objbench.cells.result import CellResult
from objbench.cells.store import Store, read_trained, write_record, write_trained
from objbench.report.figures import draw_curves, draw_scenes
from objbench.score.arrays import load_tensors, save_tensors

README = Path(__file__).parents[1] / "README.md"
TABLES = {"table.md": "md", "table.csv": "csv", "table.tex": "latex"}
BLOCK = re.compile(r"(<!-- table:([a-z]+) -->\n).*?(<!-- /table:\2 -->)", re.DOTALL)


def main() -> None:
    """Copies cells, then writes tables, curves and the README's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("to", type=Path, nargs="?")
    parser.add_argument("--ours-alone", action="store_true", help="no published figures in the tables")
    parsed = parser.parse_args()
    folder: Path = parsed.to or parsed.runs
    if parsed.to:
        results = Store(parsed.runs).results()[0]
        keep([result for result in results if result.status == "done"], Store(folder))
    for name, form in TABLES.items():
        write_file(folder / name, report(folder, form, paper=not parsed.ours_alone).encode())
    draw_curves(folder, {"ap50": "AP at IoU 0.5", "acc": "ACC, one to one", "nmi": "NMI"})
    draw_scenes(folder)
    write_file(README, with_tables(README.read_text()).encode())


def keep(results: Sequence[CellResult], store: Store) -> None:
    """Copies finished cells with their trainings: without weights and what-latents, the scenes once a data set."""
    with_scenes: set[str] = set()
    for result in results:
        source, folder = Path(result.path), store.folder(result.cell)
        folder.mkdir(parents=True, exist_ok=True)
        keep_training(source.parent, folder.parent, scenes=result.data not in with_scenes)
        with_scenes.add(result.data)
        kept = [name for name in ("clusters.safetensors",) if (source / name).exists()]
        for name in ("cell.json", *kept):
            shutil.copyfile(source / name, folder / name)
        write_record(folder, replace(result, provenance=without_machine(result.provenance)), kept)


def keep_training(source: Path, folder: Path, scenes: bool) -> None:
    """Copies what is published of one training."""
    detections = load_tensors(source / "detections.safetensors")
    detections.pop("what", None)
    save_tensors(folder / "detections.safetensors", detections)
    kept = ["detections.safetensors", "truth.safetensors"]
    kept += ["curve.jsonl"] if (source / "curve.jsonl").exists() else []
    kept += ["shown.safetensors"] if scenes and (source / "shown.safetensors").exists() else []
    for name in kept[1:]:
        shutil.copyfile(source / name, folder / name)
    training = read_json(source / "training.json")
    for name in ("model_config", "data_config"):  # what is no part of the identity is where files lay
        training[name] = training["identity"][name]
    write_json(folder / "training.json", training)
    trained = read_trained(source)
    write_trained(folder, replace(trained, provenance=without_machine(trained.provenance)), kept)


def without_machine(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance without the name of the machine, which nobody else can use."""
    return {key: value for key, value in provenance.items() if key != "node"}


def report(folder: Path, form: str, paper: bool = True) -> str:
    """What `objbench report --out FOLDER --format FORM --no-intervals` prints, with `--paper` if wanted."""
    command = [sys.executable, "-m", "objbench", "report", "--out", str(folder), "--format", form]
    command += ["--no-intervals"] + ["--paper"] * paper
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def with_tables(readme: str) -> str:
    """The README with every table between its markers made again from `results/NAME`; published figures, which make it
    three times as long, are in `results/NAME/table.md` alone."""

    def renewed(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{report(README.parent / 'results' / name, 'md', paper=False).strip()}\n{match[3]}"

    return BLOCK.sub(renewed, readme)


if __name__ == "__main__":
    main()
