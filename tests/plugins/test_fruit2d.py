"""fruit2d: the official layout is read as published; what is wrong with it is told by file and line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objbench.errors import UsageError
from objbench.options import build
from objbench.scenes import GroundTruth, Scenes
from objbench_plugins.fruit2d.official import FOLDERS, Fruit2D, Fruit2DConfig, write_part
from objbench_plugins.fruit2d.simulated import Fruit2DSim, Fruit2DSimConfig


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def scattered(counts: list[int], size: int = 64) -> Scenes:
    """Scenes of so many objects each, of random colours."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(counts), 3, size, size), generator=draw) / 255
    corner = [torch.rand(n, 2, generator=draw) * (size - 20) for n in counts]
    sides = [1 + torch.rand(n, 2, generator=draw) * 15 for n in counts]
    boxes = [torch.cat([c, c + s], 1) for c, s in zip(corner, sides, strict=True)]
    labels = [torch.randint(0, 9, (n,), generator=draw) for n in counts]
    return Scenes(images, GroundTruth.of(boxes, labels))


TRAIN = scattered([4, 0, 2, 1, 3, 0, 5, 2, 2, 2, 120])
TEST = scattered([2, 101, 0])


@pytest.fixture
def root(tmp_path) -> Path:
    write_part(tmp_path / "fruit", "train", TRAIN)
    write_part(tmp_path / "fruit", "test", TEST)
    return tmp_path / "fruit"


def read(root: Path, **options) -> Fruit2D:
    return Fruit2D(build(Fruit2DConfig, "fruit2d", {"root": str(root), "size": 64} | options), 0)


def objects(truth: GroundTruth, image: int) -> tuple[torch.Tensor, torch.Tensor]:
    return truth.boxes[truth.image == image], truth.labels[truth.image == image]


def check_same(found: Scenes, place: int, wanted: Scenes, index: int) -> None:
    """The same scene, but for objects beyond the hundredth."""
    assert torch.equal(found.images[place], wanted.images[index])
    (boxes, labels), (true_boxes, true_labels) = objects(found.truth, place), objects(wanted.truth, index)
    assert len(labels) == min(100, len(true_labels))
    assert torch.equal(labels, true_labels[:100])
    assert torch.allclose(boxes, true_boxes[:100], atol=1e-4)


def test_scenes_survive_the_official_layout_with_no_object_and_with_over_100(root):
    fruit = read(root, validation=0.2)
    assert [fruit.size(split) for split in ("train", "validation", "test")] == [8, 3, 3]
    train, held_out = fruit.scenes("train", torch.arange(8)), fruit.scenes("validation", torch.arange(3))
    test = fruit.scenes("test", torch.tensor([2, 0, 1]))
    for i in range(8):
        check_same(train, i, TRAIN, i)
    for i in range(3):
        check_same(held_out, i, TRAIN, 8 + i)  # the tail by name
        check_same(test, i, TEST, [2, 0, 1][i])
    assert fruit.shape == (3, 64, 64)
    assert len(fruit.classes) == 9


def test_simulated_scenes_survive_it_too(root):
    scenes = Fruit2DSim(Fruit2DSimConfig(size=32), 0).scenes("test", torch.arange(20))
    shutil.rmtree(root / "test_images")
    shutil.rmtree(root / "test_labels")
    write_part(root, "test", scenes)
    again = read(root, size=32).scenes("test", torch.arange(20))
    for i in range(20):
        check_same(again, i, scenes, i)


def test_images_of_another_size_are_averaged_down_with_their_boxes(root):
    half = read(root, size=32).scenes("test", torch.arange(3))
    blocks = (TEST.images[0] * 255).reshape(3, 32, 2, 32, 2).mean(dim=(2, 4))
    assert (half.images[0] * 255 - blocks).abs().max() <= 1.01
    assert torch.allclose(objects(half.truth, 0)[0], objects(TEST.truth, 0)[0] / 2, atol=1e-4)


def test_a_label_may_reach_over_the_edge_end_without_newline_and_write_a_class_as_a_fraction(root):
    (root / "test_labels" / "000000.txt").write_text("2\n\n  1 2 10 10 9.0\n63 60 4 20 1")
    boxes, labels = objects(read(root).truth["test"], 0)
    assert boxes.tolist() == [[0, 0, 6, 7], [61, 50, 64, 64]]
    assert labels.tolist() == [8, 0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1\n10 10 5 5\n", "line 2: '10 10 5 5' is neither a count nor 'x y w h c'"),
        ("1\n10 10 5 5 1 1\n", "line 2"),
        ("two\n", "line 1: 'two' is neither"),
        ("-1\n", "line 1: '-1' is neither"),
        ("1\n1\n10 10 5 5 1\n", "line 2: '1' is neither"),
        ("2\n10 10 5 5 1\n20 20 x 5 1\n", "line 3: must be five numbers"),
        ("1\n10 10 0 5 1\n", "line 2: must be five numbers, width and height above 0"),
        ("1\n10 nan 5 5 1\n", "line 2: must be five numbers"),
        ("1\n10 10 5 inf 1\n", "line 2: must be five numbers"),
        ("1\n10 10 5 5 0\n", "line 2: class 0 is not one of 1 to 9"),
        ("1\n10 10 5 5 10\n", "line 2: class 10 is not one of 1 to 9"),
        ("1\n10 10 5 5 1.5\n", "line 2: class 1.5 is not one of 1 to 9"),
        ("1\n90 10 5 5 1\n", "line 2: the box lies outside of the 64x64 image"),
        ("2\n10 10 5 5 1\n", "has a count of 2, and 1 objects"),
        ("0\n10 10 5 5 1\n", "has a count of 0, and 1 objects"),
        ("10 10 5 5 1\n", "has no count, and 1 objects"),
        ("", "has no count, and 0 objects"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_a_malformed_label_is_reported_by_file_and_line(root, text, complaint):
    file = root / "test_labels" / "000001.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        read(root)
    assert str(caught.value).startswith(str(file))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_missing_folder_is_reported(root, folder):
    shutil.rmtree(root / folder)
    with pytest.raises(
        UsageError, match=rf"{folder}: has no \.(png.*|txt) files; run 'objbench data fetch fruit2d'"
    ):
        read(root)


def test_files_without_a_partner_are_reported(root):
    (root / "train_labels" / "000003.txt").unlink()
    with pytest.raises(UsageError, match=r"'000003' is in only one of .*\(11 and 10 files\)"):
        read(root)
    (root / "train_images" / "000003.png").rename(root / "train_images" / "more.png")
    with pytest.raises(UsageError, match="'more' is in only one of train_images and train_labels"):
        read(root)
    (root / "train_images" / "more.png").unlink()
    (root / "train_images" / ".000003.png").touch()  # as some systems leave behind
    assert read(root).size("train") == 9


def test_a_broken_image_is_reported(root):
    file = root / "test_images" / "000002.png"
    whole = file.read_bytes()
    file.write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"000002\.png: cannot be read as an image"):
        read(root)
    file.write_bytes(whole[: len(whole) // 2])  # its head tells its size
    with pytest.raises(UsageError, match=r"000002\.png: cannot be read as an image"):
        read(root).scenes("test", torch.tensor([0]))
    Image.new("RGB", (64, 32)).save(file)
    with pytest.raises(UsageError, match=r"000002\.png: is 64x32 pixels, but scenes must be square"):
        read(root)


def test_a_scene_too_few_to_hold_any_out_is_reported(root):
    for file in [*(root / "train_images").iterdir(), *(root / "train_labels").iterdir()]:
        if file.stem != "000000":
            file.unlink()
    with pytest.raises(UsageError, match="one scene is too few"):
        read(root)


def test_grey_and_transparent_images_become_rgb(root):
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(root / "test_images" / "000000.png")
    Image.new("RGBA", (64, 64), (10, 20, 30, 255)).save(root / "test_images" / "000001.png")
    images = read(root).scenes("test", torch.arange(2)).images * 255
    assert images[0].unique().tolist() == [77]
    assert images[1, :, 5, 5].round().tolist() == [10, 20, 30]


def test_files_pair_by_name_whatever_their_order(root):
    """000000.png stands before 000000.rot90.png, 000000.txt behind 000000.rot90.txt."""
    for part in ("images", "labels"):
        for file in list((root / f"test_{part}").iterdir()):
            shutil.copy(file, file.with_name(f"{file.stem}.rot90{file.suffix}"))
    (root / "test_labels" / "000000.rot90.txt").write_text("1\n10 10 4 4 3\n")
    (root / "test_images" / "000001.png").rename(root / "test_images" / "000001.PNG")
    truth = read(root).truth["test"]
    assert truth.images == 6
    counts = [int((truth.image == i).sum()) for i in range(6)]
    assert counts == [2, 1, 100, 100, 0, 0]  # by name: 000000, 000000.rot90, 000001 ...
    assert objects(truth, 1)[0].tolist() == [[8, 8, 12, 12]]


def test_sixteen_bits_are_the_same_picture(root):
    grey = (TEST.images[0, 0] * 255).round().numpy().astype(np.uint16)
    Image.fromarray(grey.astype(np.uint8)).save(root / "test_images" / "000000.png")
    eight = read(root).scenes("test", torch.tensor([0])).images
    Image.fromarray(grey * 257).save(root / "test_images" / "000000.png")
    assert torch.equal(read(root).scenes("test", torch.tensor([0])).images, eight)
    assert len(eight.unique()) > 100


def test_the_colour_behind_transparent_pixels_is_an_option(root):
    Image.new("RGBA", (64, 64), (10, 20, 30, 0)).save(root / "test_images" / "000000.png")
    assert not read(root).scenes("test", torch.tensor([0])).images.any()
    white = read(root, background="#ff0000").scenes("test", torch.tensor([0])).images
    assert (white[0] * 255).amax((1, 2)).tolist() == [255, 0, 0]
    with pytest.raises(UsageError, match="'reddish' is no colour"):
        read(root, background="reddish")


def test_a_turn_is_applied_and_said(root, capsys):
    image = Image.open(root / "test_images" / "000000.png")
    exif = image.getexif()
    exif[0x0112] = 3
    image.load()
    image.save(root / "test_images" / "000000.png", exif=exif)
    turned = read(root).scenes("test", torch.tensor([0])).images[0]
    assert torch.equal(turned, TEST.images[0].flip(1, 2))
    assert "turned as their EXIF data asks for are" in capsys.readouterr().err


def test_the_fingerprint_names_what_is_read_and_not_where_it_lies(root, tmp_path):
    before = read(root).fingerprint()
    assert before["scenes"] == {"train": 9, "validation": 2, "test": 3}
    moved = root.rename(tmp_path / "elsewhere")
    assert read(moved).fingerprint() == before
    old = read(moved).scenes("test", torch.tensor([0])).images
    Image.new("RGB", (64, 64)).save(moved / "test_images" / "000000.png")
    assert read(moved).fingerprint() != before
    assert not torch.equal(read(moved).scenes("test", torch.tensor([0])).images, old)


def test_fetch_says_what_to_download_and_where_to_put_it_and_then_what_is_there(root, tmp_path):
    place = tmp_path / "data" / "objbench" / "fruit2d"
    advice = Fruit2D.fetch()
    assert str(place) in advice
    assert all(folder in advice for folder in FOLDERS)
    assert "\n" not in advice
    shutil.copytree(root, place)
    assert Fruit2D.fetch().startswith(f"{place}: 11 train scenes and 3 test scenes, 223 objects, sha256 ")
    assert Fruit2D(Fruit2DConfig(), 0).fingerprint()["sha256"] in Fruit2D.fetch()
    (place / "train_labels" / "000000.txt").write_text("9\n")
    with pytest.raises(UsageError, match=r"000000\.txt: has a count of 9, and 0 objects"):
        Fruit2D.fetch()


def test_without_files_the_way_to_them_is_reported():
    with pytest.raises(UsageError, match=r"data fetch fruit2d.* -o fruit2d.root=DIR"):
        Fruit2D(Fruit2DConfig(), 0)
