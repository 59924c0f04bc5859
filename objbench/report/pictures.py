"""Draws pictures of a finished cell: its test scenes, the contents of its clusters, and its training curves."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from objbench.cells.store import read_curve, read_trained
from objbench.detector import NOISE, PRESENT, Detections
from objbench.matching import as_numpy, best_truth
from objbench.scenes import GroundTruth, Scenes
from objbench.score.arrays import load_detections, load_tensors, load_truth
from objbench.writing import write_file

backend = os.environ.pop("MPLBACKEND", None)
try:  # a notebook's backend may not be installed here, and then matplotlib cannot be imported
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.patches import Patch, Rectangle
finally:
    if backend is not None:
        os.environ["MPLBACKEND"] = backend

FAINT = 0.1
"""Detections below this score are not drawn; those from this score to PRESENT are dotted."""

SCENES, ACROSS = 8, 2
"""How many scenes the page shows, and how many of them are side by side."""

CLUSTERS = 40
"""How many clusters are shown at most; the largest are shown."""

CROPS, CROP_PIXELS, MARGIN = 20, 32, 2
"""How many boxes of a cluster are shown, the side to which each is resampled, and the margin around it, in pixels."""

COLOURS = (  # visible on black scenes; colours that look equal to colour-blind people differ in lightness
    "#E69F00",  # orange
    "#56B4E9",  # sky
    "#F0E442",  # yellow
    "#D55E00",  # vermilion
    "#00B07D",  # green
    "#F08AC8",  # rose
    "#2F7FE0",  # blue
    "#B6F36B",  # lime
    "#A974FF",  # violet
    "#BFE6FF",  # pale sky
    "#FFC9B0",  # peach
    "#A9793B",  # brown
)
"""Colours of clusters; cluster numbers are always written too. The first seven are near Okabe and Ito's (2008)."""

WRONG, INK = "#FF2D20", "#202024"

LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A6A74"]
"""Colours of curves, on white."""

SPREAD = 30
"""If lines in a panel differ in size by more than this factor, its scale is logarithmic: else small ones look flat."""

DPI = 110

PANEL, GAP = 2.0, 0.08  # the longer side of a scene, and the space between two scenes, in inches

CROWD = 10  # in a scene with more objects than this, their labels are shortened

Listed = TypeVar("Listed", Detections, GroundTruth)
Ints = NDArray[np.int64]

Picture = NDArray[np.float32]


class Held(NamedTuple):
    """The boxes with score >= PRESENT, with their clusters and the classes of the objects below them."""

    detection: Ints  # [k] index into the detections, by descending score
    cluster: Ints  # [k]
    label: Ints  # [k] class of the object that it overlaps most; -1 if this IoU is 0.5 or less


def write_pictures(
    directory: Path,
    scenes: Scenes,
    detections: Detections,
    reconstruction: Tensor | None,
    classes: tuple[str, ...],
    curve: list[dict[str, Any]],
    headings: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes scenes.png, clusters.png and curves.png into `directory`; returns the files that were written.

    clusters.png and curves.png are written only if there are clusters and a curve.
    scenes: n test scenes of 1 to 3 channels; `detections` are in these scenes. reconstruction: of the first k scenes
    [k, channels, height, width], or None. classes: the names of the truth's labels. curve: rows of `curve.jsonl`;
    "step", "seconds", "loss", "terms", "watch" and "metrics" are used. headings: the metrics to plot and their
    names; None plots all metrics that stay within 0..1.
    """
    held = held_by(detections, scenes)
    pages = {"scenes.png": scenes_page(scenes, detections, held, reconstruction, classes)}
    if len(held.cluster):
        pages["clusters.png"] = clusters_page(scenes, detections, held, classes)
    if curve:
        pages["curves.png"] = curves_page(curve, headings)
    for name, figure in pages.items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        write_file(directory / name, png.getvalue())
    return [directory / name for name in pages]


def held_by(detections: Detections, scenes: Scenes) -> Held:
    """The boxes in clusters, by descending score; empty when the detector does not cluster."""
    if detections.clusters is None:
        return Held(*np.zeros((3, 0), dtype=np.int64))
    scores = as_numpy(detections.scores)
    index = np.argsort(-scores, kind="stable")[: int((scores >= PRESENT).sum())]
    best = best_truth(detections, scenes.truth)
    labels = np.append(as_numpy(scenes.truth.labels), -1)  # best.truth is -1 in a scene without objects
    label = np.where(best.iou > 0.5, labels[best.truth], -1)
    return Held(index, as_numpy(detections.clusters)[index], label[index])


def majority(labels: Ints) -> tuple[int, float]:
    """The most frequent of [k] labels, and its share; labels of -1 are ignored. (-1, 0) when all are -1."""
    counts = np.bincount(labels[labels >= 0], minlength=1)
    return (int(counts.argmax()), float(counts.max() / counts.sum())) if counts.any() else (-1, 0.0)


def colour_of(cluster: int) -> str:
    """The colour of a cluster; colours repeat after twelve clusters."""
    return COLOURS[cluster % len(COLOURS)]


def scenes_page(
    scenes: Scenes, detections: Detections, held: Held, reconstruction: Tensor | None, classes: Sequence[str]
) -> Figure:
    """The first scenes with detections (coloured by cluster), with true boxes, and as reconstructed by the model."""
    count = min(len(scenes), SCENES)
    titles = ["found", "true", "painted by the model"][: 2 if reconstruction is None else 3]
    across, rows = min(ACROSS, count), math.ceil(count / min(ACROSS, count))
    height, width = scenes.images.shape[-2:]
    wide, tall = PANEL * width / max(height, width), PANEL * height / max(height, width)
    group = len(titles) * (wide + GAP) + 2 * GAP
    top, bottom = 0.32, 0.5
    figure = Figure((across * group + GAP, top + rows * (tall + GAP) + bottom))
    for i in range(count):
        row, column = divmod(i, across)
        for part, title in enumerate(titles):
            corner = (2 * GAP + column * group + part * (wide + GAP), top + row * (tall + GAP))
            axes = _panel(figure, corner, (wide, tall), (width, height))
            if row == 0:
                axes.set_title(title, fontsize=10, color=INK, pad=4)
            images = reconstruction if part == 2 and reconstruction is not None else scenes.images
            if i < len(images):
                axes.imshow(_picture(images[i]), interpolation="nearest", extent=(0, width, height, 0))
            if part == 0:
                draw_found(axes, detections, i)
            elif part == 1:
                draw_true(axes, scenes, i, classes)
    named = np.unique(held.cluster[held.cluster != NOISE]).tolist()
    meant = {c: majority(held.label[held.cluster == c])[0] for c in named}
    keys = [Patch(color=colour_of(c), label=f"{c} → {_name(classes, label)}") for c, label in meant.items()]
    figure.legend(
        handles=keys[:24],
        loc="lower center",
        ncols=12,
        frameon=False,
        fontsize=8,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.2,
        title="cluster → the class of most of its boxes" if keys else None,
        title_fontsize=8,
    )
    return figure


def draw_found(axes: Axes, detections: Detections, image: int) -> None:
    """Draws the detections in one image: solid, with cluster and score; dotted if the score is below PRESENT."""
    scores = as_numpy(detections.scores)
    here = np.flatnonzero((as_numpy(detections.image) == image) & (scores >= FAINT))
    roomy = (scores[here] >= PRESENT).sum() <= CROWD
    for j in here[np.argsort(scores[here])]:
        box = detections.boxes[j].tolist()
        cluster = None if detections.clusters is None else int(detections.clusters[j])
        colour = colour_of(cluster or 0)
        if scores[j] < PRESENT:
            _frame(axes, box, colour, 0.8, ":")
            continue
        _frame(axes, box, colour, 1.6, "-")
        words = [] if cluster is None else [str(cluster)]
        words += [f"{scores[j]:.2f}".lstrip("0")] if roomy else []
        _tag(axes, box, " ".join(words), colour)


def draw_true(axes: Axes, scenes: Scenes, image: int, classes: Sequence[str]) -> None:
    """Draws the true boxes of one image, with their classes."""
    here = np.flatnonzero(as_numpy(scenes.truth.image) == image)
    for j in here:
        box, name = scenes.truth.boxes[j].tolist(), _name(classes, int(scenes.truth.labels[j]))
        _frame(axes, box, "white", 1.2, "-")
        _tag(axes, box, name if len(here) <= CROWD else name[:3], "white")


def _panel(
    figure: Figure, corner: tuple[float, float], size: tuple[float, float], pixels: tuple[int, int]
) -> Axes:
    """Axes with image coordinates; `corner` is the distance from the figure's top left corner, both in inches."""
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes(
        (corner[0] / wide, 1 - (corner[1] + size[1]) / tall, size[0] / wide, size[1] / tall),
        xlim=(0, pixels[0]),
        ylim=(pixels[1], 0),
        xticks=[],
        yticks=[],
        facecolor="black",
        autoscale_on=False,
    )
    axes.spines[:].set_visible(False)
    return axes


def _frame(axes: Axes, box: Sequence[float], colour: str, width: float, style: str) -> None:
    """Draws a box, xyxy in pixels."""
    x0, y0, x1, y1 = box
    axes.add_patch(
        Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width, linestyle=style)
    )


def _tag(axes: Axes, box: Sequence[float], words: str, colour: str) -> None:
    """Writes words above a box; inside it if the box is at the top, and aligned right if it is at the right edge."""
    if not words:
        return
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    at_right = box[0] > 0.8 * width
    axes.text(
        min(box[2], width) if at_right else max(box[0], 0),
        max(box[1], 0),
        words,
        fontsize=6.5,
        color="black",
        ha="right" if at_right else "left",
        va="bottom" if box[1] > 0.06 * height else "top",
        clip_on=True,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else "no object" if label < 0 else str(label)


def _picture(image: Tensor) -> Picture:
    """An image [1 to 3 channels, height, width] in 0..1 as [height, width, 3]; two channels become red and green."""
    pixels = as_numpy(image).astype(np.float32).clip(0, 1)
    if len(pixels) == 1:
        pixels = pixels.repeat(3, axis=0)
    pixels = np.concatenate([pixels, np.zeros_like(pixels[: 3 - len(pixels)])])
    return pixels.transpose(1, 2, 0)


def clusters_page(scenes: Scenes, detections: Detections, held: Held, classes: Sequence[str]) -> Figure:
    """A row of boxes for each cluster, sampled evenly from its highest to its lowest score."""
    pixels = np.stack([_picture(image) for image in scenes.images])
    ids, sizes = np.unique(held.cluster, return_counts=True)
    clusters = sorted(ids[np.argsort(-sizes, kind="stable")[:CLUSTERS]].tolist())
    stride = CROP_PIXELS + 2 * MARGIN
    side, lead, top = 0.5, 1.9, 0.36  # inches
    figure = Figure((lead + CROPS * side + 0.1, top + len(clusters) * (side + 0.04) + 0.06))
    wide, tall = figure.get_size_inches()
    heading = "what each cluster holds; framed: of another class than most of it, dotted: on no object"
    if len(ids) > CLUSTERS:
        heading += f"; {len(ids) - CLUSTERS} smaller clusters are not shown"
    figure.text(lead / wide, 1 - 0.2 / tall, heading, fontsize=9, color=INK, va="center")
    for row, cluster in enumerate(clusters):
        mine = np.flatnonzero(held.cluster == cluster)
        most, share = majority(held.label[mine])
        shown = mine[np.linspace(0, len(mine) - 1, min(len(mine), CROPS)).round().astype(np.int64)]
        y = top + row * (side + 0.04)
        axes = _panel(figure, (lead, y), (len(shown) * side, side), (len(shown) * stride, stride))
        cut = crops(pixels, detections, held.detection[shown])
        cut = np.pad(cut, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=1)
        axes.imshow(np.concatenate(list(cut), axis=1), extent=(0, len(shown) * stride, stride, 0))
        for i, label in enumerate(held.label[shown].tolist()):
            if label != most:
                around = (i * stride + 1, 1, (i + 1) * stride - 1, stride - 1)
                _frame(axes, around, WRONG, 1.8, "-" if label >= 0 else ":")
        middle = 1 - (y + side / 2) / tall
        badge = {"facecolor": colour_of(cluster), "edgecolor": "none", "pad": 3}
        figure.text(
            0.3 / wide, middle, str(cluster), fontsize=11, weight="bold", va="center", ha="center", bbox=badge
        )
        said = f"{100 * share:.0f} % {_name(classes, most)}\n{len(mine)} box{'es' * (len(mine) > 1)}"
        figure.text(0.6 / wide, middle, said, fontsize=8.5, color=INK, va="center", linespacing=1.3)
    return figure


def crops(pixels: Picture, detections: Detections, index: Ints) -> Picture:
    """Square crops around [k] detections in pixels [n, height, width, 3]: [k, CROP_PIXELS, CROP_PIXELS, 3].

    Nearest pixels are taken, without interpolation; grey outside the image.
    """
    boxes = as_numpy(detections.boxes)[index]
    image = as_numpy(detections.image)[index]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2  # [k, 2]: x, y
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1).clip(4) * 1.15
    steps = (np.arange(CROP_PIXELS) + 0.5) / CROP_PIXELS - 0.5
    at = np.floor(centre[:, :, None] + side[:, None, None] * steps).astype(np.int64)  # [k, 2, CROP_PIXELS]
    x, y = at[:, 0, None, :], at[:, 1, :, None]
    height, width = pixels.shape[1:3]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)  # [k, CROP_PIXELS, CROP_PIXELS]
    found = pixels[image[:, None, None], y.clip(0, height - 1), x.clip(0, width - 1)]
    return np.where(inside[..., None], found, np.float32(0.5))


def curves_page(curve: Sequence[Mapping[str, Any]], headings: Mapping[str, str] | None = None) -> Figure:
    """The curves of a training: metrics on the validation scenes, as in the paper's Figure 2a, and the loss.

    Below them, if there are any: the terms of the loss (if there are several), and the values of `Detector.watch`.
    """
    names = list(dict.fromkeys(name for row in curve for name in row["metrics"]))
    series = {n: np.array([_number(row["metrics"].get(n)) for row in curve]) for n in names}
    if headings is None:
        headings = {n: n for n, v in series.items() if np.all(np.isnan(v) | ((v >= 0) & (v <= 1)))}
    percent = any("%" in heading for heading in headings.values())
    terms, watched = _by_name(curve, "terms"), _by_name(curve, "watch")
    below = {"terms of the loss": terms if len(terms) > 1 else {}, "what the detector watches": watched}
    below = {title: lines for title, lines in below.items() if lines}
    figure = Figure((9.2, 3.4 * (2 if below else 1)), layout="constrained")
    rows = figure.subfigures(2 if below else 1, 1, squeeze=False)[:, 0]
    left, right = rows[0].subplots(1, 2, width_ratios=(3, 2))
    metrics = {headings[n]: series[n] * (100 if percent else 1) for n in headings if n in series}
    _plot(left, curve, "on validation scenes", metrics, ".1f" if percent else ".3f")
    left.set(ylim=(0, 101 if percent else 1.01))
    _plot(right, curve, "training loss", {"": np.array([_number(row["loss"]) for row in curve])})
    panels = rows[1].subplots(1, len(below), squeeze=False)[0] if below else []
    for axes, (title, lines) in zip(panels, below.items(), strict=True):
        _plot(axes, curve, title, lines)
        _spread(axes, lines)
    return figure


def _by_name(curve: Sequence[Mapping[str, Any]], group: str) -> dict[str, NDArray[np.float64]]:
    """The values of each name in a group of the rows; NaN where a row lacks the name."""
    names = dict.fromkeys(name for row in curve for name in row.get(group, {}))
    return {name: np.array([_number(row.get(group, {}).get(name)) for row in curve]) for name in names}


def _plot(
    axes: Axes,
    curve: Sequence[Mapping[str, Any]],
    title: str,
    lines: Mapping[str, NDArray[np.float64]],
    form: str = ".4g",
) -> None:
    """Plots lines over the steps of a curve, with names and last values; a line without a name is dark."""
    steps = [row["step"] for row in curve]
    styles = itertools.product(["-", "--", ":"], LINES)
    for (name, values), (style, colour) in zip(lines.items(), itertools.cycle(styles), strict=False):
        label = f"{name}: {values[-1]:{form}}" if name else None
        axes.plot(
            steps,
            values,
            style,
            color=colour if name else INK,
            linewidth=1.7,
            label=label,
            marker="o" if name else "",
            markersize=3,
        )
    if any(lines):
        size = 8 if len(lines) < 12 else 6.5
        if len(lines) > 3:
            axes.legend(frameon=False, fontsize=size, loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            axes.legend(frameon=False, fontsize=size)
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(f"training step ({_duration(curve[-1]['seconds'])} in all)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(axes: Axes, lines: Mapping[str, NDArray[np.float64]]) -> None:
    """Sets a logarithmic scale (linear around 0) for axes with lines of very different sizes."""
    sizes = [float(np.abs(v[np.isfinite(v)]).max(initial=0)) for v in lines.values()]
    sizes = [size for size in sizes if size > 0]
    if sizes and max(sizes) > SPREAD * min(sizes):
        axes.set_yscale("symlog", linthresh=max(min(sizes), 1e-6 * max(sizes)))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _duration(seconds: float) -> str:
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 10_800 else f"{seconds / 3600:.1f} h"


def draw(folder: Path, headings: Mapping[str, str]) -> list[Path]:
    """Draws the pictures of the finished cell in `folder`; returns the files that were written.

    Reads only files of the cell; needs neither plugins nor weights. headings: as in `write_pictures`.
    """
    trained = read_trained(folder.parent)
    kept = load_tensors(folder.parent / "shown.safetensors")
    images = kept["images"].float() / 255
    painted = kept["reconstructions"].float() / 255 if "reconstructions" in kept else None
    scenes = Scenes(images, _first(load_truth(folder), len(images)))
    found = _first(load_detections(folder), len(images))
    return write_pictures(
        folder, scenes, found, painted, trained.classes, read_curve(folder.parent), headings
    )


def _first(listed: Listed, count: int) -> Listed:
    """The entries in the first `count` images."""
    keep = listed.image < count
    parts = {name: value[keep] for name, value in vars(listed).items() if isinstance(value, Tensor)}
    return replace(listed, images=count, **parts)
