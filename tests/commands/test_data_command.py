"""`objbench data`, and how `-o` is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objbench.cells.overrides import build_model_config, build_source_config, parse_overrides
from objbench.coco import read_truth
from objbench.commands import main
from objbench.errors import UsageError
from objbench.plugins import load_plugins, load_target
from objbench.report.contact_sheet import contact_sheet
from objbench.scenes import GroundTruth, Scenes

COLOUR_PLUGIN = '''
"""Ten scenes of 30x20 pixels in colour, one object each, none in the first."""
from dataclasses import dataclass

import torch

from objbench import DataSpec, hookimpl
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource


@dataclass(frozen=True)
class Config:
    brightness: float = option(1.0, "of the whole image", low=0, high=1)


class Coloured(SceneSource):
    Config = Config
    shape = SceneShape(3, 20, 30)
    classes = ("red", "green")

    def __init__(self, config, seed):
        self.brightness = config.brightness

    def size(self, split):
        return 10

    def scenes(self, split, indices):
        images = torch.zeros(len(indices), *self.shape)
        images[:, 0] = self.brightness
        some = indices[indices > 0]
        image = torch.nonzero(indices)[:, 0]
        boxes = torch.tensor([[1.5, 2.0, 11.25, 12.0]]).repeat(len(some), 1)
        return Scenes(images, GroundTruth(len(indices), image, boxes, some % 2))

    def fingerprint(self):
        return {}


@hookimpl
def objbench_data():
    return [DataSpec(name="coloured", summary="colours", target="coloured:Coloured")]
'''


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line; returns exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["objbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def coloured(tmp_path, monkeypatch):
    """The path of a plugin with a finite data set in colour."""
    file = tmp_path / "coloured.py"
    file.write_text(COLOUR_PLUGIN)
    yield file
    sys.modules.pop("coloured", None)


# data export


def test_what_is_exported_reads_back_as_the_same_scenes(run, tmp_path):
    code, out, err = run(
        "data", "export", "multimnist", "--n", 300, "--seed", 7, "--to", tmp_path / "a" / "set"
    )
    assert (code, err) == (0, "")
    assert str(tmp_path / "a" / "set") in out
    config = build_source_config(load_plugins(), "multimnist", "demo", {})
    scenes = load_target(load_plugins().data_spec("multimnist").target)(config, 7).scenes(
        "test", torch.arange(300)
    )
    file = tmp_path / "a" / "set" / "annotations.json"
    read = read_truth(file)
    assert read.truth.images == 300
    for name in ("image", "boxes", "labels"):
        assert torch.equal(getattr(read.truth, name), getattr(scenes.truth, name))
    told = json.loads(file.read_text())
    assert [c["name"] for c in told["categories"]] == list("0123456789")
    for i, entry in enumerate(told["images"]):
        picture = Image.open(file.parent / entry["file_name"])
        assert picture.mode == "L"
        assert picture.size == (entry["width"], entry["height"]) == (64, 64)
        assert torch.equal(torch.from_numpy(np.array(picture)).float() / 255, scenes.images[i, 0])
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["set"]


def test_export_takes_options_protocol_and_an_empty_folder(run, tmp_path):
    (tmp_path / "set").mkdir()
    where = ("--split", "train", "--n", 3, "--to", tmp_path / "set")
    options = ("-o", "multimnist.source=embedded", "-o", "multimnist.width=96")
    code, _, err = run("data", "export", "multimnist", *where, *options, "--protocol", "paper")
    assert (code, err) == (0, "")
    told = json.loads((tmp_path / "set" / "annotations.json").read_text())
    assert [(image["width"], image["height"]) for image in told["images"]] == [(96, 128)] * 3


def test_a_plugins_scenes_in_colour_are_exported(run, tmp_path, coloured):
    code, out, _ = run(
        "data", "export", "coloured", "--n", 10, "--plugin", coloured, "--to", tmp_path / "set",
        "-o", "coloured.brightness=0.5",
    )  # fmt: skip
    assert code == 0
    assert "10 scenes with 9 objects" in out
    picture = np.array(Image.open(tmp_path / "set" / "images" / "000009.png"))
    assert picture.shape == (20, 30, 3)
    assert (picture == [128, 0, 0]).all()
    assert read_truth(tmp_path / "set" / "annotations.json").truth.boxes[0].tolist() == [1.5, 2, 11.25, 12]


def test_export_leaves_what_is_there_alone(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("full", "file"):
        code, out, err = run("data", "export", "multimnist", "--n", 1, "--to", tmp_path / name)
        assert (code, out) == (2, "")
        assert "choose a new one" in err
        assert err.count("\n") == 1
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    code, out, err = run("data", "export", "multimnist", "--n", 5, "--to", tmp_path / "set")
    assert (code, out) == (2, "")
    assert err == f"objbench: cannot write {tmp_path / 'set'}: No space left on device\n"
    assert not any(tmp_path.iterdir())


def test_an_export_under_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("data", "export", "multimnist", "--n", 1, "--to", tmp_path / "file" / "set")
    assert code == 2
    assert err.startswith("objbench: cannot write")
    assert err.count("\n") == 1


# data show


def test_show_draws_true_boxes_and_counts_objects(run, tmp_path, coloured):
    sheet = tmp_path / "sheet.png"
    code, out, err = run("data", "show", "coloured", "--n", 10, "--plugin", coloured, "--to", sheet)
    assert code == 0
    assert str(sheet) in err
    assert str(sheet) not in out
    rows = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines() if line}
    assert rows["red"] == ["4", "44.4%"]
    assert rows["green"] == ["5", "55.6%"]
    assert rows["all classes"] == ["9", "100.0%"]
    assert rows["objects"] == ["0.90", "1"]
    assert rows["box width"] == ["9.75", "9.75"]
    assert rows["box height"] == ["10.00", "10"]
    pixels = np.array(Image.open(sheet).convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(1).sum() > 100  # the image


def test_the_marks_of_classes_are_neutral_and_distinct():
    """A class named "blue triangle" gets no colour that says otherwise."""
    box = torch.tensor([[4.0, 4, 28, 28]])

    def sheet(label):
        scenes = Scenes(torch.zeros(1, 3, 32, 32), GroundTruth.of([box], [torch.tensor([label])]))
        return np.array(contact_sheet(scenes, [f"blue {k}" for k in range(12)], "title")).astype(int)

    sheets = [sheet(label) for label in range(12)]
    assert all(np.ptp(pixels, axis=2).max() <= 8 for pixels in sheets), "all grey"
    assert len({pixels.tobytes() for pixels in sheets}) == 12


def test_show_writes_beside_where_one_stands_unless_reported(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("data", "show", "multimnist", "--n", 60, "--split", "validation", "--seed", 3)
    assert code == 0
    assert out.startswith("multimnist: validation scenes, seed 3, demo protocol: 60 of 64x64 pixels\n")
    assert [p.name for p in tmp_path.iterdir()] == ["multimnist-validation.png"]
    code, _, err = run("data", "show", "multimnist", "--n", 1, "--to", tmp_path)
    assert code == 2
    assert "cannot write" in err


# data check

ODD_PLUGIN = '''
"""Eight scenes a split of 8x8 noise; test scene 5 is train scene 2, no validation object is green."""
from dataclasses import dataclass

import torch

from objbench import DataSpec, hookimpl
from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource


@dataclass(frozen=True)
class Config:
    odd: bool = option(True, "as said above; else nothing is wrong")
    endless: bool = option(False, "without end")


class Odd(SceneSource):
    Config = Config
    shape = SceneShape(1, 8, 8)
    classes = ("red", "green", "blue")

    def __init__(self, config, seed):
        self.config = config

    def size(self, split):
        return None if self.config.endless else 8

    def scenes(self, split, indices):
        images = []
        for index in indices.tolist():
            same = self.config.odd and (split, index) == ("test", 5)
            name = f"{len('train' if same else split)}{2 if same else index:06}"
            images.append(torch.rand(self.shape, generator=torch.Generator().manual_seed(int(name))))
        n = len(indices)
        labels = indices % 2 * (not self.config.odd or split != "validation")
        boxes = torch.tensor([[1.0, 2.0, 4.0, 6.0]]).repeat(n, 1)
        return Scenes(torch.stack(images), GroundTruth(n, torch.arange(n), boxes, labels))

    def fingerprint(self):
        return {"made": "here"}


@hookimpl
def objbench_data():
    return [DataSpec(name="odd", summary="odd", target="odd:Odd")]
'''


@pytest.fixture
def odd(tmp_path):
    """The path of a plugin with a scene in two splits and a class that one split is without."""
    file = tmp_path / "odd.py"
    file.write_text(ODD_PLUGIN)
    yield file
    sys.modules.pop("odd", None)


def test_check_says_what_is_there_and_what_is_wrong(run, odd):
    code, out, err = run("data", "check", "odd", "--plugin", odd)
    assert (code, err) == (1, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    for split in ("train", "validation", "test"):
        assert rows[split][0] == "8"
        assert rows[split][-4:] == ["8", "1,", "1.00,", "1"]
    assert out.count("no object of blue\n") == 2
    assert "no object of green, blue\n" in out
    assert out.splitlines()[-2:] == [
        "wrong: 1 test images are also train images (scene 2 is 5)",
        "wrong: validation has no object of green, which another split has",
    ]


def test_check_ends_well_where_nothing_is_wrong(run, odd):
    code, out, err = run("data", "check", "odd", "--plugin", odd, "-o", "odd.odd=no")
    assert (code, err) == (0, "")
    assert out.endswith("nothing is wrong\n")


@pytest.mark.parametrize(("n", "missed"), [(8, False), (40, True)])
def test_a_class_that_a_sample_lacks_is_wrong_where_chance_is_out(run, odd, n, missed):
    words = ("-o", "odd.endless=yes", "--n", n, "--json")
    told = json.loads(run("data", "check", "odd", "--plugin", odd, *words)[1])
    assert told["splits"]["validation"]["missing"] == ["green", "blue"]
    assert ("validation has no object of green, which another split has" in told["wrong"]) == missed


def test_check_prints_json(run, odd):
    code, out, _ = run("data", "check", "odd", "--plugin", odd, "--json")
    told = json.loads(out)
    assert code == 1
    assert (told["data"], told["protocol"], told["seed"], told["shape"]) == ("odd", "demo", 0, [1, 8, 8])
    assert told["shared"] == [{"splits": ["train", "test"], "scenes": [[2, 5]]}]
    assert len(told["wrong"]) == 2
    train = told["splits"]["train"]
    low, high = train.pop("pixels")
    assert 0 <= low < 0.1
    assert 0.9 < high <= 1
    assert train == {
        "scenes": 8,
        "without_end": False,
        "objects": 8,
        "objects_per_image": [1, 1, 1],
        "per_class": {"red": 4, "green": 4, "blue": 0},
        "missing": ["blue"],
        "repeated": 0,
        "one_colour": 0,
        "faults": [],
    }


def test_check_of_the_embedded_digits_finds_nothing_wrong(run):
    code, out, err = run("data", "check", "multimnist", "--n", 200)
    assert (code, err) == (0, "")
    assert "first 200" in out


# data fetch


def test_fetch_tells_when_there_is_nothing_to_fetch(run, coloured):
    assert run("data", "fetch", "coloured", "--plugin", coloured) == (
        0,
        "coloured: there is nothing to fetch\n",
        "",
    )


# What cannot work


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("multimist",), "did you mean 'multimnist'"),
        (("multimnist", "--protocol", "dmo"), "did you mean 'demo'"),
        (("multimnist", "-o", "multimnist.hight=64"), "did you mean 'height'"),
        (("multimnist", "-o", "multimnist.height=tall"), "height=tall is not an integer"),
        (("multimnist", "-o", "gmair.lr=1"), "gmair"),
        (("multimnist", "-o", "height=64"), "NAME.KEY=VALUE"),
        (("multimnist", "-o", "multimnist.digits=/no/such"), "/no/such"),
    ],
)
@pytest.mark.parametrize("command", ["export", "show", "check"])
def test_what_cannot_work_is_one_line_and_exit_code_2(run, tmp_path, command, arguments, reason):
    to = () if command == "check" else ("--to", tmp_path / "out.png")
    code, out, err = run("data", command, *arguments, *to)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", [("--n", "0"), ("--n", "many"), ("--seed", "-1"), ("--split", "dev")])
def test_a_value_out_of_range_is_exit_code_2(run, tmp_path, option):
    code, _, err = run("data", "export", "multimnist", "--to", tmp_path / "out", *option)
    assert code == 2
    assert option[0] in err
    assert not any(tmp_path.iterdir())


def test_more_scenes_than_a_split_has_are_refused(run, tmp_path, coloured):
    for command in ("export", "show"):
        code, _, err = run(
            "data", command, "coloured", "--n", 11, "--plugin", coloured, "--to", tmp_path / "out"
        )
        assert code == 2
        assert err == "objbench: --n 11: the test split of coloured has 10 scenes\n"
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".py" and p.name != "__pycache__"] == []


# Overrides

NAMES = st.text("abcxyz019-_", min_size=1, max_size=8)


@given(NAMES, NAMES, st.text(max_size=20))
def test_an_override_is_split_at_the_first_dot_and_the_first_equals_sign(name, key, value):
    assert parse_overrides([f"{name}.{key}={value}"]) == {name: {key: value.strip()}}


def test_later_overrides_win_and_values_may_hold_anything():
    given_ = ["a.x=1", "b.path=/data.d/k=v", "a.x=2", "a.y=1e-4", "a.z="]
    assert parse_overrides(given_) == {"a": {"x": "2", "y": "1e-4", "z": ""}, "b": {"path": "/data.d/k=v"}}


@pytest.mark.parametrize("text", ["", "a", "a.x", "x=1", ".x=1", "a.=1", "=1", "a=b.c"])
def test_an_override_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match=r"NAME\.KEY=VALUE"):
        parse_overrides([text])


def test_configs_are_defaults_then_settings_then_options():
    registry = load_plugins()
    paper = build_source_config(registry, "multimnist", "paper", {})
    demo = build_source_config(registry, "multimnist", "demo", {"multimnist": {"max_digits": "3"}})
    assert (paper.height, paper.max_digits, paper.source) == (128, 10, "auto")
    assert (demo.height, demo.max_digits, demo.source) == (64, 3, "embedded")
    gmair = load_target(registry.model("gmair").target)
    config = build_model_config(registry, "gmair", "demo", "multimnist", {"gmair": {"lr": "0.5"}})
    assert config.lr == 0.5
    assert config.steps == gmair.settings("demo", "multimnist").get("steps", gmair.Config().steps)
