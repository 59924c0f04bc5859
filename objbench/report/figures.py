"""Draws figures of a folder of finished cells from its files: curves of all trainings, and scenes side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from objbench.cells.result import CellResult
from objbench.cells.store import Store, read_curve, read_trained
from objbench.report.pictures import draw_found, draw_true
from objbench.scenes import Scenes
from objbench.score.arrays import load_detections, load_tensors, load_truth


def draw_curves(folder: Path, metrics: Mapping[str, str]) -> None:
    """Writes curves.png: metrics on validation scenes during training, like the paper's Fig. 2a.

    There is one panel per data set and metric. Writes no file when no training has a curve.
    metrics: metric value -> the title of its panel.
    """
    runs: dict[str, dict[str, list[Sequence[dict[str, Any]]]]] = defaultdict(lambda: defaultdict(list))
    trainings = {Path(result.path).parent: result for result in Store(folder).results()[0]}
    for training, result in trainings.items():  # its cells share its curve
        if points := read_curve(training):
            runs[result.data][result.model].append(points)
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
    """Writes scenes.png: the first test scenes of each data set, and the detections of the first seed of every model.

    A data set is left out if none of its trainings has kept its scenes.
    """
    blocks: dict[str, dict[str, CellResult]] = defaultdict(dict)
    shown: dict[str, Path] = {}
    for result in sorted(Store(folder).results()[0], key=lambda r: (r.data, r.model, r.seed)):
        training = Path(result.path).parent
        if result.status == "done" and not result.trained:
            blocks[result.data].setdefault(result.model, result)
            if (training / "shown.safetensors").exists():
                shown.setdefault(result.data, Path(result.path))
    lines = sum(1 + len(models) for data, models in blocks.items() if data in shown)
    if not lines:
        return
    figure = Figure(figsize=(2.3 * across, 2.4 * lines), layout="constrained")
    panels = iter(figure.subplots(lines, across, squeeze=False))
    for data, cell in sorted(shown.items(), reverse=True):
        images = load_tensors(cell.parent / "shown.safetensors")["images"].float() / 255
        scenes, classes = Scenes(images, load_truth(cell)), read_trained(cell.parent).classes
        for title, of_model in [(f"{data}, the truth", None), *blocks[data].items()]:
            found = None if of_model is None else load_detections(Path(of_model.path))
            for i, axes in enumerate(next(panels)):
                picture = images[i].permute(1, 2, 0).expand(-1, -1, 3)
                height, width = picture.shape[:2]
                axes.imshow(picture, interpolation="nearest", extent=(0, width, height, 0))
                axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
                if found is None:
                    draw_true(axes, scenes, i, classes)
                else:
                    draw_found(axes, found, i)
                if i == 0:
                    axes.set_ylabel(title)
    figure.savefig(folder / "scenes.png", dpi=90)
