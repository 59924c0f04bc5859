"""What enters is checked once, by one function, for every data plugin."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from objbench.errors import UsageError
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split, first_indices
from objbench.score.scene_checks import FIRST, check_scenes, check_source, faults
from running import objbench

SHAPE = SceneShape(3, 20, 30)
NAN, INF = float("nan"), float("inf")


def good(n: int = 3) -> Scenes:
    """Scenes of 30x20 pixels; scene i has i objects of 4x5 pixels and class i - 1."""
    boxes = [torch.tensor([[2.0, 3, 6, 8]]).repeat(i, 1) + torch.arange(i)[:, None] for i in range(n)]
    images = torch.linspace(0, 1, n * 3 * 20 * 30).reshape(n, *SHAPE)
    return Scenes(images, GroundTruth.of(boxes, [torch.full((i,), i - 1) for i in range(n)]))


def with_pixel(value: float) -> Scenes:
    scenes = good()
    scenes.images[1, 2, 19, 29] = value
    return scenes


def with_truth(**changed: Any) -> Scenes:
    scenes = good()
    return replace(scenes, truth=replace(scenes.truth, **changed))


def with_box(*box: float) -> Scenes:
    boxes = good().truth.boxes.clone()
    boxes[2] = torch.tensor(box)
    return with_truth(boxes=boxes)


def test_right_scenes_have_no_faults():
    assert faults(good(), SHAPE, 2, 3) == []
    assert faults(with_box(0, 0, 30, 20), SHAPE, 2, 3) == []
    assert faults(with_pixel(1.0), SHAPE, 2, 3) == []
    assert faults(Scenes(torch.zeros(0, *SHAPE), GroundTruth.of([], [])), SHAPE, 2, 0) == []


@pytest.mark.parametrize(
    ("scenes", "scene", "what"),
    [
        (with_pixel(NAN), 1, "1 of 1800 pixels are NaN or infinite"),
        (with_pixel(-INF), 1, "1 of 1800 pixels are NaN or infinite"),
        (with_pixel(255), 1, "to 255; they must be in 0..1"),
        (with_pixel(-0.01), 1, "pixels from -0.01"),
        (with_box(2, 3, NAN, 8), 2, "object 1: box [2, 3, nan, 8] is not finite"),
        (with_box(2, 3, INF, 8), 2, "is not finite"),
        (with_box(2, 3, 2, 8), 2, "has no size"),
        (with_box(6, 8, 2, 3), 2, "has no size"),
        (with_box(2, 3, 30.5, 8), 2, "box [2, 3, 30.5, 8] leaves the image of 30x20 pixels"),
        (with_box(-1, 3, 6, 8), 2, "leaves the image"),
        (with_box(2, 3, 6, 21), 2, "leaves the image"),
        (
            with_truth(labels=torch.tensor([0, 1, 2])),
            2,
            "object 1: label 2 is not one of the 2 classes, 0 to 1",
        ),
        (with_truth(labels=torch.tensor([-1, 1, 1])), 1, "object 0: label -1"),
        (with_truth(image=torch.tensor([2, 1, 2])), None, "is not ascending in 0..2"),
        (with_truth(image=torch.tensor([1, 2, 3])), None, "is not ascending in 0..2: [1, 2, 3]"),
        (with_truth(images=4), None, "their truth is of 4 images, not 3"),
        (with_truth(labels=torch.zeros(3)), None, "truth.labels of type float32, not int64"),
        (with_truth(boxes=good().truth.boxes.double()), None, "truth.boxes of type float64, not float32"),
        (with_truth(boxes=good().truth.boxes.numpy()), None, "truth.boxes is ndarray, not a tensor"),
        (replace(good(), truth=None), None, "their truth is NoneType, not GroundTruth"),
        (replace(good(), images=good().images.double()), None, "images of type float64, not float32"),
        (replace(good(), images=good().images[:, :1]), None, "shape [3, 1, 20, 30], not [3, 3, 20, 30]"),
        (replace(good(), images=good().images[:2]), None, "shape [2, 3, 20, 30], not [3, 3, 20, 30]"),
        ("scenes", None, "str instead of Scenes"),
    ],
)
def test_each_fault_is_said_with_its_scene_and_value(scenes, scene, what):
    (fault,) = faults(scenes, SHAPE, 2, 3)
    assert fault.scene == scene
    assert what in fault.what


def test_every_faulty_scene_of_a_batch_is_listed():
    scenes = with_truth(labels=torch.tensor([7, 1, 1]))
    scenes.images[0] = NAN
    scenes.images[2] = 2
    assert [(fault.part, fault.scene) for fault in faults(scenes, SHAPE, 2, 3)] == [
        ("images", 0),
        ("images", 2),
        ("truth", 1),
    ]


class Listed(SceneSource):
    """Scenes of one object; the one at `bad` has a label too many. Counts what it was asked for."""

    shape, classes = SHAPE, ("only",)

    def __init__(self, sizes: int | dict[str, Any] | None = 700, bad: tuple[str, int] | None = None) -> None:
        self.sizes, self.bad = sizes, bad
        self.asked = {"train": 0, "validation": 0, "test": 0}

    def size(self, split: Split) -> Any:
        return self.sizes[split] if isinstance(self.sizes, dict) else self.sizes

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        self.asked[split] += len(indices)
        n = len(indices)
        boxes = torch.tensor([[2.0, 3, 6, 8]]).repeat(n, 1)
        labels = (indices == self.bad[1]).long() if self.bad and self.bad[0] == split else indices * 0
        images = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(len(split)))
        return Scenes(images, GroundTruth(n, torch.arange(n), boxes, labels))

    def origin(self, split: Split, index: int) -> str:
        return f"scenes.bin, row {index}" if self.sizes else ""

    def fingerprint(self) -> dict[str, Any]:
        return {}


def test_of_a_known_size_every_scene_is_checked_and_the_file_is_named():
    check_source("listed", good_source := Listed())
    assert good_source.asked == {"train": 700, "validation": 700, "test": 700}
    message = r"listed: test scene 699 \(scenes.bin, row 699\): object 0: label 1 is not one of the 1 classes"
    with pytest.raises(UsageError, match=message):
        check_source("listed", Listed(bad=("test", 699)))


def test_without_end_the_first_batch_is_checked():
    check_source("listed", source := Listed(None, bad=("train", FIRST)))
    assert set(source.asked.values()) == {FIRST}
    with pytest.raises(UsageError, match="listed: train scene 31: object 0: label 1"):
        check_source("listed", Listed(None, bad=("train", FIRST - 1)))


def test_what_was_found_right_is_not_decoded_again_and_what_was_wrong_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for identity, times in ((({"a": 1}), 1), ({"a": 1}, 0), ({"a": 2}, 1), (None, 1)):
        check_source("listed", source := Listed(), identity)
        assert source.asked["test"] == 700 * times
    for _ in range(2):
        with pytest.raises(UsageError, match="label 1"):
            check_source("listed", Listed(bad=("test", 5)), {"a": 3})
    (tmp_path / "objbench").rename(tmp_path / "gone")
    (tmp_path / "objbench").write_text("no folder")  # a cache that cannot be written is no error
    check_source("listed", source := Listed(), {"a": 1})
    assert source.asked["test"] == 700


@pytest.mark.parametrize("size", [0, -1, 2.5, "many", True])
def test_a_split_of_no_scenes_is_refused_and_is_not_without_end(size):
    with pytest.raises(UsageError, match=f"listed: its test split has {size!r} scenes"):
        check_source("listed", Listed({"train": 5, "validation": None, "test": size}))
    if size == 0:
        assert len(first_indices(Listed(0), "test", 100)) == 0
    assert len(first_indices(Listed(None), "test", 100)) == 100


def test_what_a_plugin_raises_is_one_line():
    class Broken(Listed):
        def scenes(self, split: Split, indices: Tensor) -> Scenes:
            raise ZeroDivisionError("division\nby zero")

    message = "broken: test scenes 3 to 4 cannot be made: ZeroDivisionError: division by zero"
    with pytest.raises(UsageError, match=message):
        check_scenes("broken", Broken(), "test", torch.tensor([3, 4]))


# Where it is called

PLUGIN = """
import torch
from dataclasses import dataclass
from objbench import DataSpec, ModelSpec, hookimpl
from objbench.detector import Detections, Detector
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource

@dataclass(frozen=True)
class Config:
    split: str = option("test", "that is wrong")
    seed: int = option(0, "that is wrong")
    scene: int = option(0, "that is wrong")
    size: int = option(0, "scenes; 0 is without end")
    how: str = option("nan", "it is wrong", choices=["nan", "raise", "empty"])

class Strange(SceneSource):
    Config, classes, shape = Config, ("square",), SceneShape(1, 16, 16)
    def __init__(self, config, seed): self.config, self.seed = config, seed
    def size(self, split):
        if self.config.how == "empty" and split == self.config.split: return 0
        return self.config.size or None
    def fingerprint(self): return {"made": "here"}
    def scenes(self, split, indices):
        images = torch.rand(len(indices), 1, 16, 16, generator=torch.Generator().manual_seed(len(split)))
        if split == self.config.split and self.seed == self.config.seed and self.config.how != "empty":
            if self.config.how == "raise": raise RuntimeError("no such scene")
            images[indices == self.config.scene] = float("nan")
        n = len(indices)
        return Scenes(images, GroundTruth(n, torch.arange(n), torch.tensor([[1.0, 2, 5, 6]]).repeat(n, 1),
                                          torch.zeros(n, dtype=torch.int64)))

class Nothing(Detector):
    def fit(self, scenes): pass
    def detect(self, images):
        n = len(images)
        return Detections(n, torch.arange(n), torch.tensor([[1.0, 2, 5, 6]]).repeat(n, 1), torch.ones(n),
                          torch.zeros(n, dtype=torch.int64))

@hookimpl
def objbench_data(): return [DataSpec("strange", "may be wrong", "strange:Strange")]
@hookimpl
def objbench_models(): return [ModelSpec("nothing", "one box", "strange:Nothing")]
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """The path of a plugin whose data set is wrong where its options say so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "strange.py"
    file.write_text(PLUGIN)
    yield file
    sys.modules.pop("strange", None)


def options(**changed: Any) -> list[str]:
    return [word for name, value in changed.items() for word in ("-o", f"strange.{name}={value}")]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--plan"]])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "strange: test scene 0: 256 of 256 pixels are NaN or infinite"),
        (
            {"split": "train", "size": 300, "scene": 299},
            "strange: train scene 299: 256 of 256 pixels are NaN",
        ),
        (
            {"how": "empty", "split": "validation"},
            "strange: its validation split has 0 scenes; it needs at least",
        ),
    ],
)
def test_a_run_on_wrong_scenes_is_refused_before_anything_is_written(
    strange, tmp_path, changed, message, words
):
    out = tmp_path / "runs"
    ran = objbench(
        "run", "--models", "nothing", "--data", "strange", "--plugin", str(strange), "--out", str(out),
        *options(**changed), *words,
    )  # fmt: skip
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"objbench: {message}")
    assert ran.err.count("\n") == 1
    assert not out.exists()


def test_scenes_that_cannot_be_made_are_a_failed_cell_and_nothing_is_written(strange, tmp_path):
    out = tmp_path / "runs"
    ran = objbench("run", "--models", "nothing", "--data", "strange", "--plugin", str(strange), "--out", str(out),
                   *options(how="raise"))  # fmt: skip
    assert ran.code == 1
    said = "strange: test scenes 0 to 31 cannot be made: RuntimeError: no such scene (strange.py,"
    assert ran.out.startswith(f"failed: nothing on strange, seed 0  {said}")
    assert not out.exists()


@pytest.mark.slow
def test_scenes_of_another_seed_are_checked_by_their_own_cell(strange, tmp_path):
    ran = objbench(
        "run", "--models", "nothing", "--data", "strange", "--plugin", str(strange), "--seeds", "2",
        "--out", str(tmp_path / "runs"), *options(seed=1, split="train"),
    )  # fmt: skip
    assert ran.code == 1
    first, second = ran.out.splitlines()
    assert first.startswith("done")
    assert second.startswith(
        "failed: nothing on strange, seed 1  strange: train scene 0: 256 of 256 pixels are"
    )


@pytest.mark.parametrize(
    ("command", "changed", "code", "message"),
    [
        ("check", {"size": 40, "scene": 39}, 1, "wrong: strange: test scene 39: 256 of 256 pixels are NaN"),
        ("check", {"how": "raise"}, 2, "cannot be made: RuntimeError: no such scene"),
        ("check", {"how": "empty"}, 2, "its test split has 0 scenes"),
        ("show", {"scene": 99}, 2, "strange: test scene 99: 256 of 256 pixels are NaN"),
        ("export", {"scene": 99}, 2, "strange: test scene 99: 256 of 256 pixels are NaN"),
        ("export", {"how": "raise"}, 2, "cannot be made: RuntimeError: no such scene"),
    ],
)
def test_the_data_commands_say_what_is_wrong_and_write_nothing(
    strange, tmp_path, command, changed, code, message
):
    to = [] if command == "check" else ["--n", "100", "--to", str(tmp_path / "to")]
    ran = objbench("data", command, "strange", "--plugin", str(strange), *to, *options(**changed))
    assert ran.code == code
    said = ran.out if code == 1 else ran.err
    assert message in said
    assert code == 1 or (ran.out == "" and ran.err.count("\n") == 1)
    assert not (tmp_path / "to").exists()


def test_the_kit_uses_the_same_check(strange):
    ran = objbench("check", "strange", "--plugin", str(strange))
    assert ran.code == 1
    assert "got:      strange: test scene 0: 256 of 256 pixels are NaN or infinite" in ran.out
