"""Multi-object files in the layouts of the field, written small by the tests; and sprites-sim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from objbench.errors import UsageError
from objbench.masks import boxes_of, unpack
from objbench.options import build
from objbench.score.scene_checks import check_source
from objbench_plugins.objects import source as source_module
from objbench_plugins.objects.source import Objects, ObjectsConfig
from objbench_plugins.objects.sprites import LEAST, SpritesConfig, SpritesSim
from running import objbench

N, K, H, W = 40, 4, 16, 24
SHAPES = np.array([0, 1, 2, 3])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(source_module, "cache_folder", lambda: folder)


def numbers(n: int = N, height: int = H, width: int = W) -> np.ndarray:
    """[n, height, width] numbers of entities: object j is a block in column j; scene i has i % K objects."""
    mask = np.zeros((n, height, width), np.uint8)
    for i in range(n):
        for j in range(1, i % K + 1):
            mask[i, i % 5 : i % 5 + 4, 6 * j - 4 : 6 * j] = j
    return mask


def pictures(mask: np.ndarray, channels: int = 3) -> np.ndarray:
    """[n, height, width, channels] uint8: an entity has the value 50 times its number."""
    return np.repeat((50 * mask)[..., None], channels, 3)


def visibility(mask: np.ndarray) -> np.ndarray:
    return (mask[:, None] == np.arange(K)[:, None, None]).any((2, 3)).astype(np.float32)


def oclib(path: Path, mask: np.ndarray | None = None, **more: Any) -> Path:
    """Arrays at the top, the entity's number as mask, factors [N, K, 1]."""
    mask = numbers() if mask is None else mask
    shape = np.where(visibility(mask) > 0, SHAPES, 0)[..., None].astype(np.int32)
    arrays = {
        "image": pictures(mask),
        "mask": mask[..., None],
        "visibility": visibility(mask),
        "num_actual_objects": visibility(mask)[:, 1:].sum(1, keepdims=True),
        "shape": shape,
        "color": np.random.default_rng(0).random((len(mask), K, 3)).astype(np.float32),
        "scale": np.random.default_rng(1).random((len(mask), K, 1)).astype(np.float32),
    } | more
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if values is not None:
                file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression="gzip")
    return path


def emorl(path: Path) -> Path:
    """Groups train, val and test, stacked masks of 0 and 255."""
    with h5py.File(path, "w") as file:
        for name, n in (("train", 20), ("val", 6), ("test", 8)):
            mask = numbers(n)
            stack = 255 * (mask[:, None] == np.arange(K)[:, None, None]).astype(np.uint8)
            file[f"{name}/imgs"] = pictures(mask)
            file[f"{name}/masks"] = stack[..., None]
            file[f"{name}/factors/shape"] = np.where(visibility(mask) > 0, SHAPES, 0).astype(np.float32)
            file[f"{name}/factors/visibility"] = visibility(mask)
    return path


def npz(path: Path) -> Path:
    """Channels first, floats in 0..1, masks [N, H, W, K]."""
    mask = numbers()
    np.savez_compressed(
        path,
        images=(pictures(mask).transpose(0, 3, 1, 2) / 255).astype(np.float32),
        masks=(mask[..., None] == np.arange(K)),
        visibility=visibility(mask)[..., None],
        shape=np.where(visibility(mask) > 0, SHAPES, 0)[..., None],
    )
    return path


def npz_of_splits(path: Path) -> Path:
    mask = numbers()
    arrays = {}
    for name in ("train", "val", "test"):
        arrays |= {f"{name}/image": pictures(mask, 1)[..., 0], f"{name}/mask": mask}
    np.savez(path, **arrays)
    return path


def folder_of_splits(path: Path) -> Path:
    path = path.with_suffix("")
    path.mkdir()
    for name in ("train", "val", "test"):
        oclib(path / f"{name}.hdf5")
    return path


def opened(path: Path, **options: Any) -> Objects:
    return Objects(build(ObjectsConfig, "objects", {"file": str(path), **options}), 0)


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "oclib": (oclib, "a.hdf5"),
    "emorl": (emorl, "a.h5"),
    "npz": (npz, "a.npz"),
    "npz of splits": (npz_of_splits, "a.npz"),
    "folder": (folder_of_splits, "a.h5"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_scenes(name: str, tmp_path: Path) -> None:
    write, file = LAYOUTS[name]
    source = opened(write(tmp_path / file))
    channels = 1 if name == "npz of splits" else 3
    assert source.shape == (channels, H, W)
    assert source.classes == (("object",) if channels == 1 else ("shape 1", "shape 2", "shape 3"))
    check_source("objects", source)
    rows = torch.tensor([3, 0, 7, 3])
    scenes = source.scenes("train", rows)
    expected = numbers()[rows]
    assert torch.equal((scenes.images[:, 0] * 255).round(), torch.from_numpy(50 * expected).float())
    truth = scenes.truth
    assert truth.image.tolist() == [0, 0, 0, 2, 2, 2, 3, 3, 3]
    assert truth.labels.tolist() == ([0] * 9 if channels == 1 else [0, 1, 2] * 3)
    assert truth.boxes[:3].tolist() == [[2, 3, 6, 7], [8, 3, 12, 7], [14, 3, 18, 7]]
    assert truth.masks is not None
    there = unpack(truth.masks, W)
    assert all(
        torch.equal(there[j], torch.from_numpy(expected[i] == j % 3 + 1))
        for j, i in enumerate(truth.image.tolist())
    )


def test_splits_are_the_files_or_its_last_scenes(tmp_path: Path) -> None:
    source = opened(emorl(tmp_path / "a.h5"))
    assert [source.size(s) for s in ("train", "validation", "test")] == [20, 6, 8]
    source = opened(oclib(tmp_path / "b.h5"), validation=0.1, test=0.2)
    assert [source.size(s) for s in ("train", "validation", "test")] == [28, 4, 8]
    assert source.origin("validation", 0) == f"{tmp_path / 'b.h5'}, row 28"
    assert source.origin("test", 7).endswith("row 39")


def test_only_scenes_with_few_objects(tmp_path: Path) -> None:
    for name, more in (("a.h5", {}), ("b.h5", {"visibility": None})):  # counted from visibility, or in masks
        source = opened(oclib(tmp_path / name, **more), most=2)
        assert sum(source.size(s) for s in ("train", "validation", "test")) == 30
        truth = source.scenes("train", torch.arange(source.size("train"))).truth
        assert torch.bincount(truth.image).max() == 2


def test_clevr_is_cropped_and_resized_as_papers_do(tmp_path: Path) -> None:
    mask = np.zeros((4, 240, 320), np.uint8)
    mask[:, 40:80, 100:140], mask[:, 0:20] = 1, 2  # the second object is above the crop
    file = oclib(tmp_path / "clevr.h5", mask, shape=None, visibility=None)
    assert opened(file).shape == (3, 192, 192)
    source = opened(file, size=96)
    scenes = source.scenes("train", torch.arange(2))
    assert scenes.images.shape == (2, 3, 96, 96)
    assert scenes.truth.image.tolist() == [0, 1]
    assert scenes.truth.boxes[0].tolist() == pytest.approx([18, 5.5, 38, 25.5], abs=0.5)
    check_source("objects", source)
    assert opened(file, crop="square").shape == (3, 240, 240)
    assert opened(file, crop="none").shape == (3, 240, 320)


def test_entities_of_the_background_are_no_objects(tmp_path: Path) -> None:
    truth = opened(oclib(tmp_path / "a.h5"), background=2).scenes("train", torch.tensor([3])).truth
    assert truth.boxes[:, 0].tolist() == [8, 14]


def test_classes_are_the_factor_that_is_named(tmp_path: Path) -> None:
    file = oclib(tmp_path / "a.h5", size=np.tile([[9, 7, 7, 5]], (N, 1)))
    source = opened(file, classes="size")
    assert source.classes == ("size 5", "size 7")
    assert source.scenes("train", torch.tensor([3])).truth.labels.tolist() == [1, 1, 0]
    assert opened(file, classes="none").classes == ("object",)
    objects_only = oclib(tmp_path / "b.h5", shape=np.tile([[4, 5, 6]], (N, 1)))  # no factor of the background
    assert opened(objects_only).scenes("train", torch.tensor([3])).truth.labels.tolist() == [0, 1, 2]


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    first, second = oclib(tmp_path / "a.h5"), tmp_path / "moved.h5"
    print_ = opened(first).fingerprint()
    second.write_bytes(first.read_bytes())
    assert opened(second).fingerprint() == print_
    changed = numbers()
    changed[0, 0, 0] = 1
    assert opened(oclib(first, changed)).fingerprint()["sha256"] != print_["sha256"]


def broken(path: Path) -> Path:
    path.write_bytes(oclib(path).read_bytes()[:3000])
    return path


def text(path: Path) -> Path:
    path.write_text("no data")
    return path


def pickled(path: Path) -> Path:
    np.savez(path, image=np.array([{}], object), mask=np.zeros(1))
    return path


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (lambda p: p / "no.h5", {}, "there is no such file"),
        (lambda p: text(p / "a.h5"), {}, "cannot be read as HDF5 or npz"),
        (lambda p: text(p / "a.npz"), {}, "cannot be read as"),
        (lambda p: pickled(p / "a.npz"), {}, "cannot be read as HDF5 or npz"),
        (lambda p: broken(p / "a.h5"), {}, "cannot be read as HDF5 or npz"),
        (lambda p: p, {}, "no train.h5"),
        (lambda p: oclib(p / "a.h5", image=None), {}, "no array image or images or imgs; it holds color"),
        (lambda p: oclib(p / "a.h5", mask=numbers(), image=pictures(numbers(9))), {}, "do not fit images"),
        (lambda p: oclib(p / "a.h5", image=np.zeros((N, H, W, 7))), {}, "with 1 or 3 channels"),
        (lambda p: oclib(p / "a.h5", numbers(2)[:0], visibility=None), {}, "no scenes|Chunk"),
        (
            lambda p: oclib(p / "a.h5"),
            {"classes": "colour"},
            r"no factor 'colour' \(factors: color, scale, shape\)",
        ),
        (lambda p: oclib(p / "a.h5"), {"classes": "color"}, "is no class"),
        (lambda p: oclib(p / "a.h5", numbers(2)), {}, "none is left for train"),
        (lambda p: oclib(p / "a.h5", shape=np.tile([[1, 2]], (N, 1))), {}, "entity 3, but factors are of 2"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    write: Callable[[Path], Path], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, ValueError), match=message) as caught:
        opened(write(tmp_path), **options).scenes("train", torch.arange(8))
    assert "\n" not in str(caught.value)


def test_masks_that_are_no_numbers_of_entities_are_refused(tmp_path: Path) -> None:
    mask = numbers().astype(np.float32)
    mask[5, 0, 0] = 0.5
    file = oclib(tmp_path / "a.h5")
    with h5py.File(file, "a") as f:
        del f["mask"]
        f["mask"] = mask
    with pytest.raises(UsageError, match="they must be numbers of entities"):
        opened(file).scenes("train", torch.arange(8))


def test_images_out_of_range_are_refused_before_a_run(tmp_path: Path) -> None:
    image = pictures(numbers()).astype(np.float32)
    with pytest.raises(
        UsageError, match=r"train scene 1 .*row 1\): pixels from 0 to 50; they must be in 0..1"
    ):
        check_source("objects", opened(oclib(tmp_path / "a.h5", image=image)))


def test_without_a_file_the_error_says_how_to_name_one() -> None:
    with pytest.raises(UsageError, match=r"-o objects.file=FILE"):
        Objects(ObjectsConfig(), 0)


@pytest.mark.slow
def test_data_show_and_check(tmp_path: Path) -> None:
    image = pictures(numbers())
    image[:, -1, -1] = np.arange(N)[:, None]  # so that no two scenes are equal
    shares = ("-o", "objects.validation=0.2", "-o", "objects.test=0.2")
    options = ("-o", f"objects.file={oclib(tmp_path / 'a.h5', image=image)}", *shares)
    ran = objbench("data", "check", "objects", *options)
    assert ran.code == 0, ran.out
    assert "nothing is wrong" in ran.out
    ran = objbench("data", "show", "objects", *options, "--n", "8", "--to", str(tmp_path / "a.png"))
    assert ran.code == 0, ran.err
    assert (tmp_path / "a.png").stat().st_size > 1000
    (tmp_path / "b.h5").write_text("no data")
    ran = objbench("data", "check", "objects", "-o", f"objects.file={tmp_path / 'b.h5'}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1


def test_sprites_are_what_their_masks_say() -> None:
    source = SpritesSim(SpritesConfig(), 0)
    scenes = source.scenes("train", torch.arange(32))
    truth = scenes.truth
    assert truth.masks is not None
    masks = unpack(truth.masks, 64)
    assert torch.equal(boxes_of(truth.masks), truth.boxes)
    assert masks.flatten(1).sum(1).min() >= LEAST
    assert set(truth.labels.tolist()) == {0, 1, 2}
    counts = torch.bincount(truth.image, minlength=32)
    assert 1 <= counts.min() <= counts.max() == 5
    for i in range(32):
        mine = masks[truth.image == i]
        assert mine.sum(0).max() <= 1  # what is seen of sprites does not overlap
        for mask in (*mine, ~mine.any(0)):  # each has one colour, and so has the background
            assert (scenes.images[i][:, mask].std(1, correction=0) < 1e-6).all()


def test_a_sprite_scene_depends_on_split_seed_and_index_alone() -> None:
    source = SpritesSim(SpritesConfig(size=32), 0)
    together = source.scenes("train", torch.arange(4))
    alone = source.scenes("train", torch.tensor([2]))
    assert torch.equal(together.images[2], alone.images[0])
    for other in (
        source.scenes("test", torch.tensor([2])),
        SpritesSim(SpritesConfig(size=32), 1).scenes("train", torch.tensor([2])),
    ):
        assert not torch.equal(other.images, alone.images)
