"""fruit2d-sim: what the simulated game is like, that boxes and pixels agree, that its cache is safe."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from objbench.options import build
from objbench_plugins.fruit2d import drawing, kept
from objbench_plugins.fruit2d.simulated import Fruit2DSim, Fruit2DSimConfig
from objbench_plugins.fruit2d.states import (
    DIAMETERS,
    FIELD,
    FRUITS,
    PLACES,
    SCENES,
    States,
    load,
    shipped,
)
from objbench_plugins.fruit2d.textures import TEXELS, textures

DIAMETERS_AT_128 = [9.24, 14.22, 19.2, 21.16, 27.2, 32.5, 34.3, 45.9, 54.8]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def source(**options) -> Fruit2DSim:
    return Fruit2DSim(build(Fruit2DSimConfig, "fruit2d-sim", {"size": 32} | options), 0)


def lying(*fruits: tuple[float, float, float, int]) -> States:
    """One scene of fruits at (x, y) in units, turned by so much of a full turn, of such a kind."""
    x, y, turn, kind = np.array(fruits).T
    return States(
        game=np.zeros(1, np.uint16),
        count=np.array([len(fruits)], np.uint8),
        x=np.round(x * PLACES).astype(np.uint16),
        y=np.round(y * PLACES).astype(np.uint16),
        angle=np.round(turn * 256).astype(np.uint8),
        fruit=kind.astype(np.uint8),
    )


def in_scene(states: States, scene: int) -> slice:
    return slice(states.starts[scene], states.starts[scene + 1])


# The game


def test_diameters_are_those_of_the_game():
    boxes = drawing.boxes(shipped(), 128)
    inside = ((boxes > 0) & (boxes < 128)).all(axis=1)
    for kind, diameter in enumerate(DIAMETERS_AT_128):
        sides = (boxes[:, 2:] - boxes[:, :2])[inside & (shipped().fruit == kind)]
        assert np.allclose(sides, diameter, atol=0.06), FRUITS[kind]
    assert DIAMETERS[-1] / DIAMETERS[0] == pytest.approx(5.92, abs=0.01)
    half = drawing.boxes(shipped(), 64)
    assert np.allclose(half, boxes / 2)


def test_there_are_about_31_times_as_many_of_the_smallest_over_enough_games():
    assert len(np.unique(shipped().game)) >= 247
    counts = np.bincount(shipped().fruit, minlength=len(FRUITS))
    assert 20 <= counts[0] / counts[-1] <= 45
    assert (np.diff(counts) < 0).all()


def test_objects_an_image():
    assert 13.5 <= shipped().count.mean() <= 16.5
    assert shipped().count.max() <= 40


def test_no_game_reaches_into_two_splits_and_any_few_scenes_are_of_many_games():
    ends = np.cumsum(list(SCENES.values()))
    assert ends[-1] == len(shipped().game)
    games = np.split(shipped().game, ends[:-1])
    for i, some in enumerate(games):
        assert not set(some) & set(np.concatenate(games[:i] + games[i + 1 :]))
        assert len(np.unique(some[:200])) > 0.9 * min(100, len(np.unique(some)))


def test_fruits_lie_side_by_side():
    states, deepest, overlap = shipped(), [], []
    for scene in range(len(states.game)):
        here = in_scene(states, scene)
        x, y = states.x[here] / PLACES, states.y[here] / PLACES
        radius = DIAMETERS[states.fruit[here]] / 2
        between = radius[:, None] + radius - np.hypot(x[:, None] - x, y[:, None] - y)
        np.fill_diagonal(between, 0)
        box = radius - np.minimum.reduce([x, FIELD - x, FIELD - y])
        deepest.append(max(0, between.max(), box.max()) * 128 / FIELD)
        overlap.append(largest_iou(np.stack([x - radius, y - radius, x + radius, y + radius])))
    assert np.percentile(deepest, 95) <= 0.4
    assert max(overlap) <= 0.08


def largest_iou(corners: np.ndarray) -> float:
    x0, y0, x1, y1 = corners
    wide = (np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0)).clip(0)
    high = (np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0)).clip(0)
    area = (x1 - x0) * (y1 - y0)
    iou = wide * high / (area[:, None] + area - wide * high)
    np.fill_diagonal(iou, 0)
    return float(iou.max())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_states_in_two_processes():
    play = (
        "from objbench_plugins.fruit2d.physics import simulate as s; print(s({'a': 20, 'b': 3}).checksum())"
    )
    assert output(play) == output(play)


def test_games_played_now_are_like_those_shipped():
    from objbench_plugins.fruit2d.physics import deepest, play

    piles = [pile for _, pile in play({"train": 60})]
    assert np.percentile([deepest(pile) for pile in piles], 95) * 128 / FIELD <= 0.4
    assert 11 <= np.mean([len(pile) for pile in piles]) <= 19
    for pile in piles:
        radius = DIAMETERS[pile[:, 3].astype(int)] / 2
        assert (pile[:, 1] + radius <= FIELD).all()


def test_states_survive_their_file(tmp_path):
    states = lying((100, 200, 0.3, 4), (719.5, 0.1, 0.9, 8))
    states.save(tmp_path / "states.npz")
    again = load(tmp_path / "states.npz")
    assert again.checksum() == states.checksum()
    assert again.x.tolist() == [1600, 11512]
    assert again.x.dtype == np.uint16


# Drawing


@pytest.mark.parametrize("background", ["black", "cream"])
@pytest.mark.parametrize("size", [64, 128])
def test_only_discs_are_drawn(size, background):
    centre = np.arange(size) + 0.5
    for scene in range(0, 5500, 250):
        image = drawing.draw(shipped(), scene, size, background)
        here = in_scene(shipped(), scene)
        outside = np.ones((size, size), bool)
        for x, y, kind in zip(
            shipped().x[here] / PLACES, shipped().y[here] / PLACES, shipped().fruit[here], strict=True
        ):
            far = np.hypot(centre - x * size / FIELD, centre[:, None] - y * size / FIELD)
            outside &= far > DIAMETERS[kind] / 2 * size / FIELD + 0.75  # half the diagonal of a pixel
        assert (image[:, outside] == np.array(drawing.BACKGROUNDS[background])[:, None]).all()
        assert image[:, ~outside].max() > 200
        assert outside.any()


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("kind", range(9))
def test_a_box_holds_its_disc_and_does_not_shrink_when_it_is_trimmed(kind, size):
    """Trimmed as GMAIR trims its boxes, to where the mean over channels is above 0.2."""
    for x, y, turn in [(300, 400, 0.0), (303.3, 401.7, 0.13), (355.55, 366.6, 0.71)]:
        states = lying((x, y, turn, kind))
        image = drawing.draw(states, 0, size, "black").mean(axis=0) / 255
        box = drawing.boxes(states, size)[0]
        assert box == pytest.approx(
            np.array([x, y, x, y] + np.outer([-1, 1], [DIAMETERS[kind] / 2] * 2).ravel()) * size / FIELD,
            abs=0.01,
        )
        drawn = extent(image > 0)
        assert (drawn[:2] >= np.floor(box[:2])).all()
        assert (drawn[2:] <= np.ceil(box[2:])).all()
        assert (abs(extent(image > 0.2) - box) < 1).all()


def extent(mask: np.ndarray) -> np.ndarray:
    """xyxy of what is True."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_a_box_ends_where_the_image_ends():
    assert drawing.boxes(lying((0, 719, 0, 8)), 128).tolist() == [
        pytest.approx([0, (719 - 154) * 128 / 720, 154 * 128 / 720, 128])
    ]


def test_rims_are_bright_and_fruits_differ_in_colour():
    axis = (np.arange(TEXELS) + 0.5) / (TEXELS / 2) - 1
    r = np.hypot(*np.meshgrid(axis, axis))
    disc, rim = r < 1, (r > 0.9) & (r < 1)
    colours = textures() / 255
    assert colours[:, rim].mean(axis=-1).min() > 0.25
    mean = colours[:, disc].mean(axis=1)
    apart = np.linalg.norm(mean[:, None] - mean, axis=-1)[~np.eye(9, dtype=bool)]
    assert apart.min() > 0.15


def test_a_fruit_turns_and_moves_by_less_than_a_pixel():
    """A tomato has five chambers: turned by a fifth it is itself again. Its weight moves with its centre."""
    tomato, there = FRUITS.index("tomato"), (360.0, 360.0)
    still, fifth, tenth = (
        drawing.draw(lying((*there, turn, tomato)), 0, 128, "black").astype(float) for turn in (0, 0.2, 0.1)
    )
    assert abs(fifth - still).mean() < 0.2 * abs(tenth - still).mean()
    moved = drawing.draw(lying((362.8125, 360.0, 0, tomato)), 0, 128, "black").astype(float)  # half a pixel
    x = np.arange(128) + 0.5
    shift = (moved.sum(axis=(0, 1)) @ x) / moved.sum() - (still.sum(axis=(0, 1)) @ x) / still.sum()
    assert shift == pytest.approx(0.5, abs=0.05)


# The source


def test_scenes_are_those_asked_for_in_that_order():
    fruit = source()
    some = fruit.scenes("validation", torch.tensor([3, 1, 3]))
    assert some.images.shape == (3, 3, 32, 32)
    assert some.images.dtype == torch.float32
    assert 0.5 < some.images.max() <= 1
    assert some.images.min() == 0
    assert some.truth.images == 3
    for place, index in enumerate([3, 1, 3]):
        here, states = some.truth.image == place, shipped()
        scene = SCENES["train"] + index
        expected = drawing.draw(states, scene, 32, "black")
        assert torch.equal(some.images[place], torch.from_numpy(expected) / 255)
        assert some.truth.labels[here].tolist() == states.fruit[in_scene(states, scene)].tolist()
        boxes = drawing.boxes(states, 32)[in_scene(states, scene)]
        assert np.allclose(some.truth.boxes[here], boxes, atol=1e-4)
    assert some.truth.boxes.min() >= 0
    assert some.truth.boxes.max() <= 32
    with pytest.raises(IndexError):
        fruit.scenes("validation", torch.tensor([500]))


def test_splits_have_their_sizes_and_the_seed_changes_nothing():
    fruit, other = source(), Fruit2DSim(Fruit2DSimConfig(size=32), 7)
    assert {split: fruit.size(split) for split in SCENES} == {"train": 4000, "validation": 500, "test": 1000}
    few = torch.arange(40)
    assert torch.equal(fruit.scenes("test", few).images, other.scenes("test", few).images)
    assert fruit.fingerprint() == other.fingerprint()
    assert fruit.fingerprint()["states"] == shipped().checksum()
    assert fruit.scenes("test", torch.tensor([], dtype=torch.int64)).truth.images == 0


@pytest.mark.slow
def test_options_make_other_images():
    assert source(background="cream").scenes("test", torch.tensor([0])).images.mean() > 0.5
    assert source().scenes("test", torch.tensor([0])).images.mean() < 0.5
    assert source(size=40).scenes("test", torch.tensor([0])).images.shape == (1, 3, 40, 40)
    assert len(list(kept.cache_folder().iterdir())) == 3
    assert Fruit2DSim.settings("paper") == {}
    assert Fruit2DSim.settings("demo") == Fruit2DSim.settings("small") == {"size": 64}


# What is kept

SUM_OF_VALIDATION = """
import hashlib, sys, torch
{before}
from objbench_plugins.fruit2d.simulated import Fruit2DSim, Fruit2DSimConfig
scenes = Fruit2DSim(Fruit2DSimConfig(size=32), 0).scenes("validation", torch.arange(500))
print(hashlib.sha256(scenes.images.numpy().tobytes() + scenes.truth.boxes.numpy().tobytes()).hexdigest())
"""


def process(code: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def output(code: str) -> str:
    out, err = (running := process(code)).communicate()
    assert running.returncode == 0, err
    return out


def own_sum() -> str:
    scenes = source().scenes("validation", torch.arange(500))
    return hashlib.sha256(scenes.images.numpy().tobytes() + scenes.truth.boxes.numpy().tobytes()).hexdigest()


@pytest.mark.slow
def test_two_processes_at_once_make_the_same_scenes_and_leave_one_whole_file(tmp_path):
    without_physics = SUM_OF_VALIDATION.format(before="sys.modules['pymunk'] = None")
    running = [process(without_physics), process(SUM_OF_VALIDATION.format(before=""))]
    sums = {each.communicate()[0].strip() for each in running}
    assert len(list(kept.cache_folder().iterdir())) == 1
    assert sums == {own_sum()}


def kept_file() -> Path:
    (file,) = kept.cache_folder().iterdir()
    return file


def test_a_second_use_draws_nothing(monkeypatch, capsys):
    first = own_sum()
    assert capsys.readouterr().err.count("\n") == 1  # no terminal: a line, no bar
    monkeypatch.setattr(drawing, "draw", None)
    assert own_sum() == first
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda data: b"", ""),
        (lambda data: data[:20], "bytes"),
        (lambda data: data[: len(data) // 2], "bytes"),
        (lambda data: data[:-1], "bytes"),
        (lambda data: data + b"x", "bytes"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "altered"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "altered"),
    ],
)
def test_a_damaged_file_is_noticed_and_made_again(harm, complaint, capsys):
    before, data = own_sum(), kept_file().read_bytes()
    kept_file().write_bytes(harm(data))
    capsys.readouterr()
    assert own_sum() == before
    warning, _ = capsys.readouterr().err.splitlines()
    assert warning.startswith("fruit2d-sim: ")
    assert complaint in warning
    assert "made again" in warning
    assert kept_file().read_bytes() == data


def test_where_nothing_can_be_kept_the_scenes_are_there_all_the_same(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file, not a folder")
    assert own_sum()
    assert "cannot keep the images" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        kept.write_images(tmp_path / "some.images", np.zeros(4, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_change_of_the_source_makes_other_files_and_clears_the_outdated(tmp_path, monkeypatch):
    own_sum()
    source(background="cream").scenes("validation", torch.tensor([0]))
    black, cream = sorted(kept.cache_folder().iterdir(), key=os.path.getmtime)
    (tmp_path / "kept.py").write_text("other")
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "kept.py"))
    own_sum()
    assert not black.exists()
    assert cream.exists()
    assert len(list(kept.cache_folder().iterdir())) == 2


def test_a_bar_is_shown_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    own_sum()
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err
