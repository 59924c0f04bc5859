"""The figures of the GMAIR paper (arXiv 2106.01722), from finished cells of any detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import patheffects
from numpy.typing import NDArray
from torch import Tensor

from objbench.cells.identity import OWN, read_cell
from objbench.cells.store import read_curve, read_trained
from objbench.detector import PRESENT, Detections
from objbench.errors import UsageError
from objbench.generation import Generator, Latents
from objbench.matching import as_numpy
from objbench.mistakes import matches, verdicts
from objbench.plugins import Registry, load_target
from objbench.report.pictures import FAINT, LINES, WRONG, Axes, Figure, colour_of, crops
from objbench.scenes import GroundTruth
from objbench.score.arrays import load_detections, load_tensors, load_truth
from objbench.score.samples import read_samples
from objbench.score.trained import load_detector

POINTS = 2000
"""How many what-latents t-SNE is given at most; it takes about ten seconds."""
NEAREST = 200
"""The paper's n: so many what-latents around a centre make the region of its cluster."""
SHARE = 0.6
"""And not more than this share of the cluster's."""
STYLES = 8
"""How many z_local are drawn for each cluster."""
SCENES = 4
"""How many scenes are varied."""
CROPS = 24
"""How many wrongly clustered objects are shown."""
HALO = [patheffects.withStroke(linewidth=3, foreground="white")]
"""Around text on many points."""
POINTS_SHOWN = 6
"""After how many training steps at most the samples of a training are shown; the first and the last are."""


class Series(NamedTuple):
    """The curves of one detector on one data set, a row a seed."""

    label: str
    curves: list[list[dict[str, Any]]]


EARLIEST_S = 0.1
"""Points before that are of an untrained detector, and have no place on a logarithmic axis."""
OVER = {"step": "training step", "seconds": "seconds of training"}
"""What a curve can be drawn over: a key of a curve's rows -> what its axis is called."""


def curves_figure(folders: Sequence[Path], headings: Mapping[str, str], over: str = "step") -> Figure:
    """Figure 2a: metrics on validation scenes over steps; lines are means over seeds, bands standard deviations.

    headings: metric value -> its name. over: a key of OVER; seconds are those of training alone, by the clock of the
    machine that trained, from a tenth of a second on, on a logarithmic axis. Cells that differ in the seed alone share
    a line. A curve is of the detector while it trains: where a clusterer replaces its clusters, of its own clusters.
    UsageError without a curve.
    """
    series: dict[str, Series] = {}
    drawn: set[tuple[str, str]] = set()
    for folder in folders:
        cell, curve = read_cell(folder), read_curve(folder.parent)
        identity = cell.training.identity
        clusterer = OWN if cell.about.get("replaces") else folder.name
        if curve and (folder.parent.name, clusterer) not in drawn:
            drawn.add((folder.parent.name, clusterer))
            key = str(sorted((k, str(v)) for k, v in identity.items() if k != "seed")) + clusterer
            series.setdefault(key, Series(label_of(folder, clusterer == OWN), [])).curves.append(curve)
    names = [n for n in headings if any(n in row["metrics"] for s in series.values() for row in s.curves[0])]
    if not names:
        raise UsageError("these cells have no curves: their detectors take no training steps")
    figure = Figure((4.2 * len(names), 3.4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for name, panel in zip(names, axes, strict=True):
        scale = 100 if "%" in headings[name] else 1
        for one, colour in zip(series.values(), LINES * len(series), strict=False):
            steps, values = _on_one_grid(one.curves, name, over)
            if not len(steps):
                continue
            with np.errstate(all="ignore"):
                mean, std = scale * values.mean(0), scale * values.std(0, ddof=min(1, len(values) - 1))
            seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
            panel.plot(steps, mean, color=colour, linewidth=1.7, label=one.label + seeds)
            panel.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        panel.set(title=headings[name], xlabel=OVER[over])
        if over == "seconds":
            panel.set_xscale("log")
        if scale == 100:
            panel.set_ylim(0, 101)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _on_one_grid(
    curves: Sequence[Sequence[Mapping[str, Any]]], name: str, over: str = "step"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps (or seconds) [s] that all curves reach, and the values of each there, [curves, s]; linear between."""
    known = []
    for curve in curves:
        points = [
            (row[over], row["metrics"][name])
            for row in curve
            if row["metrics"].get(name) is not None and (over == "step" or row[over] >= EARLIEST_S)
        ]
        if points:
            known.append(np.array(points, dtype=np.float64).T)
    if not known:
        return np.zeros(0), np.zeros((0, 0))
    first, last = max(of[0, 0] for of in known), min(of[0, -1] for of in known)
    steps = np.unique(np.concatenate([of[0] for of in known]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, *of) for of in known])


def latents_figure(folder: Path, registry: Registry) -> Figure:
    """Figures 2b to 2d and 5: t-SNE of the what-latents of found objects; below, wrongly clustered objects as crops.

    Left, colours are the true classes, and the region of each cluster is closed around the latents nearest to its
    centre, in the colour of the class that it stands for; right, colours are clusters. The centre is the mean that the
    detector has learned for the cluster (the paper's mu), if it has one and the weights are kept, else the mean of the
    cluster's latents. UsageError when the cell keeps no what-latents or no clusters.
    """
    from scipy.spatial import ConvexHull, QhullError
    from sklearn.manifold import TSNE

    found, truth = load_detections(folder), load_truth(folder)
    name = f"cell {folder.parent.name}/{folder.name}"
    if found.what is None:
        raise UsageError(
            f"{name} keeps no what-latents (published results leave them out); train it again first"
        )
    if found.clusters is None:
        raise UsageError(f"{name} has no clusters")
    taken, judged = matches(found, truth), verdicts(found, truth)
    every = max(1, -(-len(taken.detection) // POINTS))
    which, objects = taken.detection[::every], taken.object[::every]
    if len(which) < 5:
        raise UsageError(f"{name} finds {len(taken.detection)} objects; t-SNE needs at least 5")
    what = as_numpy(found.what)[which]
    labels, clusters = as_numpy(truth.labels)[objects], as_numpy(found.clusters)[which]
    names = [c for c in np.unique(clusters).tolist() if c >= 0]
    learned = _learned_centres(folder, registry)
    if learned is not None:
        centres = learned[names]
    else:
        centres = np.stack([what[clusters == c].mean(0) for c in names]) if names else what[:0]
    perplexity = min(30.0, (len(which) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
    at = tsne.fit_transform(np.concatenate([what, centres]).astype(np.float64))
    at, at_centre = at[: len(what)], at[len(what) :]

    figure = Figure((9.4, 6.2), layout="constrained")
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.6, 1.6))[:, 0]
    left, right = top.subplots(1, 2)
    dots = "learned means" if learned is not None else "means"
    titles = (f"colour: true class; large: {dots} of clusters", "colour: cluster")
    for axes, shown, title in zip((left, right), (labels, clusters), titles, strict=True):
        axes.scatter(*at.T, s=5, c=[colour_of(int(v)) for v in shown], linewidths=0)
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    for cluster, centre, dot in zip(names, centres, at_centre, strict=True):
        mine = np.flatnonzero(clusters == cluster)
        far = np.linalg.norm(what[mine] - centre, axis=1)
        near = at[mine[np.argsort(far)[: max(3, min(NEAREST, int(SHARE * len(mine))))]]]
        stands = judged.class_of.get(cluster, -1)
        colour = colour_of(stands) if stands >= 0 else "#888888"
        try:
            edge = near[ConvexHull(near).vertices]
            left.fill(*edge.T, facecolor=colour, alpha=0.18)
            left.plot(*np.concatenate([edge, edge[:1]]).T, color=colour, linewidth=1)
        except (QhullError, ValueError):  # fewer than three latents, or all on a line
            pass
        left.plot(*dot, "o", markersize=9, color=colour, markeredgecolor="black")
        middle = np.median(at[mine], axis=0)
        right.annotate(str(cluster), middle, ha="center", va="center", weight="bold", path_effects=HALO)
    _wrong_crops(below.subplots(), folder, taken.detection, taken.object, judged.class_of)
    figure.suptitle(f"what-latents of {label_of(folder)}: {len(which)} objects", fontsize=11)
    return figure


def _learned_centres(folder: Path, registry: Registry) -> NDArray[np.floating] | None:
    """The mean of each cluster's what-latents that the detector has learned, [clusters, A]; None without one."""
    spec = registry.models.get(read_cell(folder).training.identity["model"])
    if folder.name != OWN or spec is None or not spec.generate:
        return None
    if not (folder.parent / "weights.safetensors").exists():
        return None
    with torch.no_grad():
        known = generator_of(folder, registry).centres()
    return None if known is None else as_numpy(known[0])


def _wrong_crops(
    axes: Axes,
    folder: Path,
    detection: NDArray[np.int64],
    objects: NDArray[np.int64],
    class_of: Mapping[int, int],
) -> None:
    """Found objects in a cluster of another class, out of the scenes that are kept; titled "true class, cluster's"."""
    found, truth = load_detections(folder), load_truth(folder)
    assert found.clusters is not None
    axes.set_axis_off()
    if not (folder.parent / "shown.safetensors").exists():
        axes.set_title("pictures of the scenes are not kept in this store", fontsize=9)
        return
    images = as_numpy(load_tensors(folder.parent / "shown.safetensors")["images"]).astype(np.float32) / 255
    labels, clusters = as_numpy(truth.labels)[objects], as_numpy(found.clusters)[detection]
    means = np.array([class_of.get(int(c), -1) for c in clusters])
    wrong = np.flatnonzero((means != labels) & (as_numpy(found.image)[detection] < len(images)))
    title = f"wrongly clustered in the {len(images)} scenes that are kept: {len(wrong)} objects"
    axes.set_title(title + f", of which {CROPS}" * (len(wrong) > CROPS), fontsize=9)
    wrong = wrong[:CROPS]
    if not len(wrong):
        return
    pixels = np.stack([_rgb(image) for image in images])
    strip = crops(pixels, found, detection[wrong])  # [k, side, side, 3]
    side, classes = strip.shape[1], read_trained(folder.parent).classes
    axes.imshow(np.concatenate(list(strip), axis=1), extent=(0, len(wrong) * side, side, 0))
    for i, j in enumerate(wrong):
        stands = classes[means[j]] if means[j] >= 0 else "–"
        words = f"{classes[labels[j]][:6]}→{stands[:6]}"
        axes.text((i + 0.5) * side, side * 1.05, words, fontsize=6, color=WRONG, ha="center", va="top")


def generated_figure(folder: Path, registry: Registry) -> Figure:
    """Figure 3: what is generated from z_avg of each cluster (columns) with several z_local (rows; none in the first).

    UsageError when the detector's plugin does not generate, or the cell has neither a prior of clusters nor clusters.
    """
    generator = generator_of(folder, registry)
    mean, std = centres_of(folder, generator)
    local = _noise((STYLES - 1, mean.shape[1]))
    local = torch.cat([torch.zeros(1, mean.shape[1]), local])  # [styles, A]
    what = mean[None] + local[:, None] * std[None]  # [styles, clusters, A]
    with torch.no_grad():
        painted = generator.glimpses(what.flatten(0, 1)).clamp(0, 1)
    painted = painted.reshape(*what.shape[:2], *painted.shape[1:])
    title = f"{label_of(folder)}: z_avg of a cluster (across), z_local (down)"
    return _grid(painted, title, [str(k) for k in range(len(mean))])


def varied_figure(folder: Path, registry: Registry) -> Figure:
    """Figure 4: scenes, their reconstruction, all z_avg the same, other z_local, and boxes shuffled among objects.

    UsageError as `generated_figure`, and when the store keeps no pictures of the scenes.
    """
    generator = generator_of(folder, registry)
    mean, std = centres_of(folder, generator)
    if not (folder.parent / "shown.safetensors").exists():
        raise UsageError(
            f"cell {folder.parent.name}/{folder.name}: its store keeps no pictures of the scenes"
        )
    images = load_tensors(folder.parent / "shown.safetensors")["images"][:SCENES].float() / 255
    with torch.no_grad():
        latents = generator.latents(images)
        scaled = (latents.what[:, :, None] - mean) / std.clamp(min=1e-3)  # [n, k, clusters, A]
        own = scaled.square().mean(-1).argmin(-1)  # [n, k]: the cluster whose centre is nearest
        chosen = torch.randint(len(mean), (), generator=_random())
        same = latents.what - mean[own] + mean[chosen]
        other = mean[own] + std[own] * _noise(tuple(latents.what.shape))
        changes = (latents, latents._replace(what=same), latents._replace(what=other), _shuffled(latents))
        painted = [images, *(generator.paint(changed).clamp(0, 1) for changed in changes)]
    titles = ["scene", "reconstruction", "one z_avg", "other z_local", "boxes shuffled"]
    return _grid(torch.stack(painted, 1), label_of(folder), titles)


def _shuffled(latents: Latents) -> Latents:
    """The boxes of the objects that are present dealt anew among these, in each image."""
    boxes = latents.boxes.clone()
    for i, present in enumerate(latents.presence >= PRESENT):
        places = present.nonzero()[:, 0]
        boxes[i, places] = latents.boxes[i, places[torch.randperm(len(places), generator=_random())]]
    return latents._replace(boxes=boxes)


def iterations_figure(folder: Path) -> Figure:
    """Figures 2e to 2h: validation scenes through the training: what is found, and below it what is painted.

    The first column has the true boxes. Colours are clusters; white where the detector does not cluster. UsageError
    when the training kept no samples.
    """
    kept = read_samples(folder.parent)
    if kept is None or not kept.points:
        raise UsageError(
            f"cell {folder.parent.name}/{folder.name} keeps no samples of its training: its detector takes no "
            "training steps, it was trained with an earlier version, or published results left them out"
        )
    which = np.unique(np.linspace(0, len(kept.points) - 1, POINTS_SHOWN).round().astype(int))
    points = [kept.points[i] for i in which]
    images = as_numpy(kept.images).astype(np.float32) / 255
    parts = 1 + any(point.painted is not None for point in points)
    across, rows, side = 1 + len(points), len(images) * parts, 1.4
    figure = Figure((0.2 + across * side, 0.6 + rows * side))
    panels = figure.subplots(rows, across, squeeze=False)
    top = 1 - 0.55 / figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=top, wspace=0.04, hspace=0.04)
    for row, column in np.ndindex(rows, across):
        axes: Any = panels[row, column]  # numpy gives Axes no type
        scene = row // parts
        painted = row % parts == 1
        axes.set(xticks=[], yticks=[])
        point = points[column - 1]
        if painted and (not column or point.painted is None):
            axes.set_axis_off()
            continue
        shown = (
            as_numpy(point.painted[scene]) / 255 if painted and point.painted is not None else images[scene]
        )
        axes.imshow(_rgb(shown.astype(np.float32)), interpolation="nearest", vmin=0, vmax=1)
        axes.set_autoscale_on(False)
        if not painted:
            listed, boxes = (kept.truth, None) if not column else (point.found, point.found.scores)
            _sample_boxes(axes, listed, boxes, scene)
        if row == 0:
            axes.set_title(f"step {point.step}" if column else "true boxes", fontsize=8, pad=3)
    figure.suptitle(
        y=1 - 0.1 / figure.get_figheight(),
        t=f"validation scenes during the training of {label_of(folder)}",
        fontsize=9,
    )
    return figure


def _sample_boxes(axes: Axes, listed: Detections | GroundTruth, scores: Tensor | None, scene: int) -> None:
    """The boxes of a scene; dotted where the score is below PRESENT, left out below FAINT."""
    clusters = listed.clusters if isinstance(listed, Detections) else None
    for j in np.flatnonzero(as_numpy(listed.image) == scene):
        score = 1.0 if scores is None else float(scores[j])
        if score < FAINT:
            continue
        x0, y0, x1, y1 = listed.boxes[j].tolist()
        colour = "white" if clusters is None else colour_of(int(clusters[j]))
        style, width = ("-", 1.4) if score >= PRESENT else (":", 0.8)
        axes.plot((x0, x1, x1, x0, x0), (y0, y0, y1, y1, y0), style, color=colour, linewidth=width)


def generator_of(folder: Path, registry: Registry) -> Generator:
    """What generates with the detector of a cell. UsageError when its plugin has no such part."""
    name = read_cell(folder).training.identity["model"]
    spec = registry.model(name)
    if not spec.generate:
        able = ", ".join(other for other, of in registry.models.items() if of.generate)
        raise UsageError(
            f"the model '{name}' does not generate: its ModelSpec.generate is empty (these do: {able})"
        )
    generator: Generator = load_target(spec.generate)(load_detector(registry, folder.parent))
    return generator


def centres_of(folder: Path, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mean and deviation of what-latents of each cluster, [clusters, A]: the detector's, or of the cell's clusters."""
    with torch.no_grad():
        known = generator.centres()
    if known is not None:
        return known
    found = load_detections(folder)
    if found.what is None or found.clusters is None:
        raise UsageError(f"cell {folder.parent.name}/{folder.name} keeps no what-latents or no clusters")
    present = found.scores >= PRESENT
    names = [c for c in np.unique(as_numpy(found.clusters[present])).tolist() if c >= 0]
    groups = [found.what[present & (found.clusters == c)] for c in names]
    if not groups:
        raise UsageError(
            f"cell {folder.parent.name}/{folder.name} finds no object with a score of {PRESENT:g}"
        )
    return torch.stack([g.mean(0) for g in groups]), torch.stack([g.std(0, correction=0) for g in groups])


def label_of(folder: Path, own: bool = False) -> str:
    """The name of a cell's row, with its data, and with its clusterer unless only the detector's `own` is meant."""
    cell = read_cell(folder)
    identity, about = cell.training.identity, cell.training.about
    model, data = (about.get(part, {}).get("label") or identity[part] for part in ("model", "data"))
    clusterer = cell.clusterer["name"]
    if not own and clusterer != OWN:
        model += f" + {cell.about.get('label') or clusterer}"
    return f"{model} on {data}"


def _random() -> torch.Generator:
    """The same numbers each time: a figure that is made again is the same."""
    return torch.Generator().manual_seed(0)


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=_random())


def _rgb(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """[channels, height, width] of 1 to 3 channels as [height, width, 3]."""
    image = image.repeat(3, axis=0) if len(image) == 1 else image
    return np.concatenate([image, np.zeros_like(image[: 3 - len(image)])]).transpose(1, 2, 0)


def _grid(pictures: Tensor, title: str, columns: Sequence[str]) -> Figure:
    """Pictures [rows, columns, channels, height, width] in 0..1."""
    rows, across = pictures.shape[:2]
    figure = Figure(
        (0.5 + max(4.0, across * (0.75 if across > 5 else 1.5)), 0.6 + rows * (0.75 if across > 5 else 1.5))
    )
    panels = figure.subplots(rows, across, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for i in range(rows):
        for j in range(across):
            panels[i, j].imshow(_rgb(as_numpy(pictures[i, j])), interpolation="nearest", vmin=0, vmax=1)
            panels[i, j].set(xticks=[], yticks=[])
            if i == 0:
                panels[i, j].set_title(columns[j], fontsize=8, pad=3)
    high = figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.5 / high)
    figure.suptitle(title, fontsize=9, y=1 - 0.08 / high)
    return figure


def draw(name: str, folders: Sequence[Path], registry: Registry, over: str = "step") -> Figure:
    """The figure of that name, one of `objbench figure`'s. All but "curves" are of one cell; UsageError otherwise."""
    if name == "curves":
        return curves_figure(folders, registry.columns, over)
    if len(folders) != 1:
        raise UsageError(f"the figure '{name}' is of one cell; {len(folders)} are given")
    of_one: dict[str, Callable[[], Figure]] = {
        "iterations": lambda: iterations_figure(folders[0]),
        "latents": lambda: latents_figure(folders[0], registry),
        "generated": lambda: generated_figure(folders[0], registry),
        "varied": lambda: varied_figure(folders[0], registry),
    }
    return of_one[name]()
