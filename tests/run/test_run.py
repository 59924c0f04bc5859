"""`objbench run`: which cells there are, which are run, how each may end, and what is said."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toy_plugin
from objbench import ModelSpec, __version__, hookimpl
from objbench.cells.difference import difference
from objbench.cells.result import CellResult
from objbench.cells.store import Store, read_record, write_record
from objbench.commands.devices import threads_each
from objbench.commands.run import show_results
from objbench.errors import UsageError
from objbench.plugins import Registry
from objbench.run.planning import Planner
from running import TOY, Ran, objbench, rows_of, run, run_here, toy_cell, toy_cells


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A directory in which two models were run, one of which dies; and what the command said."""
    out = tmp_path_factory.mktemp("finished")
    words = ["-o", "toy-plain.trouble=vanish", "--workers", "2", "--json"]
    return out, run(out, "toy,toy-plain", *words)


@pytest.fixture
def out(finished: tuple[Path, Ran], tmp_path: Path) -> Path:
    """A copy of that directory."""
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


# Identity


def test_the_key_is_of_what_figures_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base = toy_cell("toy").key
    assert toy_cells("toy-fit,toy")[1].key == base, "not of order"
    assert toy_cell("toy", "squares.folder=/elsewhere").key == base, "not of paths"
    assert toy_cell("toy", f"toy.lr={0.030:.9f}").key == base, "not of how a number is written"
    renamed = [ModelSpec("toy", "said otherwise", "toy_plugin:Toy", label="Display Name")]
    with monkeypatch.context() as patch:
        patch.setattr(toy_plugin, "objbench_models", hookimpl(lambda: renamed))
        assert toy_cell("toy").key == base, "not of display names"
    others = [
        toy_cell("toy", "toy.lr=0.02"),
        toy_cell("toy", "squares.most=2"),
        toy_cell("toy", seed=1),
        toy_cells("toy", scale="small")[0],
        toy_cell("toy-plain"),
        toy_cell("toy-plain", "gmm.clusters=3"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(toy_plugin.Squares, "fingerprint", lambda self: {"source": "other digits"})
        others.append(toy_cell("toy"))
    assert len({base, *(cell.key for cell in others)}) == len(others) + 1


def test_differences_are_named() -> None:
    one, other = (
        toy_cell("toy-plain").identity,
        toy_cell("toy-plain", "toy-plain.lr=0.5", "gmm.clusters=3").identity,
    )
    assert difference(other, one) == ["gmm.clusters is 3, there 10", "toy-plain.lr is 0.5, there 0.03"]
    assert difference(one | {"model_code": "x"}, one) == ["the code of toy-plain has changed"]


# A run and what comes after it


def test_a_cell_that_dies_takes_no_other_with_it(finished: tuple[Path, Ran]) -> None:
    out, ran = finished
    done, dead = rows_of(ran)
    assert ran.code == 1
    assert (done["model"], done["status"], done["train_steps"]) == ("toy", "done", 60)
    assert done["metrics"]["ap50"] > 0.9, "it has learnt"
    assert done["metrics"]["undefined"] is None
    assert done["seconds"] > 0
    assert done["images_per_second"] == pytest.approx(60 * 8 / done["seconds"])
    assert 100 < done["peak_memory_mb"] < 4000
    assert (dead["status"], dead["metrics"]) == ("failed", {})
    assert "ended with exit code 0 and left no result" in dead["error"]
    keys = "cell model data protocol seed status metrics seconds train_steps images_per_second"
    assert {*keys.split(), "peak_memory_mb", "path"} <= done.keys()
    assert Path(done["path"]) == out / "cells" / done["cell"]
    assert "toy-plain+gmm on squares, seed 0: failed" in ran.err
    assert len(rows_of(ran)) == len(Store(out).results()[0]), "the failed one is kept"


def test_a_record_says_where_its_figures_come_from(finished: tuple[Path, Ran]) -> None:
    result, _ = read_record(Path(rows_of(finished[1])[0]["path"]))
    said = result.provenance
    assert said["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert said["threads"] == 1
    assert said["data"] == {"source": "drawn", "squares": 3}
    assert said["metric_versions"]["toy-found"] == 1
    assert said["oracle"] is False
    assert {"objbench", "python", "platform", "git", "device", "started", "finished"} <= said.keys()
    assert result.model_config["steps"] == 60
    assert result.data_config == {"most": 3, "size": 0}, "no path"
    assert said["plugins"]["model"]["file"] == said["plugins"]["data set"]["file"] == "toy_plugin.py"
    assert said["metric_plugins"]["ap50"] == {"name": "objbench", "version": __version__}
    assert said["metric_plugins"]["toy-found"] == {"file": "toy_plugin.py"}
    assert said["metric_columns"]["toy-found"] == {"found": "FOUND"}


def test_a_record_has_the_version_of_a_plugins_package_and_the_commit_of_its_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objbench.run.provenance import where_from

    checkout, site = tmp_path / "check out", tmp_path / "site"
    info = site / "nice_pack-1.2.dist-info"
    checkout.mkdir()
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nice-pack\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(site))
    owners = {(kind, "nice"): ["nice-pack 1.2"] for kind in ("model", "data set")}
    plain = {"name": "nice-pack", "version": "1.2"}
    assert where_from(Registry(owners=owners), {"model": "nice", "data set": "nice"}) == {
        "model": plain,
        "data set": plain,
    }
    url = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(url))
    assert where_from(Registry(owners=owners), {"model": "nice", "data set": "nice"})["model"] == plain, (
        "not in a checkout"
    )

    def git(*words: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(checkout), *names, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (checkout / "nice.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "first")
    state = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert where_from(Registry(owners=owners), {"model": "nice", "data set": "nice"})["model"] == plain | {
        "git": state
    }
    (checkout / "nice.py").write_text("changed")
    assert (
        where_from(Registry(owners=owners), {"model": "nice", "data set": "nice"})["model"]["git"]["dirty"]
        is True
    )
    assert where_from(Registry(), {"model": "nice", "data set": "nice"}) == {"model": {}, "data set": {}}


def test_the_same_again_runs_nothing_and_says_so(out: Path) -> None:
    ran = run(out, "toy")
    assert ran.code == 0
    assert "nothing to run: all 1 cells are done" in ran.err
    assert "done: toy on squares, seed 0" in ran.out


def test_only_touched_cells_run(out: Path) -> None:
    plan = run(out, "toy", "--models", "toy-plain", "--seeds", "2", "--plan").out.splitlines()
    assert len(plan) == 5
    assert plan[0].endswith("toy on squares, seed 0: done")
    assert "toy on squares, seed 1: new: seed is 1, there 0" in plan[2]
    assert plan[2].endswith("s]"), "an estimate, from the one that is done"
    assert "toy-plain+gmm on squares, seed 1: new  [unknown]" in plan[3]
    assert plan[4].startswith("3 of 4 cells to run: about")
    changed = run(out, "toy", "-o", "toy.clip_norm=2", "--plan").out
    assert "new: toy.clip_norm is 2, there 1" in changed
    failed = run(out, "toy-plain", "-o", "toy-plain.trouble=vanish", "--plan", "--json")
    (row,) = rows_of(failed)
    assert row["why"].startswith("failed: its process ended")
    assert row["estimate"] is None


def test_a_damaged_cell_is_planned_to_run_again(out: Path) -> None:
    weights = Store(out).folder(toy_cell("toy").training.key) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "damaged, to be set aside and run again: weights.safetensors" in run(out, "toy", "--plan").out


def test_figures_are_computed_again_when_a_metric_changed(out: Path) -> None:
    folder = Store(out).folder(toy_cell("toy").key)
    result, files = read_record(folder)
    stale = result.provenance | {"metric_versions": {"toy-found": 0}}
    write_record(
        folder, CellResult(**{**vars(result), "metrics": {"found": 0.123}, "provenance": stale}), files
    )
    (row,) = rows_of(run(out, "toy", "--json"))
    assert row["metrics"]["found"] == result.metrics["found"]
    assert read_record(folder)[0].metrics.keys() == result.metrics.keys(), "and kept"


def test_a_cell_somebody_else_is_at_work_on_is_waited_for(out: Path, tmp_path: Path) -> None:
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.prepare()
    key = toy_cell("toy").key
    lock = elsewhere.lock(key)
    assert lock is not None

    def finish_it() -> None:
        time.sleep(0.5)
        training = key.partition("/")[0]
        shutil.copytree(Store(out).folder(training), elsewhere.folder(training))
        os.close(lock)

    thread = threading.Thread(target=finish_it)
    assert (
        f"process {os.getpid()} on {socket.gethostname()} since " in run(elsewhere.out, "toy", "--plan").out
    )
    thread.start()
    ran = run(elsewhere.out, "toy")
    thread.join()
    assert ran.code == 0
    assert not (elsewhere.folder(key).parent / "log.txt").stat().st_mtime > time.time() - 0.4, (
        "not run a second time"
    )


@pytest.mark.slow
def test_a_cell_out_of_time_is_killed(tmp_path: Path) -> None:
    begun = time.monotonic()
    ran = run(tmp_path, "toy", "-o", "toy.trouble=hang", "--timeout", "5", "--json")
    assert time.monotonic() - begun < 60
    (row,) = rows_of(ran)
    assert (ran.code, row["status"], row["error"]) == (1, "timed out", "killed after 5 s")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))  # as if no more room than for the records
    try:
        ran = run(tmp_path, "toy", "-o", "toy.steps=5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == 2
    assert "File too large" in ran.err.splitlines()[-1]
    assert "run the same command again" in ran.err.splitlines()[-1]
    (result,), warnings = Store(tmp_path).results()
    assert (result.status, warnings) == ("interrupted", [])


@pytest.mark.slow
def test_a_file_system_without_locks_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    ran = run(tmp_path, "toy-fit", "--seeds", "2")
    assert ran.code == 0
    assert ran.err.count("has no locks: run no other objbench there until this one ends") == 1


# How a cell may end, in this process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "status", "error"),
    [
        ("nan", "failed", "the loss became nan at step 3: its term 'prior'"),
        ("raise", "failed", "RuntimeError: the toy broke"),
        ("exit", "failed", "SystemExit: 0"),
        ("allocate", "out of memory", "DefaultCPUAllocator"),
        (
            "sulk",
            "failed",
            "'gmm' clusters what-latents, and 'toy-plain' gives none; "
            "choose a clusterer that looks at glimpses (objbench list clusterers)",
        ),
        ("print", "done", ""),
    ],
)
def test_how_a_cell_ends(tmp_path: Path, trouble: str, status: str, error: str) -> None:
    cell = toy_cell("toy-plain", "toy-plain.steps=6", f"toy-plain.trouble={trouble}")
    result = run_here(tmp_path, cell)
    assert result.status == status
    assert error in result.error
    assert "\n" not in result.error
    assert len(result.error) < 320


@pytest.mark.slow
def test_a_model_that_finds_nothing_is_done_with_a_warning(tmp_path: Path) -> None:
    result = run_here(tmp_path, toy_cell("toy-plain", "toy-plain.steps=6", "toy-plain.trouble=nothing"))
    assert result.status == "done"
    assert "all detections are in cluster 0" in result.provenance["warnings"][0]
    assert result.metrics["ap50"] == 0


def test_warnings_are_printed_when_a_run_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all its cells, also those that were done before."""
    cell = toy_cell()
    warned = replace(cell.result("done"), provenance={"warnings": ["the toy stumbled", "and fell"]})
    show_results([warned, cell.result("done")], [], False, {})
    said = capsys.readouterr()
    assert [line.split(" ")[0] for line in said.out.splitlines()] == ["done:", "done:"]
    assert said.err == "    warning: the toy stumbled\n    warning: and fell\n"


@pytest.mark.slow
def test_what_a_detector_warns_of_is_in_the_record(tmp_path: Path) -> None:
    result = run_here(tmp_path, toy_cell("toy-plain", "toy-plain.steps=6", "toy-plain.trouble=stumble"))
    assert result.status == "done"
    assert result.provenance["warnings"][0] == "the toy stumbled"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["toy-fit", "toy-oracle"])
def test_detectors_that_take_no_steps(tmp_path: Path, model: str) -> None:
    result = run_here(tmp_path, toy_cell(model))
    assert result.status == "done", result.error
    assert (result.train_steps, result.metrics["found"]) == (0, 1.0)
    assert result.provenance["oracle"] is (model == "toy-oracle")


def test_show_draws_a_finished_cell(out: Path) -> None:
    key = toy_cell("toy").key
    ran = objbench("show", key[:6], "--out", str(out), "--plugin", TOY)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()
    assert all(Path(line).read_bytes().startswith(b"\x89PNG") for line in ran.out.splitlines())
    failed = toy_cell("toy-plain", "toy-plain.trouble=vanish").key
    assert "is not done but failed" in objbench("show", failed, "--out", str(out), "--plugin", TOY).err
    assert "no cell in" in objbench("show", "zzz", "--out", str(out)).err


# What cannot be asked for


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "tyo"], "no model named 'tyo'; did you mean 'toy'?"),
        (["--models", ","], "contains no name"),
        (["--data", "sqares"], "no data set named 'sqares'; did you mean 'squares'?"),
        (["--protocol", "dem"], "no protocol named 'dem'; did you mean 'demo'?"),
        (["-o", "toy.lrr=1"], "no toy option named 'lrr'; did you mean 'lr'?"),
        (["-o", "toi.lr=1"], "no model, data set or clusterer named 'toi'; did you mean 'toy'?"),
        (["-o", "toy-fit.x=1"], "nothing in this run uses it"),
        (["-o", "gmm.clusters=3"], "nothing in this run uses it"),
        (["-o", "toy.steps=many"], "toy.steps=many is not an integer"),
        (["-o", "toy.steps=0"], "toy.steps=0 is out of range"),
        (["-o", "toy.steps"], "NAME.KEY=VALUE"),
        (["--seeds", "0"], "0 is not in the range"),
        (["--workers", "0"], "0 is not in the range"),
        (["--timeout", "0"], "0.0 is not in the range"),
        (["--device", "cuda"], "no CUDA device"),
        (["--out", TOY], "is a file"),
        (["--out", "/proc/runs"], "cannot write there"),
        (["--plugin", "nowhere.py"], "there is no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(tmp_path: Path, words: list[str], said: str) -> None:
    if words == ["--device", "cuda"] and torch.cuda.is_available():
        return
    options: dict[str, str] = {"--models": "toy", "--data": "squares", "--out": str(tmp_path / "new")}
    options |= {words[0]: words[1]}
    ran = objbench("run", "--plugin", TOY, *(word for option in options.items() for word in option))
    assert ran.code == 2
    assert said in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert not (tmp_path / "new" / "cells").exists() or not any((tmp_path / "new" / "cells").iterdir())


def test_a_plugin_file_that_does_not_parse(tmp_path: Path) -> None:
    broken = tmp_path / "broken_plugin.py"
    broken.write_text("def (:")
    ran = objbench("run", "--models", "toy", "--data", "squares", "--plugin", str(broken))
    assert (ran.code, "SyntaxError" in ran.err, len(ran.err.splitlines())) == (2, True, 1)


def test_a_plugin_that_takes_a_name_that_is_taken(tmp_path: Path) -> None:
    second = tmp_path / "second_plugin.py"
    second.write_text(
        "from objbench import ModelSpec, hookimpl\n"
        "@hookimpl\ndef objbench_models():\n    return [ModelSpec('toy', '', 'second_plugin:X')]\n"
    )
    ran = objbench("run", "--models", "toy", "--data", "squares", "--plugin", TOY, "--plugin", str(second))
    assert (ran.code, "a model named 'toy' exists already" in ran.err) == (2, True)


@pytest.mark.slow
def test_a_refused_plugin_is_one_line_of_the_command_and_none_of_the_process_that_plans(
    tmp_path: Path,
) -> None:
    second = tmp_path / "second_plugin.py"
    second.write_text(
        "import time\n"
        "from objbench import ModelSpec, hookimpl\n"
        "@hookimpl\ndef objbench_models():\n    time.sleep(1)\n    return [ModelSpec('gmair', '', 'second_plugin:X')]\n"
    )
    with Planner((str(second),), 20) as planner, pytest.raises(UsageError, match="'gmair' exists already"):
        planner.count_devices()
    words = ["run", "--models", "gmair", "--data", "multimnist", "--plugin", str(second)]
    command = [sys.executable, "-m", "objbench", *words, "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1), ran.stderr


@pytest.mark.slow
def test_threads_of_a_cell_do_not_spin_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spinning, they hold up one another wherever another process is busy; the user may say otherwise."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    plugin = tmp_path / "told.py"
    plugin.write_text(
        "import os, torch\n"
        "from objbench import ModelSpec, hookimpl\n"
        "from objbench.detector import Detections, Detector\n"
        "class Told(Detector):\n"
        "    def fit(self, scenes): print('threads that wait are', os.environ['OMP_WAIT_POLICY'])\n"
        "    def detect(self, images):\n"
        "        none = torch.zeros(len(images), 1)\n"
        "        return Detections.from_padded(none[..., None].expand(-1, -1, 4), none, none)\n"
        "@hookimpl\n"
        "def objbench_models(): return [ModelSpec('told', 'tells its environment', 'told:Told')]\n"
    )

    def error_line(out: str) -> str:
        ran = run(tmp_path / out, "told", "--plugin", str(plugin))
        assert ran.code == 0, ran.err
        (log,) = (tmp_path / out).glob("cells/*/log.txt")
        return log.read_text()

    assert "threads that wait are PASSIVE" in error_line("first")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "threads that wait are ACTIVE" in error_line("second")


def test_threads_are_divided_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [threads_each(n) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_each(n) for n in (1, 2, 4)] == [3, 3, 2]
