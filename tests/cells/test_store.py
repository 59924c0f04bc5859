"""Nothing half-written is ever read, nothing damaged is ever believed."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objbench import writing
from objbench.cells import files as files_module
from objbench.cells.files import (
    Damaged,
    read_json,
    verify_checksums,
    write_json,
    written_beside,
)
from objbench.cells.identity import Cell, Training, write_cell
from objbench.cells.result import CellResult, Position, Trained
from objbench.cells.store import (
    Store,
    read_curve,
    read_record,
    read_trained,
    update_record,
    write_curve,
    write_record,
    write_trained,
)
from objbench.errors import UsageError
from objbench.score.arrays import load_tensors, save_tensors
from objbench.writing import write_file
from running import objbench


def cell_of(seed: int = 0, clusters: int = 10) -> Cell:
    """A cell that no plugin is behind."""
    identity = {"model": "m", "data": "d", "protocol": {"name": "demo"}, "seed": seed}
    identity |= {"model_config": {"lr": 1e-4}, "data_config": {}}
    return Cell(Training(identity, {}, {}, {}), {"name": "gmm", "config": {"clusters": clusters}})


CELL = cell_of()
RESULT = CELL.result(
    "done",
    metrics={"ap": 0.1 + 0.2, "undefined": math.nan},
    seconds=1.5,
    provenance={"data": {"digits": 5000}},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one cell that is done."""
    store = Store(tmp_path / "out")
    store.prepare()
    add(store, CELL, RESULT)
    return store


def add(store: Store, cell: Cell, result: CellResult) -> Path:
    """A cell and its training as the harness writes them."""
    folder = store.folder(cell.key)
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    save_tensors(folder.parent / "weights.safetensors", {"w": torch.arange(300.0)})
    if result.status == "done":
        trained = Trained(cell.training.key, Position(step=9), ("a", "b"), (1, 4, 4), False, [], {})
        write_trained(folder.parent, trained, ["weights.safetensors"])
    save_tensors(folder / "clusters.safetensors", {"clusters": torch.arange(300)})
    write_record(folder, result, ["clusters.safetensors"])
    return folder


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    (result,), warnings = store.results()
    assert warnings == []
    assert math.isnan(result.metrics["undefined"])
    assert result.metrics["ap"] == 0.1 + 0.2  # every bit
    assert result.path == str(store.folder(RESULT.cell))
    assert replace(result, metrics={}, path="") == replace(RESULT, metrics={})
    json.loads((store.folder(RESULT.cell) / "record.json").read_text(), parse_constant=pytest.fail)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_damage_to_a_record_is_seen(store: Store, place: float, bit: int, cut: bool) -> None:
    path = store.folder(RESULT.cell) / "record.json"
    whole = path.read_bytes()
    at = int(place * len(whole))
    path.write_bytes(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        results, warnings = store.results()
        assert results == []
        assert "record.json was cut short or edited" in warnings[0]
    finally:
        path.write_bytes(whole)


OF_TRAINING = ["weights.safetensors", "training.json", "trained.json"]
OF_CELL = ["clusters.safetensors", "cell.json", "record.json"]


@pytest.mark.parametrize("name", OF_TRAINING + OF_CELL)
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_what_is_damaged_is_seen_and_set_aside(store: Store, name: str, how: str) -> None:
    """A damaged cell leaves its training as it is; a damaged training takes its cells with it."""
    key = CELL.training.key if name in OF_TRAINING else CELL.key
    path = store.folder(key) / name
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] + (b"" if how == "cut" else bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        )
    if (name, how) == ("record.json", "gone"):  # as one that was killed before it began
        assert store.verify(CELL.key) is None
        assert "record.json is missing" in store.results()[1][0]
    elif (name, how) == (
        "trained.json",
        "gone",
    ):  # a training that has not ended, so its cells have not either
        assert store.verify_training(CELL.training.key) is None
        with pytest.raises(Damaged, match=name):
            store.verify(CELL.key)
    else:
        with pytest.raises(Damaged, match=name):
            store.verify_training(key) if key == CELL.training.key else store.verify(key)
    assert store.set_aside(key).name == f"{key.rpartition('/')[2]}.broken-1"
    assert store.cell_keys() == [], "what is set aside is not read"
    store.folder(key).mkdir(parents=True)
    assert store.set_aside(key).name == f"{key.rpartition('/')[2]}.broken-2"
    if key == CELL.key:
        assert store.verify_training(CELL.training.key) is not None


def test_copies_and_other_versions_are_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(store.folder(CELL.training.key), store.folder("copy"))
    monkeypatch.setattr(files_module, "FORMAT", files_module.FORMAT + 1)
    later = cell_of(seed=7)
    add(store, later, later.result("done"))
    monkeypatch.undo()
    monkeypatch.setattr(files_module, "FORMAT", files_module.FORMAT - 1)
    earlier = cell_of(seed=8)
    add(store, earlier, earlier.result("done"))
    monkeypatch.undo()
    (store.cells / "old").mkdir()
    (store.cells / "old/record.json").write_text("{}")
    results, warnings = store.results()
    assert [r.cell for r in results] == [CELL.key]
    of_copy = next(w for w in warnings if w.startswith(f"cell copy/{CELL.clusterer_key} is left out"))
    assert CELL.key in of_copy
    for other in (earlier, later):
        assert any(w.startswith(f"cell {other.key}") and "another version" in w for w in warnings)
    assert "cell old is left out: an earlier version of objbench wrote it" in warnings
    assert len(warnings) == 4


@pytest.mark.parametrize("name", ["training.json", "trained.json", "cell.json", "record.json"])
@pytest.mark.parametrize("how", ["a field more", "a field less"])
def test_fields_of_another_version_are_said_to_be_that(store: Store, name: str, how: str) -> None:
    folder = store.folder(CELL.key)
    path = (folder.parent if name in OF_TRAINING else folder) / name
    body = read_json(path)
    if (
        how == "a field more" and name != "cell.json"
    ):  # of a cell.json two fields are read, whatever else it has
        write_json(path, body | {"field": 1})
    else:
        needed = {
            "training.json": "code",
            "trained.json": "position",
            "cell.json": "clusterer",
            "record.json": "seed",
        }
        del body[needed[name]]
        write_json(path, body)
    with pytest.raises(Damaged, match=f"{name} was written by another version of objbench"):
        store.verify_training(CELL.training.key) if name in OF_TRAINING else store.verify(CELL.key)


@pytest.mark.parametrize("other", ["0" * 16, "f" * 16])
def test_a_checkpoint_of_another_training_is_not_believed(store: Store, other: str) -> None:
    folder = store.folder(CELL.training.key)
    body = {"training": CELL.training.key, "position": {}, "files": {}, "state": {}}
    write_json(folder / "checkpoint.json", body)
    assert store.verify_training(CELL.training.key) is not None
    write_json(folder / "checkpoint.json", body | {"training": other})
    with pytest.raises(Damaged, match=f"checkpoint.json is that of training {other}"):
        store.verify_training(CELL.training.key)


@pytest.mark.parametrize("breaks", ["fsync", "replace"])
def test_a_write_that_breaks_off_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    path = tmp_path / "file"
    write_file(path, b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, breaks, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_file(path, b"after")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_come_back_whatever_their_layout(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {
        "all": base,
        "part": base[1:, ::2],
        "brain": base.bfloat16(),
        "0-d": torch.tensor(3),
        "last": images,
    }
    save_tensors(tmp_path / "t", tensors)
    loaded = load_tensors(tmp_path / "t")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in tensors.items())


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for name in ("there", "not-yet"):
        link, target = tmp_path / f"link-{name}", tmp_path / "far" / name
        if name == "there":
            target.write_bytes(b"old")
        link.symlink_to(Path("far") / name)
        write_file(link, b"new")
        assert link.is_symlink()
        assert target.read_bytes() == b"new"
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["not-yet", "there"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_the_mode_of_a_file_is_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_file(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_pipe_and_a_device_are_written_to_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"through")
    reader.join(10)
    assert got == [b"through"]
    assert pipe.is_fifo()
    for device in ("null", "full"):  # through links: whatever goes wrong here, the machine keeps its devices
        (tmp_path / device).symlink_to(f"/dev/{device}")
    write_file(tmp_path / "null", b"gone")
    assert (tmp_path / "null").is_symlink()
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match=r"No space left on device: '.*/full'"):
        write_file(tmp_path / "full", b"too much")


def test_our_own_descriptors_are_written_where_they_stand(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"before ")
        file.flush()
        write_file(Path(f"/dev/fd/{file.fileno()}"), b"now ")
        write_file(Path(f"/proc/self/fd/{file.fileno()}"), b"then")
    assert (tmp_path / "file").read_bytes() == b"before now then"
    assert writing._own_descriptor(Path("/dev/stdout")) == 1


def test_a_name_as_long_as_a_file_system_allows(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        write_file(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    with pytest.raises(OSError, match="File name too long"):
        write_file(tmp_path / ("n" * 256), b"x")
    with pytest.raises(OSError, match="Is a directory"):
        write_file(tmp_path, b"x")


def test_two_that_write_one_file_at_once_both_end(tmp_path: Path) -> None:
    path, troubles = tmp_path / "file", list[BaseException]()
    texts = [bytes([65 + i]) * 10_000 for i in range(4)]

    def write(data: bytes) -> None:
        try:
            for _ in range(50):
                write_file(path, data)
        except OSError as error:
            troubles.append(error)

    writers = [threading.Thread(target=write, args=(data,)) for data in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert troubles == []
    assert path.read_bytes() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_is_no_error(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "file", b"x")
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        write_file(tmp_path / "file", b"y")


def test_a_file_that_is_a_mount_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    (tmp_path / "file").write_bytes(b"what was there")
    monkeypatch.setattr(os, "replace", busy)
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_infinite_metrics_are_null_in_a_record(store: Store) -> None:
    cell = cell_of(seed=9)
    known = {"a": math.inf, "b": -math.inf, "c": 0.5}
    folder = add(store, cell, cell.result("done", metrics=known))
    json.loads((folder / "record.json").read_text(), parse_constant=pytest.fail)
    metrics = store.result(cell.key).metrics
    assert (math.isnan(metrics["a"]), math.isnan(metrics["b"]), metrics["c"]) == (True, True, 0.5)


def test_a_dead_run_is_interrupted_and_a_live_one_runs(store: Store) -> None:
    cell = cell_of(seed=1)
    key = cell.training.key
    folder = add(store, cell, cell.result("running"))
    at = {"position": {"step": 7, "seconds": 2.0}}
    write_json(folder.parent / "checkpoint.json", at)
    assert not store.locked(key)
    lock = store.lock(key)
    assert lock is not None
    assert store.locked(key)
    assert store.result(cell.key).status == "running"
    assert store.lock(key) is None, "one process at a time"
    assert store.holder(key).startswith(f"process {os.getpid()} on ")
    os.close(lock)
    dead = store.result(cell.key)
    assert (dead.status, dead.train_steps, dead.seconds) == ("interrupted", 7, 2.0)


# Stores of others, and on file systems that can do less


@pytest.fixture
def nobody() -> Iterator[None]:
    """This process has the rights of a user to whom nothing here belongs."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def opened(store: Store) -> None:
    """Lets others look into the store, and into the temporary folders above it."""
    for folder in [*list(store.out.parents)[:-2], store.out]:
        folder.chmod(folder.stat().st_mode | 0o055)


def test_somebody_elses_store_can_be_read_and_is_not_written(store: Store, nobody: None) -> None:
    os.seteuid(0)
    opened(store)
    os.seteuid(65534)
    results, warnings = store.results()
    assert ([r.status for r in results], warnings) == (["done"], [])
    assert store.verify(CELL.key) is not None
    assert not store.locked(CELL.key)
    with pytest.raises(UsageError, match=r"cannot write there \(Permission denied\)"):
        store.prepare()


@pytest.mark.parametrize("closed", ["cell", "training", "record.json", "cells"])
def test_what_cannot_be_read_is_a_warning_and_the_rest_is_read(
    store: Store, nobody: None, closed: str
) -> None:
    os.seteuid(0)
    opened(store)
    other = cell_of(seed=1)
    folder = add(store, other, other.result("done", metrics={"a": 1.0}))
    places = {"cell": folder, "training": folder.parent, "cells": store.cells}
    places.get(closed, folder / closed).chmod(0o000)
    os.seteuid(65534)
    if closed == "cells":
        with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
            store.results()
        return
    results, (warning,) = store.results()
    assert [r.cell for r in results] == [CELL.key]
    assert other.training.key in warning
    assert "cannot be read (Permission denied)" in warning


def test_lock_files_of_another_user(store: Store, nobody: None) -> None:
    os.seteuid(0)
    opened(store)
    before = os.umask(0o077)
    first = store.lock("a" * 16)
    os.umask(before)
    assert first is not None
    store.locks.chmod(0o777)
    os.seteuid(65534)
    assert store.lock("a" * 16) is None, "of a user with a strict umask, and still held"
    assert store.locked("a" * 16)
    os.close(first)
    second = store.lock("a" * 16)
    assert second is not None
    assert f"process {os.getpid()}" in store.holder("a" * 16)
    os.close(second)
    os.seteuid(0)
    (store.locks / ("a" * 16)).chmod(0o444)  # as an earlier objbench made them
    os.seteuid(65534)
    third = store.lock("a" * 16)
    assert third is not None
    assert store.locked("a" * 16)
    os.close(third)
    os.seteuid(0)
    (store.locks / ("a" * 16)).chmod(0o000)
    os.seteuid(65534)
    assert not store.locked("a" * 16)
    with pytest.raises(UsageError, match=r"another user's and cannot be opened"):
        store.lock("a" * 16)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert not store.locked(CELL.key)
    descriptor = store.lock(CELL.key)
    assert descriptor is not None
    assert store.lockless
    assert not store.locked(CELL.key)
    assert store.results()[1] == []
    os.close(descriptor)


def test_a_store_that_is_written_and_removed_from_is_read_meanwhile(store: Store) -> None:
    """Cells are made, run anew and removed as fast as can be; what is read is never half of one."""
    stop = threading.Event()

    def write() -> None:
        n = 1
        while not stop.is_set():
            cell = cell_of(seed=n)
            lock = store.lock(cell.key)
            add(store, cell, cell.result("done", metrics={"a": 1.0}))
            if n % 2:
                store.set_aside(cell.training.key, "old")
            else:
                shutil.rmtree(store.folder(cell.training.key).rename(store.cells / f".removed-{n}"))
            assert lock is not None
            os.close(lock)
            n += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(200):
            results, warnings = store.results()
            assert CELL.key in [r.cell for r in results]
            assert warnings == []
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("words", [
    pytest.param(["run", "--models", "gmair", "--data", "multimnist", "--out"], marks=pytest.mark.slow),
    ["report", "--out"], ["rescore"], ["rm", "x", "--yes", "--out"]], ids=lambda w: w[0])  # fmt: skip
@pytest.mark.parametrize("path", ["x" * 300, "y/" * 3000])
def test_a_path_that_is_too_long_is_one_line(words: list[str], path: str) -> None:
    ran = objbench(*words, path)
    assert (ran.code, ran.out) == (2, "")
    assert "File name too long" in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


def test_out_must_be_a_directory_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file is a file"):
        Store(tmp_path / "file").prepare()
    with pytest.raises(UsageError, match=r"cannot write there"):
        Store("/proc/objbench").prepare()


def test_a_record_holds_the_checksums_of_its_files(store: Store) -> None:
    folder = store.folder(CELL.key)
    result, files = read_record(folder)
    assert list(files) == ["clusters.safetensors"]
    verify_checksums(folder, files)
    update_record(replace(result, metrics={"ap": 0.5}))
    assert read_record(folder)[1] == files, "an update keeps them"
    assert read_trained(folder.parent).files.keys() == {"weights.safetensors"}
    with pytest.raises(Damaged, match="missing"):
        read_json(folder / "nothing.json")


def test_a_curve_comes_back_row_by_row_and_a_new_one_replaces_it(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == []
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 0.25, "metrics": {"ap": None}}]
    for kept in (rows, rows[:1]):
        write_curve(tmp_path, kept)
        assert read_curve(tmp_path) == kept


def test_what_is_written_beside_a_file_makes_its_folders_and_counts_only_in_the_end(tmp_path: Path) -> None:
    target = tmp_path / "not/yet/there.png"
    with written_beside(target) as beside:
        beside.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    with pytest.raises(ZeroDivisionError), written_beside(target) as beside:
        beside.write_text(str(1 / 0))
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["there.png"]


def test_whoever_may_write_to_the_store_may_lock(store: Store) -> None:
    before = os.umask(0)
    try:
        lock = store.lock(CELL.training.key)
    finally:
        os.umask(before)
    assert lock is not None
    assert stat.S_IMODE(os.fstat(lock).st_mode) == 0o666
    os.close(lock)


def test_a_cell_is_its_training_and_its_clusterer() -> None:
    cell = cell_of(seed=3)
    assert cell.name == "m+gmm on d, seed 3"
    assert cell.identity == {**cell.training.identity, "clusterer": cell.clusterer}


def test_keys_do_not_depend_on_order_or_number_format() -> None:
    one = Training({"a": 1, "b": {"c": 2, "d": [3]}}, {}, {}, {})
    other = Training({"b": {"d": [3], "c": 2}, "a": 1}, {"lies": "elsewhere"}, {}, {})
    assert one.key == other.key
    assert len(one.key) == 16
    assert one.key != Training({"a": 2, "b": {"c": 2, "d": [3]}}, {}, {}, {}).key
    assert Cell(one, {"name": "own"}).key == f"{one.key}/own"
    assert len({cell_of().key, cell_of(seed=1).key, cell_of(clusters=3).key}) == 3


def test_what_killed_processes_left_half_written_is_removed_where_nobody_is_at_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    for key in ("idle", "busy"):
        for name in (".trained.json.12.part", "own/.scenes.png.34/scenes.png", "own/record.json"):
            file = store.folder(key) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    lock = store.lock("busy")
    assert lock is not None
    store.tidy(["idle", "busy", "new"])
    assert sorted(p.name for p in store.folder("idle").rglob("*")) == ["own", "record.json"]
    assert len(list(store.folder("busy").rglob(".*"))) == 2
    assert not store.locked("idle")
    os.close(lock)
    store.tidy(["busy"])
    assert not list(store.folder("busy").rglob(".*"))
