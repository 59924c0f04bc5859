"""The paper's figures are drawn from tiny cells, and generators paint what their detectors reconstruct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from objbench.cells.identity import Cell, Training, read_cell, write_cell
from objbench.cells.result import Position, Trained
from objbench.cells.store import write_curve, write_record, write_trained
from objbench.commands import cli
from objbench.detector import Detections, Detector
from objbench.errors import UsageError
from objbench.options import build
from objbench.plugins import load_plugins, load_target
from objbench.report.paper_figures import _on_one_grid, _shuffled, draw
from objbench.scenes import GroundTruth, SceneShape
from objbench.score.arrays import flat, save_tensors, select_scenes
from objbench.score.random_state import seed_everything
from objbench.score.samples import Point, Samples, write_samples

SHAPE = SceneShape(1, 32, 32)
CONFIGS: dict[str, dict[str, Any]] = {
    "gmair": {"backbone": "small", "decoder": "mlp", "clusters": 4, "what_dim": 6, "base_box": 20.0},
    "spair": {"what_dim": 6, "anchor": 20.0},
    "space": {"glimpse_nets": "mlp", "what_dim": 6, "background_nets": "mlp", "components": 1},
}
SCENES = 12


def detector_of(model: str) -> Detector:
    """An untrained detector of small scenes."""
    target = load_target(load_plugins().model(model).target)
    seed_everything(0)
    detector: Detector = target(build(target.Config, model, CONFIGS[model]), SHAPE)
    return detector.eval()


def tiny_cell(out: Path, model: str, seed: int = 0, what: bool = True) -> Path:
    """A finished cell with the weights of an untrained detector; a cluster for each of two classes but for a few."""
    identity: dict[str, Any] = {"model": model, "data": "d", "seed": seed, "protocol": {"name": "demo"}}
    identity |= {"model_config": CONFIGS.get(model, {}), "data_config": {}}
    cell = Cell(Training(identity, CONFIGS.get(model, {}), {}, {}), {"name": "own"})
    folder = out / "cells" / cell.key
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    image = torch.arange(SCENES).repeat_interleave(2)
    boxes = torch.tensor([[2.0, 2, 12, 12], [16, 16, 30, 30]]).repeat(SCENES, 1)
    labels = torch.tensor([0, 1]).repeat(SCENES)
    clusters = torch.where(torch.arange(2 * SCENES) % 7 == 0, 1, labels)
    latents = torch.randn(2 * SCENES, 6, generator=torch.Generator().manual_seed(0)) + 5 * labels[:, None]
    found = Detections(
        SCENES, image, boxes, torch.full((2 * SCENES,), 0.9), clusters, latents if what else None
    )
    save_tensors(folder.parent / "detections.safetensors", flat(found))
    save_tensors(folder.parent / "truth.safetensors", flat(GroundTruth(SCENES, image, boxes, labels)))
    shown = torch.randint(255, (SCENES, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    save_tensors(folder.parent / "shown.safetensors", {"images": shown})
    files = ["detections.safetensors", "truth.safetensors", "shown.safetensors", "curve.jsonl"]
    if what:
        first = torch.arange(2)
        samples = Samples(
            shown[:2], select_scenes(found, GroundTruth(SCENES, image, boxes, labels), first)[1], []
        )
        few = select_scenes(found, GroundTruth(SCENES, image, boxes, labels), first)[0]
        few = Detections(2, few.image, few.boxes, few.scores, few.clusters)
        samples.points.extend(Point(step, few, shown[:2]) for step in (1, 2, 4))
        write_samples(folder.parent, samples)
        files.append("samples.safetensors")
    if model in CONFIGS:
        save_tensors(folder.parent / "weights.safetensors", detector_of(model).state_dict())
        files.append("weights.safetensors")
    points = [{"step": k, "metrics": {"ap50": 0.1 * k + 0.1 * seed, "nmi": None}} for k in (1, 2, 4)]
    write_curve(folder.parent, points)
    write_trained(
        folder.parent, Trained(cell.training.key, Position(), ("a", "b"), SHAPE, False, [], {}), files
    )
    write_record(folder, cell.result("done"))
    return folder


def drawn(path: Path) -> int:
    """How many colours a picture has."""
    return len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0))


@pytest.mark.parametrize("name", ["curves", "iterations", "latents", "generated", "varied"])
def test_each_figure_is_made_from_a_tiny_cell(name: str, tmp_path: Path) -> None:
    cell = tiny_cell(tmp_path, "gmair")
    for form, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        target = tmp_path / f"figure.{form}"
        ran = CliRunner().invoke(
            cli, ["figure", name, str(cell), "--to", str(target)], catch_exceptions=False
        )
        assert (ran.exit_code, ran.stdout) == (0, f"{target}\n")
        assert target.read_bytes().startswith(start)
    assert drawn(tmp_path / "figure.png") > 20


def test_a_training_that_was_interrupted_can_be_looked_at(tmp_path: Path) -> None:
    """Nothing but its curve and its samples are there; figures of detections wait for its end."""
    folder = tiny_cell(tmp_path, "gmair")
    write_record(folder, read_cell(folder).result("interrupted"))
    for name in ("detections.safetensors", "weights.safetensors", "shown.safetensors", "trained.json"):
        (folder.parent / name).unlink()
    for name in ("curves", "iterations"):
        target = tmp_path / f"{name}.png"
        ran = CliRunner().invoke(cli, ["figure", name, str(folder), "--to", str(target)])
        assert (ran.exit_code, ran.stdout) == (0, f"{target}\n"), ran.output
        assert drawn(target) > 20
    refused = CliRunner().invoke(cli, ["figure", "latents", str(folder), "--to", str(tmp_path / "x.png")])
    assert isinstance(refused.exception, UsageError)
    assert "is not done but interrupted; run it first" in str(refused.exception)
    assert not (tmp_path / "x.png").exists()


def test_a_curve_is_drawn_once_whatever_replaces_the_clusters(tmp_path: Path) -> None:
    registry = load_plugins()
    cells = [tiny_cell(tmp_path, "gmair", seed) for seed in (0, 1)]
    for own in list(cells):
        cell = Cell(read_cell(own).training, {"name": "kmeans"}, {"label": "k-means", "replaces": True})
        folder = tmp_path / "cells" / cell.key
        folder.mkdir()
        write_cell(folder, cell)
        cells.append(folder)
    for few in (cells, cells[2:]):
        figure = draw("curves", few, registry)
        assert [line.get_label() for line in figure.axes[0].lines] == ["gmair on d (2 seeds)"]


def test_large_dots_are_the_means_that_were_learned_where_there_are_some(tmp_path: Path) -> None:
    registry = load_plugins()
    for model, says in (("gmair", "learned means"), ("spair", "large: means")):
        cell = tiny_cell(tmp_path, model)
        left = draw("latents", [cell], registry).axes[0]
        assert says in left.get_title()
        assert sum(line.get_marker() == "o" for line in left.lines) == 2  # of two clusters
    cell = tiny_cell(tmp_path, "gmair", seed=1)
    (cell.parent / "weights.safetensors").unlink()
    assert "large: means" in draw("latents", [cell], registry).axes[0].get_title()


@pytest.mark.parametrize("model", ["spair", "space"])
def test_detectors_without_a_prior_of_clusters_generate_from_those_of_the_cell(
    model: str, tmp_path: Path
) -> None:
    cell, registry = tiny_cell(tmp_path, model), load_plugins()
    assert len(draw("generated", [cell], registry).axes) == 8 * 2  # two clusters
    assert len(draw("varied", [cell], registry).axes) == 4 * 5


@pytest.mark.parametrize("model", list(CONFIGS))
def test_unchanged_latents_are_painted_as_reconstructed(model: str) -> None:
    detector = detector_of(model)
    generator = load_target(load_plugins().model(model).generate)(detector)
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = generator.latents(images)
        expected: Tensor | None = detector.reconstruct(images)
        assert expected is not None
        assert torch.allclose(generator.paint(latents), expected, atol=1e-5)
        shown = latents._replace(presence=torch.ones_like(latents.presence))
        moved = shown._replace(what=shown.what + 3)
        assert not torch.allclose(generator.paint(moved), generator.paint(shown), atol=1e-4)
        glimpses = generator.glimpses(latents.what[0])
    assert glimpses.shape[:2] == (len(latents.what[0]), 1)
    assert ((glimpses >= 0) & (glimpses <= 1)).all()
    n, k = latents.presence.shape
    assert (latents.what.shape[:2], latents.boxes.shape) == ((n, k), (n, k, 4))


def test_only_boxes_of_present_objects_are_shuffled_and_none_is_lost() -> None:
    generator = load_target(load_plugins().model("gmair").generate)(detector_of("gmair"))
    with torch.no_grad():
        latents = generator.latents(torch.rand(1, *SHAPE))
    k = latents.boxes.shape[1]
    boxes = torch.arange(4.0 * k).view(1, k, 4)
    latents = latents._replace(boxes=boxes, presence=(torch.arange(k) % 2).float()[None])
    dealt = _shuffled(latents).boxes
    assert torch.equal(dealt[0, ::2], boxes[0, ::2])
    assert sorted(dealt[0, :, 0].tolist()) == boxes[0, :, 0].tolist()


def test_seeds_are_joined_where_all_have_curves() -> None:
    curves = [
        [{"step": s, "metrics": {"ap50": s / 10}} for s in (2, 4, 8)],
        [{"step": s, "metrics": {"ap50": s / 5}} for s in (1, 4, 6)],
    ]
    steps, values = _on_one_grid(curves, "ap50")
    assert steps.tolist() == [2, 4, 6]
    assert values == pytest.approx(np.array([[0.2, 0.4, 0.6], [0.4, 0.8, 1.2]]))
    assert len(_on_one_grid(curves, "none")[0]) == 0


def test_curves_over_seconds_begin_when_training_has_begun(tmp_path: Path) -> None:
    """An untrained detector's point has no place on a logarithmic axis; the axis is named."""
    seconds = [[(0.0, 0.0), (2.0, 0.2), (6.0, 0.6)], [(0.01, 0.0), (1.0, 0.2), (4.0, 0.8), (9.0, 1.0)]]
    curves = [
        [{"step": 10 * i, "seconds": s, "metrics": {"ap50": v}} for i, (s, v) in enumerate(curve)]
        for curve in seconds
    ]
    grid, values = _on_one_grid(curves, "ap50", "seconds")
    assert grid.tolist() == [2, 4, 6]
    assert values == pytest.approx(np.array([[0.2, 0.4, 0.6], [0.4, 0.8, 0.88]]))
    cells = [tiny_cell(tmp_path, "gmair", seed) for seed in (0, 1)]
    for cell, curve in zip(cells, curves, strict=True):
        write_curve(cell.parent, curve)
    panel = draw("curves", cells, load_plugins(), "seconds").axes[0]
    assert (panel.get_xlabel(), panel.get_xscale()) == ("seconds of training", "log")
    assert panel.lines[0].get_xdata().tolist() == [2, 4, 6]
    refused = CliRunner().invoke(
        cli, ["figure", "latents", str(cells[0]), "--over", "seconds", "--to", str(tmp_path / "x.png")]
    )
    assert str(refused.exception) == "--over is for the figure 'curves', not for 'latents'"


def test_what_cannot_be_drawn_is_said_in_a_line(tmp_path: Path) -> None:
    registry = load_plugins()
    bare = tiny_cell(tmp_path / "a", "pca-gmm", what=False)
    with pytest.raises(UsageError, match="keeps no what-latents"):
        draw("latents", [bare], registry)
    with pytest.raises(UsageError, match=r"'pca-gmm' does not generate.*gmair"):
        draw("generated", [bare], registry)
    with pytest.raises(UsageError, match="keeps no samples of its training"):
        draw("iterations", [bare], registry)
    two = [tiny_cell(tmp_path / "b", "gmair", seed) for seed in (0, 1)]
    with pytest.raises(UsageError, match="of one cell; 2 are given"):
        draw("varied", two, registry)
    ran = CliRunner().invoke(cli, ["figure", "curves", str(bare), "--to", "x.jpg"], standalone_mode=False)
    assert str(ran.exception) == "--to x.jpg: the name must end in .png, .svg, .pdf"
