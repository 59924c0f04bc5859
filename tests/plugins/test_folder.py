"""A folder of the user's own pictures: sizes, splits, boxes, bad files. Folders are made by the tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from objbench.errors import UsageError
from objbench.options import build
from objbench_plugins.folder import decoded
from objbench_plugins.folder.placing import placing_of
from objbench_plugins.folder.source import Folder, FolderConfig, split_folders

Make = Callable[..., Folder]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded pictures of a test lie in a folder of its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(decoded, "cache_folder", lambda: folder)
    return folder


def make(images: Path, **options: Any) -> Folder:
    return Folder(build(FolderConfig, "folder", {"size": 16, "images": str(images), **options}), 0)


def picture(path: Path, size: tuple[int, int] = (16, 16), mode: str = "RGB", value: int = 0) -> None:
    """A picture of one value, which is red in RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, 0, 0) if mode == "RGB" else value).save(path)


def annotate(file: Path, rows: dict[str, list[list[float]]], **more: Any) -> None:
    """A COCO file with these boxes [x, y, width, height]; the class of a box alternates."""
    images = [{"id": i, "file_name": name} | more for i, name in enumerate(rows)]
    boxes = [(i, box) for i, name in enumerate(rows) for box in rows[name]]
    annotations = [
        {"id": j, "image_id": i, "category_id": j % 2, "bbox": box} for j, (i, box) in enumerate(boxes)
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def all_of(source: Folder) -> dict[str, float]:
    """The file name of every scene, and the value of its first pixel as a byte."""
    found = {}
    for split in ("train", "validation", "test"):
        scenes = source.scenes(split, torch.arange(source.size(split)))
        for i, image in enumerate(scenes.images):
            found[f"{split}/{Path(source.origin(split, i)).name}"] = round(float(image[0, 0, 0]) * 255)
    return found


def test_every_picture_is_in_one_split_by_a_share_that_new_pictures_do_not_move(tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / f"{i:02}.png", value=i)
    before = all_of(make(tmp_path))
    assert sorted(before.values()) == list(range(40))
    assert all(value == int(name[-6:-4]) for name, value in before.items())
    splits = [name.split("/")[0] for name in before]
    assert (splits.count("train"), splits.count("validation"), splits.count("test")) == (28, 4, 8)
    picture(tmp_path / "99.png", value=99)
    kept = set(before) & set(all_of(make(tmp_path)))
    assert len(kept) >= 38  # one may leave a share that another has entered
    assert set(all_of(make(tmp_path, split_seed=1))) != set(all_of(make(tmp_path)))


def test_splits_by_name(tmp_path: Path) -> None:
    for i, name in enumerate(["train2017/a.png", "val2017/b.png", "test/sub/c.jpg", "notes/d.png", "e.png"]):
        picture(tmp_path / name, value=50 * i)
    source = make(tmp_path)
    assert set(all_of(source)) == {"train/a.png", "validation/b.png", "test/c.jpg"}
    assert source.fingerprint()["scenes"] == {"train": 1, "validation": 1, "test": 1}
    picture(tmp_path / "training/f.png")
    with pytest.raises(UsageError, match="train2017 and training are both for train"):
        make(tmp_path)


def test_a_folder_without_a_train_folder_has_no_splits_by_name(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    assert split_folders(tmp_path) == {}


@pytest.mark.parametrize(
    ("fit", "shown", "corner", "box"),
    [
        ("fit", (16, 8), (0, 4), [4, 6, 8, 8]),
        ("crop", (32, 16), (-8, 0), [0, 4, 8, 8]),
        ("stretch", (16, 16), (0, 0), [4, 4, 8, 8]),
    ],
)
def test_boxes_go_with_the_picture(
    tmp_path: Path, fit: str, shown: tuple[int, int], corner: tuple[int, int], box: list[int]
) -> None:
    """A white rectangle on 64x32 is where its box says, whatever the rule."""
    placing = placing_of((64, 32), 16, fit)
    assert (placing.shown, placing.corner) == (shown, corner)
    pixels = np.zeros((32, 64, 1), np.uint8)
    pixels[8:16, 16:32] = 255
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        Image.fromarray(pixels[:, :, 0]).save(tmp_path / name)
    annotate(tmp_path / "annotations.json", {name: [[16, 8, 16, 8]] for name in names})
    scenes = make(tmp_path, fit=fit).scenes("test", torch.tensor([0]))
    assert scenes.truth.boxes.tolist() == [box]
    x0, y0, x1, y1 = box
    assert scenes.images[0, 0, y0:y1, x0:x1].mean() > 0.7
    assert scenes.images.sum() * (x1 - x0) * (y1 - y0) <= 1.6 * scenes.images[0, 0, y0:y1, x0:x1].sum() * (
        (x1 - x0) * (y1 - y0)
    )


def test_boxes_outside_the_scene_are_cut_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png", (32, 16))
    annotate(tmp_path / "annotations.json", {f"{i}.png": [[0, 0, 7, 7], [4, 4, 12, 40]] for i in range(5)})
    truth = make(tmp_path, fit="crop").scenes("train", torch.tensor([0, 1])).truth
    assert truth.boxes.tolist() == [[0, 4, 8, 16]] * 2
    assert truth.labels.tolist() == [1, 1]
    assert "5 annotated boxes lie outside of their scenes" in capsys.readouterr().err


def test_without_annotations_there_are_no_objects(tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png")
    source = make(tmp_path)
    assert source.classes == ()
    assert source.fingerprint()["annotations"] is None
    assert len(source.scenes("train", torch.arange(3)).truth.labels) == 0
    annotate(tmp_path / "annotations.json", {f"{i}.png": [[0, 0, 5, 5]] for i in range(5)})
    assert make(tmp_path).classes == ("cat", "dog")
    assert make(tmp_path, annotations="none").classes == ()


def test_annotations_of_splits_share_their_classes(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        picture(tmp_path / split / "a.png")
        annotate(tmp_path / "annotations" / f"instances_{split}.json", {"a.png": [[1, 2, 3, 4]]})
    text = (tmp_path / "annotations" / "instances_test.json").read_text()
    (tmp_path / "annotations" / "instances_test.json").write_text(text.replace('"cat"', '"bird"'))
    source = make(tmp_path)
    assert source.classes == ("cat", "dog", "bird")
    assert source.scenes("train", torch.tensor([0])).truth.labels.tolist() == [0]
    assert source.scenes("test", torch.tensor([0])).truth.labels.tolist() == [2]
    (tmp_path / "annotations" / "instances_val.json").unlink()
    with pytest.raises(UsageError, match=r"but there are none for .*val"):
        make(tmp_path)


def test_grey_pictures_have_one_channel_and_colours_three(tmp_path: Path) -> None:
    for i, mode in enumerate(["L", "1", "L", "L", "RGBA", "I;16", "P"]):
        Image.fromarray(np.full((16, 16), 60 * 257, np.uint16)).save(tmp_path / "5.png") if (
            mode == "I;16"
        ) else Image.new("L", (16, 16), 60).convert(mode if mode != "1" else "L").save(tmp_path / f"{i}.png")
    source = make(tmp_path)
    assert source.shape == (1, 16, 16)
    assert set(all_of(source).values()) == {60}
    picture(tmp_path / "red.png", value=200)
    source = make(tmp_path)
    assert source.shape == (3, 16, 16)
    assert sorted(all_of(source).values()) == [60] * 7 + [200]
    with pytest.raises(UsageError, match=r"grey, but .*red\.png has colours"):
        make(tmp_path, channels="grey")
    (tmp_path / "red.png").unlink()
    assert make(tmp_path, channels="grey").shape == (1, 16, 16)
    assert make(tmp_path, channels="colour").shape == (3, 16, 16)


def test_bars_have_the_colour_of_the_background(tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png", (16, 8), value=255)
    scene = make(tmp_path, background="#204060").scenes("train", torch.tensor([0])).images[0] * 255
    assert scene[:, 0, 0].round().tolist() == [0x20, 0x40, 0x60]
    assert scene[:, 8, 8].round().tolist() == [255, 0, 0]


def test_a_picture_is_turned_as_exif_asks_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.jpg", (32, 16), value=9)
    image = Image.new("RGB", (32, 16))
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=image.getexif())
    source = make(tmp_path)
    row = source._kept.names.index("turned.jpg")
    assert source._kept.sizes[row] == (16, 32)
    assert "1 pictures were turned" in capsys.readouterr().err
    names = [*(f"{i}.jpg" for i in range(5)), "turned.jpg"]
    annotate(tmp_path / "annotations.json", {name: [[0, 0, 9, 9]] for name in names}, width=32, height=16)
    with pytest.raises(UsageError, match=r"says that turned.jpg has 32x16 pixels; it has 16x32"):
        make(tmp_path)


def test_a_broken_picture_is_named_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    (tmp_path / "text.JPG").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("not seen")
    (tmp_path / "link.png").symlink_to("nothing.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "good.png").symlink_to("0.png")
    annotate(tmp_path / "annotations.json", {p.name: [[0, 0, 5, 5]] for p in tmp_path.glob("[!.]*.*[gG]")})
    source = make(tmp_path)
    assert source.fingerprint()["broken"] == 4
    assert sum(source.fingerprint()["scenes"].values()) == 6
    said = capsys.readouterr().err
    assert "cut.png" in said
    assert "text.JPG" in said
    assert "link.png: is a link to a file that does not exist" in said
    assert "circle.png: cannot be read" in said
    with pytest.raises(UsageError, match=r"4 broken pictures, and folder\.strict is set"):
        make(tmp_path, strict=True)


def test_pictures_are_decoded_once_and_again_when_they_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png", value=i)
    first = make(tmp_path).fingerprint()
    capsys.readouterr()
    assert make(tmp_path).fingerprint() == first
    assert capsys.readouterr().err == ""
    shutil.move(tmp_path / "4.png", tmp_path / "5.png")
    assert make(tmp_path).fingerprint() != first
    shutil.move(tmp_path / "5.png", tmp_path / "4.png")
    picture(tmp_path / "4.png", value=77)
    assert make(tmp_path).fingerprint() != first
    assert 77 in all_of(make(tmp_path)).values()
    for file in cache.glob("*.pixels"):
        os.truncate(file, 100)
    capsys.readouterr()
    assert 77 in all_of(make(tmp_path)).values()
    assert "decoding 5 pictures (once)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": ""}, r"needs a folder of pictures: -o folder\.images=DIR"),
        ({"images": "nowhere"}, "there is no such folder"),
        ({"annotations": "nowhere.json"}, "there is no such file"),
        ({"background": "blurple"}, "'blurple' is no colour"),
    ],
)
def test_what_the_options_name_must_be_there(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match=said):
        Folder(build(FolderConfig, "folder", {"images": str(tmp_path)} | options), 0)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no PNG or JPEG pictures there"):
        make(tmp_path)
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    with pytest.raises(UsageError, match="2 pictures that can be read, and none is left for train"):
        make(tmp_path)
    picture(tmp_path / "c.png")
    assert make(tmp_path).fingerprint()["scenes"] == {"train": 1, "validation": 1, "test": 1}
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("broken")
    with pytest.raises(UsageError, match="none of its 3 pictures can be read"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"other.png": [[0, 0, 5, 5]]}, "not in"),
        ({"0.png": [[0, 0, 5, 5]]}, "does not list 4 of the pictures"),
        ({f"{i}.png": [[0, 0, -5, 5]] for i in range(5)}, "zero or negative size"),
        ({f"{i}.png": [] for i in range(5)}, "there is no annotation"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path: Path, rows: Any, said: str) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png")
    annotate(tmp_path / "annotations.json", rows)
    with pytest.raises(UsageError, match=said):
        make(tmp_path)
