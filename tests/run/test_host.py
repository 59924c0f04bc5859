"""What a training needs on another machine, and how its files come back; no cluster is needed."""

from __future__ import annotations

import math
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from objbench.cells.identity import write_cell
from objbench.cells.result import Event
from objbench.cells.store import Store, read_record, write_record
from objbench.commands.engines import check_engine
from objbench.errors import UsageError
from objbench.plugins import load_plugins
from objbench.run.backend import Needs, Settings
from objbench.run.host import Host, Order, survey
from objbench.run.luggage import (
    archive,
    differences,
    facts,
    names_of,
    paths_of,
    plugin_files,
    unarchive,
    with_paths,
)
from objbench.run.shipping import Changes, Parcel, packed, store
from objbench.writing import write_file
from running import TOY, objbench, run_here, toy_cell, toys

SETTINGS = Settings(["cpu"], 1, 1, math.inf, 0.2, (TOY,))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("seed", range(5))
def test_a_folder_is_the_same_at_both_ends_after_any_changes(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    here, there = tmp_path / "here", tmp_path / "there"
    (there / "cell").mkdir(parents=True)
    (there / "log.txt").write_bytes(b"begin\n")
    shutil.copytree(there, here)
    watched = Changes(there)
    names = ["a.json", "b.bin", "cell/a.json", "cell/b.bin", "log.txt"]
    for _ in range(60):
        file = there / draw.choice(names)
        data = draw.randbytes(draw.randrange(20))
        match draw.choice(["replace", "append", "remove", "ship"]):
            case "replace":
                write_file(file, data)
            case "append":
                with file.open("ab") as opened:
                    opened.write(data)
            case "remove":
                file.unlink(missing_ok=True)
            case "ship":
                store(here, watched.changes())
                assert contents(here) == contents(there)
    store(here, watched.changes())
    assert contents(here) == contents(there)
    assert watched.changes() == Parcel(), "nothing is shipped twice"


def test_a_file_that_was_replaced_under_its_old_inode_is_shipped_whole(tmp_path: Path) -> None:
    """A file system may give the inode of a removed file to the next one: that it became longer does not say how."""
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    (there / "checkpoint-1.safetensors").write_bytes(b"first")
    shutil.copytree(there, here)
    watched = Changes(there)
    (there / "checkpoint-1.safetensors").write_bytes(b"second one")  # in place
    parcel = watched.changes()
    assert parcel == Parcel(whole={"checkpoint-1.safetensors": b"second one"})
    store(here, parcel)
    assert contents(here) == contents(there)
    assert watched.changes() == Parcel()


def test_what_json_vouches_for_is_written_before_it_and_removed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr("objbench.run.shipping.write_file", lambda path, _: done.append(path.name))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: done.append(f"-{path.name}"))
    files = ["own/record.json", "trained.json", "own/clusters.safetensors", "weights.safetensors"]
    store(tmp_path, Parcel(dict.fromkeys(files, b""), gone=("checkpoint-3.safetensors", "checkpoint.json")))
    assert done[:4] == ["weights.safetensors", "clusters.safetensors", "trained.json", "record.json"]
    assert done[4:] == ["-checkpoint.json", "-checkpoint-3.safetensors"]


def test_a_log_is_shipped_by_what_was_added_and_a_file_being_written_is_not(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("old\n")
    watched = Changes(tmp_path)
    with (tmp_path / "log.txt").open("a") as log:
        log.write("new\n")
    (tmp_path / ".trained.json.12.part").write_text("half")
    assert watched.changes() == Parcel(more={"log.txt": b"new\n"})


def test_only_what_a_training_goes_on_from_is_sent(tmp_path: Path) -> None:
    for name in (
        "training.json",
        "curve.jsonl",
        "log.txt",
        "own/record.json",
        "own/curves.png",
        "gmm-1/record.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert set(packed(tmp_path, ["own"])) == {"training.json", "curve.jsonl", "own/record.json"}


def test_a_plugin_file_is_sent_with_the_files_beside_it_that_it_imports(tmp_path: Path) -> None:
    source, sent = tmp_path / "source", tmp_path / "sent"
    for folder in (source / "parts", sent):
        folder.mkdir(parents=True)
    (source / "parts" / "__init__.py").touch()
    (source / "parts" / "net.py").write_text(
        "from objbench.detector import Detector\n\nclass Net(Detector): ...\n"
    )
    (source / "unrelated.py").touch()
    (source / "lone_plugin.py").write_text(
        "from objbench import ModelSpec, hookimpl\n\n@hookimpl\ndef objbench_models():\n"
        "    return [ModelSpec('lone', 'a model', 'parts.net:Net')]\n"
    )
    file = str(source / "lone_plugin.py")
    (plugin,) = plugin_files(load_plugins((file,)), [file])
    assert plugin.name == "lone_plugin.py"
    assert set(plugin.files) == {"lone_plugin.py", "parts/__init__.py", "parts/net.py"}


def test_what_differs_on_a_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [toy_cell("toy-plain")]
    names = names_of(cells)
    assert names == [("toy-plain", "squares", "gmm")]
    here = facts(toys(), names)
    assert here["the model 'toy-plain'"] == "toy_plugin.py"
    assert differences(here, here) == []
    other = here | {"torch": "1.13.1", "the code of 'gmm'": "0"}
    del other["the metric 'ap50'"]
    assert [line.partition(",")[0] for line in differences(here, other)] == [
        "torch is 1.13.1",
        "the code of 'gmm' is 0",
        "the metric 'ap50' is missing",
    ]
    without = facts(load_plugins(), names)
    assert without["the model 'toy-plain'"] == "missing"
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("3", "99", "1"))
    assert differences(here, facts(toys(), names)) == [f"Python is 3.99, here {here['Python']}"]


@pytest.mark.slow
def test_a_node_says_what_it_has(tmp_path: Path) -> None:
    names = names_of([toy_cell("toy")])
    plugins = plugin_files(toys(), [TOY])
    paths = [str(tmp_path), str(tmp_path / "digits")]
    assert survey(plugins, names, paths, {}) == {"facts": facts(toys(), names), "missing": paths[1:]}
    broken = replace(plugins[0], files={"toy_plugin.py": b"import nothing_of_that_name\n"})
    assert "nothing_of_that_name" in survey([broken], names, [], {})["error"]


def test_paths_are_replaced_and_no_key_changes(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.idx").write_bytes(b"12")
    training = toy_cell("toy", f"squares.folder={tmp_path / 'digits'}").training
    assert list(paths_of(training)) == [str(tmp_path / "digits")]
    there = unarchive(archive(str(tmp_path / "digits")), tmp_path / "node" / "0")
    assert contents(there) == {"a.idx": b"12"}
    moved = with_paths(training, {str(tmp_path / "digits"): str(there)})
    assert moved.data_config["folder"] == str(there)
    assert moved.key == training.key
    assert not list(paths_of(toy_cell("toy", "squares.folder=/not/there").training))


def test_too_much_data_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big").write_bytes(bytes(2_000_000))
    monkeypatch.setattr("objbench.run.luggage.MOST_MB", 1)
    with pytest.raises(UsageError, match="put it at the same path on every node"):
        archive(str(tmp_path))


def ordered(out: Path) -> tuple[Path, Order]:
    """A training as the runner writes it, and the order to run it."""
    cell = toy_cell("toy")
    store_ = Store(out)
    store_.prepare()
    folder = store_.folder(cell.key)
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    write_record(folder, cell.result("running"))
    (folder.parent / "log.txt").touch()
    files = {f"{folder.parent.name}/{n}": d for n, d in packed(folder.parent, [folder.name]).items()}
    return folder, Order([cell], SETTINGS, files, plugin_files(toys(), [TOY]), {})


@pytest.mark.slow
def test_a_training_on_a_host_gives_what_one_here_gives_and_leaves_nothing_there(tmp_path: Path) -> None:
    folder, order = ordered(tmp_path / "out")
    host = Host()
    host.begin(order, "node-7", bytes)
    events: list[Event] = []
    while True:
        report = host.poll()
        store(folder.parent, report.parcel)
        events += report.events
        if report.ended:
            break
    there, here = read_record(folder)[0], run_here(tmp_path / "here", toy_cell("toy"))
    assert there.status == "done", there.error
    assert there.metrics == here.metrics
    assert there.provenance["node"] == "node-7"
    assert any("step" in event for event in events)
    Store(tmp_path / "out").verify(there.cell)
    weights = [f / "weights.safetensors" for f in (folder.parent, Path(here.path).parent)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    wait_until_gone(host.place)


@pytest.mark.slow
def test_when_a_host_dies_its_training_and_folder_go_with_it(tmp_path: Path) -> None:
    _, order = ordered(tmp_path / "out")
    host = Host()
    host.begin(order, "node", bytes)
    os.close(host._guard)  # as when its process is killed
    wait_until_gone(host.place)
    assert host._job._process.wait(10) == -9


def wait_until_gone(place: Path) -> None:
    for _ in range(200):
        if not place.exists():
            return
        time.sleep(0.05)
    raise AssertionError(
        f"{place} is still there: {subprocess.run(['ls', '-la', place], capture_output=True).stdout}"
    )


def test_engines_and_needs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no engine named 'rya'; did you mean 'ray'"):
        check_engine("rya", Needs())
    with pytest.raises(UsageError, match="--gpus-per-cell is for a cluster: use it with --on"):
        check_engine("", Needs(gpus=1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'objbench\[ray\]'"):
        check_engine("ray=10.0.0.1:6379", Needs())
    ran = objbench("run", "--models", "x", "--data", "y", "--memory-per-cell", "2", "--out", str(tmp_path))
    assert (ran.code, "--memory-per-cell is for a cluster" in ran.err) == (2, True)


def test_an_address_where_nothing_answers_is_refused_before_ray_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "ray", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address, words in (
        (f"127.0.0.1:{port}", "no Ray cluster answers there"),
        ("10.0.0.1:99999", "not an address such as"),
        ("here", "not an address such as"),
    ):
        with pytest.raises(UsageError, match=words):
            check_engine(f"ray={address}", Needs())
