"""Nothing of a plugin runs in the parent without a limit: it may print, quit, hang, crash or move, and is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from objbench.cells.store import Store
from objbench.run.planning import Planner
from running import TOY, Ran

pytestmark = [  # almost all of it runs objbench in other processes, which it finds by their command lines
    pytest.mark.slow,
    pytest.mark.usefixtures("real_processes"),
]

GUESTS = str((Path(__file__).parents[1] / "guests.py").resolve())
ENDS = {
    "quits": "it called sys.exit(3) (guests.py, line ",
    "exits": "its process ended with 4",
    "hangs": "no answer within 3 s; it was killed",
    "raises": "OSError: the digits are gone (guests.py, line ",
    "crashes": "its process died of SIGSEGV",
}


def command(*words: str, cwd: Path | None = None, **environment: str) -> Ran:
    """Runs objbench in a process of its own, so that all that is written is seen."""
    ran = subprocess.run(
        [sys.executable, "-m", "objbench", *words], capture_output=True, text=True, cwd=cwd, timeout=120,
        env=os.environ | environment,
    )  # fmt: skip
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def planned(models: str, data: str, *words: str, **more: Any) -> tuple[Ran, list[dict[str, Any]]]:
    """What a plan of these says, with its rows."""
    ran = command("run", "--plugin", TOY, "--plugin", GUESTS, "--models", models, "--data", data, "--plan", "--json",
                  "--plan-timeout", "3", *words, **more)  # fmt: skip
    return ran, json.loads(ran.out)


@pytest.fixture(scope="module")
def everything() -> list[dict[str, Any]]:
    """A plan of every model and data set that misbehaves; what prints is among them."""
    names = [f"{where}-{how}" for where in ("built", "asked", "drawn") for how in (*ENDS, "prints", "moves")]
    ran, rows = planned(",".join(["toy-fit", *ENDS, "prints", "moves"]), "squares", "--out", "/nowhere")
    others, more = planned("toy-fit", ",".join(names), "--out", "/nowhere")
    assert (ran.code, others.code) == (1, 1)
    assert "not JSON" in ran.err
    assert "Traceback" not in ran.err + others.err
    return rows + more


@pytest.mark.parametrize("how", ENDS)
def test_a_model_that_breaks_is_a_failed_row_and_the_others_are_planned(
    everything: list[dict[str, Any]], how: str
) -> None:
    if (
        how == "raises"
    ):  # what an ordinary error in building without memory means is left for the cell to meet
        return
    (row,) = [row for row in everything if row["model"] == how]
    assert (row["cell"], row["status"], row["path"]) == ("", "failed", "")
    assert row["error"].startswith(f"'{how}' failed in its constructor: {ENDS[how]}")


@pytest.mark.parametrize("where", ["built", "asked", "drawn"])
@pytest.mark.parametrize("how", ENDS)
def test_a_data_set_that_breaks_is_a_failed_row(
    everything: list[dict[str, Any]], how: str, where: str
) -> None:
    (row,) = [row for row in everything if row["data"] == f"{where}-{how}"]
    part = {"built": "its constructor", "asked": "its fingerprint", "drawn": "scenes"}[where]
    assert f"{where}-{how}" in row["error"]
    assert part in row["error"]
    assert ENDS[how] in row["error"]


def test_what_prints_or_moves_is_planned_as_everything_else(everything: list[dict[str, Any]]) -> None:
    plain = {row["model"]: row["status"] for row in everything if row["data"] == "squares"}
    assert (plain["toy-fit"], plain["prints"], plain["moves"]) == ("new", "new", "new")
    good = [row for row in everything if row["data"].endswith(("prints", "moves"))]
    assert len(good) == 6
    assert {row["status"] for row in good} == {"new"}


def test_the_others_run_and_the_store_stays_where_it_is(tmp_path: Path) -> None:
    ran = command("run", "--plugin", TOY, "--plugin", GUESTS, "--models", "moves,quits,toy-fit", "--data", "squares",
                  "--out", "here", "--json", cwd=tmp_path)  # fmt: skip
    assert ran.code == 1
    rows = {row["model"]: row["status"] for row in json.loads(ran.out)}
    assert rows == {"moves": "done", "toy-fit": "done", "quits": "failed"}
    assert len(Store(tmp_path / "here").cell_keys()) == 2


def test_where_no_plugin_speaks_nothing_is_written(tmp_path: Path) -> None:
    ran = command("run", "--plugin", TOY, "--plugin", GUESTS, "--models", "toy-fit", "--data", "asked-raises",
                  "--out", str(tmp_path / "out"))  # fmt: skip
    assert ran.code == 1
    assert (
        "failed: toy-fit on asked-raises, seed 0  'asked-raises' failed in its fingerprint: OSError"
        in ran.out
    )
    assert not (tmp_path / "out").exists()


def test_a_shorter_limit_of_cells_is_one_of_plans() -> None:
    began = time.monotonic()
    ran, (row,) = planned("hangs", "squares", "--plan-timeout", "500", "--timeout", "2")
    assert time.monotonic() - began < 60
    assert "no answer within 2 s" in row["error"]
    assert ran.code == 1


def test_a_helper_process_of_a_plugin_ends_with_its_question() -> None:
    began = time.monotonic()
    _, (row,) = planned("forks", "squares")
    assert row["status"] == "new"
    assert time.monotonic() - began < 60
    assert not _alive(GUESTS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_while_a_plugin_hangs_leaves_no_process(number: int) -> None:
    words = ["run", "--plugin", TOY, "--plugin", GUESTS, "--models", "hangs", "--data", "squares", "--plan"]
    process = subprocess.Popen([sys.executable, "-m", "objbench", *words], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(_alive(GUESTS)) < 3 and time.monotonic() < deadline:  # itself, the planner and its question
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=30)
    while _alive(GUESTS) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(GUESTS)
    if number == signal.SIGINT:
        assert process.returncode == 130


def _alive(word: str) -> list[int]:
    """The processes whose command line holds the word, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in words and b"pytest" not in words and b"guarded" not in words:
            found.append(int(folder.name))
    return found


# Metrics that are computed again


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished cell, scored by a metric that behaves."""
    out = tmp_path_factory.mktemp("finished") / "out"
    ran = command("run", "--plugin", TOY, "--plugin", GUESTS, "--models", "toy-fit", "--data", "squares",
                  "--out", str(out), OBJBENCH_TEST_MOOD=str(out.with_name("mood")))  # fmt: skip
    assert ran.code == 0, ran.err
    return out


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with a copy of that store, and the environment in which its `mood` file makes the metric misbehave."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path, {"OBJBENCH_TEST_MOOD": str(tmp_path / "mood")}


def _mood(out: Path) -> float | None:
    (result,), _ = Store(out).results()
    return result.metrics.get("mood")


def test_rescore_of_correct_figures_changes_none(done: tuple[Path, dict[str, str]]) -> None:
    folder, environment = done
    ran = command("rescore", str(folder / "out"), "--plugin", TOY, "--plugin", GUESTS, **environment)
    assert (ran.code, _mood(folder / "out")) == (0, 1.0)
    assert "no figure changed" in ran.out


@pytest.mark.parametrize("how", ENDS)
def test_rescore_says_which_metric_failed_and_why(done: tuple[Path, dict[str, str]], how: str) -> None:
    folder, environment = done
    out = folder / "out"
    words = ["rescore", str(out), "--plugin", TOY, "--plugin", GUESTS, "--plan-timeout", "3"]
    assert _mood(out) == 1.0
    (folder / "mood").write_text(how)
    ran = command(*words, **environment)
    assert ran.code == 1
    assert f"metric 'moody' failed: {ENDS[how]}" in ran.err
    assert "mood: no longer has a value" in ran.out
    assert _mood(out) is None
    (result,), _ = Store(out).results()
    assert "ap50" in result.metrics, "the others are computed"
    (folder / "mood").unlink()
    again = command(*words, **environment)
    assert (again.code, _mood(out)) == (0, 1.0)
    assert "mood: 1.000000, new" in again.out


@pytest.mark.parametrize("what", ["run", "report"])
def test_a_metric_that_hangs_holds_up_neither_run_nor_report(
    done: tuple[Path, dict[str, str]], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, environment = done
    (folder / "mood").write_text("quits" if what == "report" else "hangs")
    words = ["--plugin", TOY, "--plugin", GUESTS, "--out", str(folder / "out")]
    if what == "run":
        words += ["--models", "toy-fit", "--data", "squares", "--plan-timeout", "3"]
    ran = command(what, *words, MOODY="2", **environment)
    assert ran.code == 0
    assert "metric 'moody' failed: " + ENDS["quits" if what == "report" else "hangs"] in ran.err


@pytest.mark.parametrize("how", ["hangs", "exits"])
def test_a_metric_that_misbehaves_is_named_by_score_and_the_others_are_printed(
    how: str, tmp_path: Path
) -> None:
    (tmp_path / "mood").write_text(how)
    images = {"images": [{"id": 1, "width": 64, "height": 64}], "categories": [{"id": 1, "name": "one"}]}
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8]}
    (tmp_path / "truth.json").write_text(
        json.dumps(images | {"annotations": [box | {"id": 1, "iscrowd": 0}]})
    )
    (tmp_path / "found.json").write_text(json.dumps([box | {"score": 0.9}]))
    words = ["score", "--truth", str(tmp_path / "truth.json"), "--detections", str(tmp_path / "found.json")]
    words += ["--plugin", GUESTS, "--plan-timeout", "3", "--json"]
    ran = command(*words, OBJBENCH_TEST_MOOD=str(tmp_path / "mood"))
    assert ran.code == 1
    assert f"metric 'moody' failed: {ENDS[how]}" in ran.err
    assert json.loads(ran.out)["ap50"] == 1
    assert "mood" not in json.loads(ran.out)


def test_two_that_rescore_at_once_both_end(done: tuple[Path, dict[str, str]]) -> None:
    folder, environment = done
    words = [
        sys.executable,
        "-m",
        "objbench",
        "rescore",
        str(folder / "out"),
        "--plugin",
        TOY,
        "--plugin",
        GUESTS,
    ]
    several = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120) for process in several]
    assert [process.returncode for process in several] == [0, 0, 0], said
    assert _mood(folder / "out") == 1.0


def test_rescore_of_what_is_not_there(tmp_path: Path) -> None:
    ran = command("rescore", str(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("objbench: no cells in ")


# Commands that ask plugins in their own process


@pytest.mark.parametrize(
    "words", [["show", "--to", "sheet.png"], ["check", "--json"], ["export", "--to", "to"]], ids=" ".join
)
@pytest.mark.parametrize("where", ["built", "drawn"])
def test_data_commands_survive_their_plugin(words: list[str], where: str, tmp_path: Path) -> None:
    def data(how: str, cwd: Path = tmp_path) -> Ran:
        few = ["--n", "4"]
        return command("data", words[0], f"{where}-{how}", *words[1:], *few, "--plugin", TOY, "--plugin", GUESTS,
                       cwd=cwd)  # fmt: skip

    ran = data("quits")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ENDS["quits"] in ran.err
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    printed = data("prints", tmp_path / "a")
    assert "not JSON either" in printed.err
    assert "not JSON" not in printed.out
    assert data("moves", tmp_path / "b").code == printed.code
    if words[0] != "check":
        assert (tmp_path / "a" / words[-1]).exists()
        assert (tmp_path / "b" / words[-1]).exists()


def test_a_planner_whose_command_was_killed_ends_without_a_word(real_processes: None) -> None:
    """Nobody reads its answer; a traceback would be printed on the terminal of the user who killed the command."""
    answers, theirs = os.pipe()
    planner = subprocess.Popen(
        [sys.executable, "-P", "-m", "objbench.run.planner", "--answers", str(theirs), "--limit", "5"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(theirs,),
    )
    os.close(theirs)
    os.close(answers)
    request = json.dumps({"request": "count_devices", "arguments": {}})
    assert planner.stdin is not None
    assert planner.stderr is not None
    planner.stdin.write(request.encode() + b"\n")  # and is not closed: then it would not answer at all
    planner.stdin.flush()
    assert planner.stderr.read() == b""
    assert planner.wait(60) == 0
    planner.stdin.close()


def test_the_planner_names_what_ended_it() -> None:
    with Planner((), 5) as planner:
        planner.start()
        assert planner.count_devices() >= 0
        assert planner._process is not None
        os.killpg(planner._process.pid, signal.SIGKILL)
        with pytest.raises(Exception, match="the process that calls plugins failed: its process was killed"):
            planner.count_devices()
