"""Damaged files of scenes and digits: a UsageError of one line or a right answer, never a traceback.

`OBJBENCH_FUZZ=2000 pytest tests/plugins/test_multimnist_fuzz.py` tries more of them.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objbench.errors import UsageError
from objbench.options import build
from objbench.score.scene_checks import check_source
from objbench_plugins.multimnist import digits
from objbench_plugins.multimnist.source import MultiMnist, MultiMnistConfig

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::numpy.exceptions.ComplexWarning")

fuzz = settings(
    max_examples=int(os.environ.get("OBJBENCH_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SIDE = 16


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A function that flips some bytes, cuts something out, or cuts the rest off."""
    places = st.floats(0, 1, exclude_max=True)
    flips = draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6))
    early = draw(st.booleans())  # headers are where damage hurts
    cut = draw(st.none() | places)
    gap = draw(st.none() | st.tuples(places, st.integers(1, 64)))

    def damaged(data: bytes) -> bytes:
        there = bytearray(data)
        for place, value in flips:
            there[int(place * (min(len(there), 2048) if early else len(there)))] = value
        if gap:
            start = int(gap[0] * len(there))
            del there[start : start + gap[1]]
        return bytes(there if cut is None else there[: int(cut * len(there))])

    return damaged


def read_or_refused(**options: Any) -> MultiMnist | None:
    """The source, all of its scenes checked; None when it was refused in one line."""
    try:
        source = MultiMnist(build(MultiMnistConfig, "multimnist", {"source": "embedded"}, options), 0)
        source.fingerprint()
        check_source("multimnist", source)
    except UsageError as error:
        check_refusal(error)
        return None
    return source


def check_refusal(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600


# HDF5


def scene_arrays(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, SIDE, SIDE)).astype(np.uint8)
    table = np.full((n, 2, 5), -1.0, np.float32)
    table[:, 0] = [1, 2, 6, 7, 3]
    table[::2, 1] = [8, 8, 5, 6, 10]
    return {"image": images, "bbox_w_c": table, "digit_count": (table[:, :, 4] > 0).sum(1, keepdims=True)}


@functools.cache
def whole_file() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for part, n in (("train", 12), ("test", 4)):
            for name, array in scene_arrays(n).items():
                packed = {"compression": "gzip"} if part == "train" else {}
                file.create_dataset(f"{part}/full/{name}", data=array, **packed)
    return buffer.getvalue()


@fuzz
@given(damage())
def test_a_damaged_hdf5_file_is_read_or_refused(damaged):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scenes.hdf5")
        path.write_bytes(damaged(whole_file()))
        read_or_refused(hdf5=str(path))


NUMBERS = ["u1", "i1", "<u2", ">u2", "<i4", ">i8", "<f2", ">f4", "<f8", ">f8", "?", "S3", "c8"]
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda a: a,
    "shorter": lambda a: a[:-1],
    "none": lambda a: a[:0],
    "flat": lambda a: a.reshape(-1),
    "channel last": lambda a: a[..., None],
    "channel first": lambda a: a[:, None],
    "three channels": lambda a: np.repeat(a[..., None], 3, -1),
    "turned": lambda a: a.T,
    "a number": lambda a: a.reshape(-1)[0] if a.size else np.zeros(()),
}
VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda a: a,
    "ones": lambda a: (a > 51) * 1.0,
    "fractions": lambda a: a / 255,
    "more": lambda a: a * 257.0,
    "negative": lambda a: -1.0 * a,
    "black": lambda a: a * 0,
    "nan": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 1, np.nan, a),
    "infinite": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 2, np.inf, a),
}


@fuzz
@given(
    st.sampled_from(["train", "test"]),
    st.sampled_from(["image", "bbox_w_c", "digit_count"]),
    st.sampled_from(NUMBERS),
    st.sampled_from(list(SHAPES)),
    st.sampled_from(list(VALUES)),
    st.sampled_from(["there", "missing", "a group"]) | st.just("there"),
)
def test_other_types_shapes_and_values_are_read_right_or_refused(part, name, kind, shape, values, how):
    arrays = {part: scene_arrays(n) for part, n in (("train", 12), ("test", 4))}
    with np.errstate(invalid="ignore", over="ignore"):
        changed = SHAPES[shape](VALUES[values](arrays[part][name])).astype(kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scenes.hdf5")
        with h5py.File(path, "w") as file:
            for part_, of_part in arrays.items():
                for name_, array in of_part.items():
                    if (part_, name_) != (part, name):
                        file[f"{part_}/full/{name_}"] = array
                    elif how == "there":
                        file[f"{part_}/full/{name_}"] = changed
                    elif how == "a group":
                        file.create_group(f"{part_}/full/{name_}")
        source = read_or_refused(hdf5=str(path))
    if source is None:
        return
    for split, (of_part, rows) in {
        "train": ("train", slice(0, 10)),
        "validation": ("train", slice(10, 12)),
        "test": ("test", slice(0, 4)),
    }.items():
        assert source.size(split) == len(arrays[of_part]["image"][rows])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", ">i4", "<i8", "<f4", ">f4", ">f8", "?"])
@pytest.mark.parametrize("shape", ["same", "channel last", "channel first"])
@pytest.mark.parametrize("values", ["same", "ones", "fractions"])
def test_every_type_of_number_in_every_range_gives_the_same_images(tmp_path, kind, shape, values):
    if (kind == "?" and values != "ones") or (values == "fractions" and "f" not in kind):
        pytest.skip("is no such file")
    arrays = {part: scene_arrays(n) for part, n in (("train", 12), ("test", 4))}
    path = tmp_path / "scenes.hdf5"
    with h5py.File(path, "w") as file:
        for part, of_part in arrays.items():
            for name, array in of_part.items():
                if name == "image":
                    array = SHAPES[shape](VALUES[values](array)).astype(kind)
                file[f"{part}/full/{name}"] = array
    source = read_or_refused(hdf5=str(path))
    assert source is not None
    for indices in (torch.arange(4), torch.tensor([3, 0])):
        images = source.scenes("test", indices).images[:, 0].numpy()
        original = arrays["test"]["image"][indices.numpy()]
        expected = original > 51 if values == "ones" else original / 255
        np.testing.assert_allclose(images, expected, atol=1e-6)


# idx and npz


def mnist_files(n: tuple[int, int] = (40, 20)) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    for part, count in zip(("train", "t10k"), n, strict=True):
        found[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        found[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    return found


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def digits_or_refused(folder: Path) -> digits.Digits | None:
    try:
        found = digits.read_folder(folder)
    except UsageError as error:
        check_refusal(error)
        return None
    assert sorted(np.concatenate(list(found.parts.values())).tolist()) == list(range(len(found.labels)))
    assert len(found.images) == len(found.labels)
    assert found.labels.max() <= 9
    return found


@fuzz
@given(st.sampled_from(list(mnist_files())), damage(), st.booleans(), st.booleans())
def test_damaged_idx_files_are_read_or_refused(file, damaged, zipped, renamed):
    with tempfile.TemporaryDirectory() as name:
        for other, array in mnist_files().items():
            data = gzip.compress(idx(array), 1) if zipped else idx(array)
            data = damaged(data) if other == file else data
            Path(name, other + ".gz" * (zipped and not renamed)).write_bytes(data)
        found = digits_or_refused(Path(name))
        if found is not None and zipped:  # gzip's own checksum would have told
            expected = np.concatenate([a for n, a in mnist_files().items() if "images" in n])
            assert np.array_equal(found.images, digits.halved(expected))


@fuzz
@given(
    st.binary(max_size=64), st.sampled_from([b"", b"\0\0\x08\x03", b"\x1f\x8b\x08", b"PK\x03\x04", b"<html>"])
)
def test_any_bytes_in_the_place_of_an_idx_file_are_refused(data, start):
    with tempfile.TemporaryDirectory() as name:
        for other, array in mnist_files().items():
            Path(name, other).write_bytes(start + data if "train-images" in other else idx(array))
        assert digits_or_refused(Path(name)) is None


@fuzz
@given(damage(), st.booleans(), st.sampled_from(NUMBERS[:-1]), st.sampled_from(list(SHAPES)))
def test_a_damaged_npz_file_is_read_or_refused(damaged, packed, kind, shape):
    arrays = {
        f"{letter}_{part}": mnist_files()[f"{old}-{what}-ubyte"]
        for part, old in (("train", "train"), ("test", "t10k"))
        for letter, what in (("x", "images-idx3"), ("y", "labels-idx1"))
    }
    arrays["x_test"] = SHAPES[shape](arrays["x_test"]).astype(kind)
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **arrays)
    with tempfile.TemporaryDirectory() as name:
        Path(name, "mnist.npz").write_bytes(damaged(buffer.getvalue()))
        digits_or_refused(Path(name))


def test_an_npz_file_whose_header_is_no_python_is_refused(tmp_path):
    """numpy raises SyntaxError or TokenError for these."""
    arrays = {
        f"{letter}_{part}": mnist_files()[f"{old}-{what}-ubyte"]
        for part, old in (("train", "train"), ("test", "t10k"))
        for letter, what in (("x", "images-idx3"), ("y", "labels-idx1"))
    }
    for old, new in ((b"{'descr'", b"\0'descr'"), (b"), }", b"(, }"), (b"{'descr'", b"  'descr'")):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        data = bytearray(buffer.getvalue())
        place = data.index(old)
        data[place : place + len(new)] = new
        (tmp_path / "mnist.npz").write_bytes(data)
        assert digits_or_refused(tmp_path) is None
    for data, says in (
        (b"<html>gone", "HTML page"),
        (b"", "it is empty"),
        (gzip.compress(b"x"), "packed by gzip"),
    ):
        (tmp_path / "mnist.npz").write_bytes(data)
        with pytest.raises(UsageError, match=says):
            digits.read_folder(tmp_path)
