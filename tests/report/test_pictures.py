"""Pictures are read back: what is drawn must be where it is, and say what it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from objbench.detector import Detections
from objbench.report.pictures import (
    CROP_PIXELS,
    CROPS,
    DPI,
    WRONG,
    clusters_page,
    colour_of,
    crops,
    curves_page,
    held_by,
    majority,
    scenes_page,
    write_pictures,
)
from objbench.scenes import GroundTruth, Scenes

CLASSES = ("round", "square")
BOX = (20.0, 12.0, 40.0, 36.0)


def scene(channels: int = 1, images: int = 1, height: int = 64, width: int = 64) -> Scenes:
    """Each image black but for BOX, which is a dim grey; its truth is BOX, of class "square"."""
    pictures = torch.zeros(images, channels, height, width)
    x0, y0, x1, y1 = map(int, BOX)
    pictures[:, :, y0:y1, x0:x1] = 0.25
    truth = GroundTruth.of([torch.tensor([BOX])] * images, [torch.tensor([1])] * images)
    return Scenes(pictures, truth)


def found(
    boxes: list[tuple[float, ...]], scores: list[float], clusters: list[int] | None, images: int = 1
) -> Detections:
    """These detections, dealt over the images in turn."""
    return Detections(
        images,
        torch.arange(len(boxes)) % images,
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(scores),
        None if clusters is None else torch.tensor(clusters),
    )


def drawn(figure: Figure, tmp_path: Path) -> NDArray[np.float64]:
    """The figure as pixels [height, width, 3] in 0..1."""
    figure.savefig(tmp_path / "page.png", dpi=DPI)
    return np.asarray(Image.open(tmp_path / "page.png").convert("RGB")) / 255


def page_of(scenes: Scenes, detections: Detections, picture: torch.Tensor | None = None) -> Figure:
    return scenes_page(scenes, detections, held_by(detections, scenes), picture, CLASSES)


def where(pixels: NDArray[np.float64], colour: str | tuple[float, float, float]) -> NDArray[np.bool_]:
    return np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02


def extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what is true."""
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_is_drawn_where_the_detection_is(channels: int, tmp_path: Path) -> None:
    detections = found([BOX], [0.9], [4])
    pixels = drawn(page_of(scene(channels), detections), tmp_path)
    panel = pixels[36:-56, : pixels.shape[1] // 2]  # "found", without the words above and below
    square = extent(where(panel, (0.25, 0.25, 0.25)))
    frame = where(panel, colour_of(4))
    frame[: square[1] - 3] = False  # the tag above the box
    assert frame.any()
    assert extent(frame) == pytest.approx(square, abs=3)
    x0, y0, x1, y1 = square
    assert not frame[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5].any()
    for side in (
        frame[y0 : y0 + 3],
        frame[y1 - 3 : y1 + 3],
        frame[:, x0 - 3 : x0 + 3].T,
        frame[:, x1 - 3 : x1 + 3].T,
    ):
        assert side.any()


def test_unsure_boxes_are_dotted_and_hopeless_ones_are_not_drawn(tmp_path: Path) -> None:
    counts = []
    for score in (0.9, 0.3, 0.05):
        page = page_of(scene(), found([BOX], [score], [4]))
        axes = page.axes[0]
        counts.append(int(where(drawn(page, tmp_path)[:-60], colour_of(4)).sum()))
        assert [t.get_text() for t in axes.texts] == (["4 .90"] if score == 0.9 else [])
        assert [p.get_linestyle() for p in axes.patches] == {0.9: ["-"], 0.3: [":"], 0.05: []}[score]
    assert counts[0] > 3 * counts[1]
    assert counts[2] == 0


def test_true_boxes_carry_their_class(tmp_path: Path) -> None:
    page = page_of(scene(), found([], [], []))
    assert [t.get_text() for t in page.axes[0].texts] == []
    assert [t.get_text() for t in page.axes[1].texts] == ["square"]
    corners = page.axes[1].patches[0].get_bbox().extents
    assert tuple(corners) == BOX


def test_the_legend_names_what_each_cluster_mostly_is(tmp_path: Path) -> None:
    boxes = [BOX, BOX, (0.0, 50.0, 5.0, 60.0)]
    page = page_of(scene(images=3), found(boxes, [0.9] * 3, [7, 7, 2], images=3))
    assert [t.get_text() for t in page.legends[0].get_texts()] == ["2 → no object", "7 → square"]


@pytest.mark.parametrize(("images", "groups"), [(1, (1, 1)), (2, (2, 1)), (5, (2, 3)), (30, (2, 4))])
def test_a_page_has_two_scenes_across_and_eight_at_most(images: int, groups: tuple[int, int]) -> None:
    scenes, nothing = scene(images=images), found([], [], [], images)
    across, down = groups
    for picture, parts in ((None, 2), (scenes.images, 3)):
        page = page_of(scenes, nothing, picture)
        assert len(page.axes) == min(images, 8) * parts
        wide, tall = page.get_size_inches()
        assert across * parts * 2.0 < wide < across * parts * 2.0 + 1.2
        assert down * 2.0 < tall < down * 2.0 + 1.3


def test_panels_keep_the_shape_of_the_image(tmp_path: Path) -> None:
    page = page_of(scene(height=48, width=96), found([], [], []))
    box = page.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(2)


def test_pictures_of_fewer_scenes_than_shown_leave_panels_black() -> None:
    scenes = scene(images=3)
    page = page_of(scenes, found([], [], [], 3), scenes.images[:1])
    assert [len(axes.images) for axes in page.axes] == [1, 1, 1, 1, 1, 0, 1, 1, 0]


def test_crops_are_the_pixels_of_the_box_and_grey_outside() -> None:
    pixels = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)
    cut = crops(pixels, found([(4, 4, 10, 8), (-6, 4, 6, 8)], [1.0, 1.0], [0, 0], 2), np.array([0, 1]))
    assert cut.shape == (2, CROP_PIXELS, CROP_PIXELS, 3)
    assert np.array_equal(cut[0, CROP_PIXELS // 2, CROP_PIXELS // 2], pixels[0, 6, 7])
    assert (cut[1, :, :14] == 0.5).all()
    assert np.array_equal(cut[1, CROP_PIXELS // 2, -1], pixels[1, 6, 6])


def test_majority_leaves_out_what_lies_on_no_object() -> None:
    assert majority(np.array([-1, -1, -1, 2, 2, 0])) == (2, pytest.approx(2 / 3))
    assert majority(np.array([-1])) == (-1, 0)


def test_clusters_page_frames_what_does_not_belong(tmp_path: Path) -> None:
    scenes = scene(images=4)
    labels = torch.tensor([1, 1, 1, 0])
    scenes = Scenes(scenes.images, GroundTruth(4, scenes.truth.image, scenes.truth.boxes, labels))
    boxes = [BOX, BOX, (0.0, 40.0, 10.0, 60.0), BOX]
    detections = found(boxes, [0.99, 0.9, 0.8, 0.7], [3, 3, 3, 3], 4)
    page = clusters_page(scenes, detections, held_by(detections, scenes), CLASSES)
    (axes,) = page.axes
    assert [p.get_linestyle() for p in axes.patches] == [":", "-"]
    assert {"3", "67 % square\n4 boxes"} <= {t.get_text() for t in page.texts}
    x0, _, x1, _ = extent(where(drawn(page, tmp_path), WRONG))
    places = axes.get_window_extent().transformed(page.dpi_scale_trans.inverted())
    width = (places.x1 - places.x0) / 4
    assert x0 / DPI == pytest.approx(places.x0 + 2 * width, abs=0.05)  # the third and fourth of four
    assert x1 / DPI == pytest.approx(places.x1, abs=0.05)


def test_a_row_of_a_cluster_shows_so_many_and_only_present_boxes() -> None:
    n = CROPS * 3
    detections = found([BOX] * n + [BOX], [0.9] * n + [0.4], [0] * n + [1])
    scenes = scene()
    page = clusters_page(scenes, detections, held_by(detections, scenes), CLASSES)
    assert len(page.axes) == 1
    assert page.axes[0].images[0].get_array().shape[1] / page.axes[0].images[0].get_array().shape[0] == CROPS


CURVE = [
    {
        "step": s,
        "seconds": s / 10,
        "loss": 100.0 / (s + 1),
        "metrics": {"ap": s / 100, "acc": None, "objects": 3.0},
        "terms": {},
    }
    for s in (0, 50, 100)
]


def test_curves_show_the_metrics_that_have_headings() -> None:
    left, right = curves_page(CURVE, {"ap": "AP (%)", "nmi": "NMI (%)"}).axes
    assert [line.get_label() for line in left.lines] == ["AP (%): 100.0"]
    assert left.lines[0].get_xydata().tolist() == [[0, 0], [50, 50], [100, 100]]
    assert right.lines[0].get_ydata().tolist() == [100.0, 100 / 51, 100 / 101]
    assert "10 s" in left.get_xlabel()
    left, _ = curves_page(CURVE).axes
    assert [line.get_label() for line in left.lines] == ["ap: 1.000", "acc: nan"]


def test_terms_of_the_loss_and_what_is_watched_have_a_panel_each() -> None:
    rows: list[dict[str, Any]] = [
        {**row, "terms": {"image": 900.0 - i, "prior": 0.5 * i}, "watch": {"objects": 3.0 + i} if i else {}}
        for i, row in enumerate(CURVE)
    ]
    *_, terms, watched = axes = curves_page(rows, {"ap": "AP (%)"}).axes
    assert [a.get_title() for a in axes] == [
        "on validation scenes",
        "training loss",
        "terms of the loss",
        "what the detector watches",
    ]
    last = len(CURVE) - 1
    assert [line.get_label() for line in terms.lines] == [f"image: {900 - last}", f"prior: {0.5 * last:g}"]
    assert terms.lines[1].get_ydata().tolist() == [0.5 * i for i in range(len(CURVE))]
    assert terms.get_yscale() == "symlog", "a prior of 1 beside an image of 900 is to be seen"
    assert np.isnan(watched.lines[0].get_ydata()[0])
    assert watched.get_yscale() == "linear"
    one_term = [{**row, "terms": {"loss": 1.0}} for row in CURVE]
    assert len(curves_page(one_term).axes) == 2, "a single term is the loss"
    many = [{**row, "watch": {f"w{k}": float(k) for k in range(30)}} for row in CURVE]
    drawn_as = {(line.get_color(), line.get_linestyle()) for line in curves_page(many).axes[-1].lines}
    assert len(drawn_as) == 21, "colours come again dashed, then dotted"


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_writes_every_page_there_is_something_for(channels: int, tmp_path: Path) -> None:
    scenes = scene(channels, 2)
    clustered = found([BOX, BOX], [0.9, 0.8], [0, 1], 2)
    everything = write_pictures(tmp_path, scenes, clustered, scenes.images, CLASSES, CURVE)
    assert [path.name for path in everything] == ["scenes.png", "clusters.png", "curves.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clusters.png", "curves.png", "scenes.png"]
    for path in everything:
        assert min(Image.open(path).size) > 100
    bare = write_pictures(tmp_path, scenes, found([BOX], [0.9], None, 2), None, CLASSES, [])
    assert [path.name for path in bare] == ["scenes.png"]
    unsure = write_pictures(tmp_path, scenes, found([BOX], [0.2], [0], 2), None, CLASSES, [])
    assert [path.name for path in unsure] == ["scenes.png"]


@pytest.mark.slow
def test_drawing_needs_no_global_state() -> None:
    code = "import sys, objbench.report.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_pictures_are_drawn_whatever_backend_a_notebook_asks_for(backend: str) -> None:
    code = (
        "import io, os\nfrom objbench.report.pictures import Figure\n"
        "Figure((1, 1)).savefig(io.BytesIO(), format='png')\nprint(os.environ['MPLBACKEND'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, backend), ran.stderr
