"""The table of many cells: what it shows, that it fits, and that another process can follow a run by its files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from objbench.cells.identity import Cell, Training, write_cell
from objbench.cells.store import Store, write_curve, write_record
from objbench.run.board import NOTICES, WAITING, Line, Notice, notices, summary, table
from objbench.run.progress import Progress
from objbench.run.watched import FRESH_S, SILENT_S, Watched
from running import objbench

HEADINGS = {"ap50": "AP (%, IoU=0.5)", "acc": "ACC (%)", "count_error": "Count error"}


def cell_of(model: str, seed: int = 0, data: str = "multimnist", **more: object) -> Cell:
    identity = {
        "model": model,
        "seed": seed,
        "data": data,
        "model_config": {"steps": 2600},
        "data_config": {},
    }
    return Cell(Training(identity | {"protocol": {"name": "demo"}} | more, {}, {}, {}), {"name": "own"})


def drawn(lines: list[Line], width: int, height: int = 40) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height)
    console.print(table(lines, HEADINGS, console, workers=2))
    return stream.getvalue().splitlines()


def some(count: int) -> list[Line]:
    """Lines of which the first third is done, two are trained, one has failed, and the rest waits."""
    lines = [Line(f"{i}/own", "gmair on multimnist", i, left=300.0) for i in range(count)]
    for line in lines[: count // 3]:
        line.state, line.step, line.left, line.figures = "done", 2600, None, {"ap50": 0.9876, "acc": 0.5}
    for line in lines[count // 3 :][:2]:
        line.state, line.step, line.steps, line.left = "training", 440, 440_000, 60.0
    lines[-1].state = "failed"
    return lines


def test_at_sixty_columns_every_cell_is_on_one_line_with_all_that_matters() -> None:
    lines = some(6)
    shown = drawn(lines, 60)
    assert max(map(len, shown)) <= 60
    assert shown[0].split() == ["Cell", "Seed", "State", "Step", "AP", "Left"]
    assert shown[2].split() == ["gmair", "on", "multimnist", "0", "done", "2600", "98.8"]
    assert shown[4].split() == ["gmair", "on", "multimnist", "2", "training", "440/440000", "60", "s"]
    said = " ".join(line.strip() for line in shown[8:])
    assert said == "6 cells: 2 done, 2 running, 1 waiting, 1 failed, about 5 min left"


def test_long_names_are_folded_not_cut() -> None:
    lines = [Line("0/own", "spair+gmm on fruit2d-sim [recon=16, steps=10000]", 0)]
    words = "".join("".join(line.split()) for line in drawn(lines, 60)[2:-1])
    assert words == "spair+gmmonfruit2d-sim0waiting[recon=16,steps=10000]"
    assert max(map(len, drawn(lines, 20))) <= 20


def test_a_wide_table_has_the_other_figures_too() -> None:
    assert drawn(some(6), 100)[0].split() == ["Cell", "Seed", "State", "Step", "AP", "ACC", "Left"]


def test_what_does_not_fit_is_counted_and_what_runs_is_shown() -> None:
    shown = drawn(some(100), 60, height=24)
    assert len(shown) <= 24
    assert sum("training" in line for line in shown) == 2
    assert sum("failed" in line for line in shown) == 2  # its line, and in the summary
    assert any(line.startswith("... and ") for line in shown)
    assert "100 cells: 33 done, 2 running, 64 waiting, 1 failed" in " ".join(
        line.strip() for line in shown[-2:]
    )


def test_the_time_left_is_that_of_the_longest_or_of_all_by_workers() -> None:
    lines = some(6)
    assert summary(lines, 1).endswith("about 7 min left")  # 60 + 60 + 300: not those of the cell that failed
    assert summary(lines, 9).endswith("about 5 min left")
    lines[4].left = None
    assert "left" not in summary(lines, 1)


def test_a_progress_follows_events_of_all_cells_of_a_training() -> None:
    first = cell_of("spair")
    second = replace(first, clusterer={"name": "gmm", "config": {}, "code": ""})
    progress = Progress([first, second], HEADINGS, seconds={first.key: 100.0}, apart={second.key: " [k=4]"})
    one, other = progress.lines.values()
    assert (one.state, one.left, other.name) == (WAITING, 100.0, "spair+gmm on multimnist [k=4]")
    progress.begin(first)
    progress.update(
        first, {"step": 5, "steps": 20, "steps_per_second": 5.0, "loss": 1.0, "metrics": {"ap50": 0.5}}
    )
    assert (one.state, one.step, one.left, one.figures) == ("training", 5, 3.0, {"ap50": 0.5})
    progress.update(first, {"phase": "scoring", "cell": second.key})
    assert (one.state, other.state) == ("scored", "scoring")
    progress.end(first, first.result("failed", error="it broke"))
    assert one.state == "failed"


# Notices and stores


def stored(out: Path, cell: Cell, status: str, **known: Any) -> Path:
    folder = out / "cells" / cell.key
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    write_record(folder, replace(cell.result(status), **known))
    return folder


def test_a_notice_is_read_while_it_is_fresh_and_removed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    cells = [cell_of("gmair"), cell_of("spair")]
    with Progress(cells, HEADINGS, workers=2, store=tmp_path) as progress:
        assert progress._notice
        while not progress._notice.file.exists():  # the first is written in another thread
            time.sleep(0.01)
        progress.begin(cells[1])
        progress._notice.write(list(progress.lines.values()))
        watched = Watched(Store(tmp_path))
        assert [(line.name, line.state) for line in watched.look()] == [
            ("gmair on multimnist", "waiting"),
            ("spair on multimnist", "starting"),
        ]
        assert watched.workers == 2
        stored(tmp_path, cells[1], "done", metrics={"ap50": 0.5})
        assert watched.look()[1].figures == {"ap50": 0.5}, "the record is newer than the notice"
    assert list((tmp_path / NOTICES).iterdir()) == []


def test_an_old_notice_is_not_believed_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cells").mkdir()
    notice = Notice(tmp_path, 1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 2 * FRESH_S)
    notice.write([Line("a/own", "gmair on multimnist", 0)])
    monkeypatch.undo()
    watched = Watched(Store(tmp_path))
    assert watched.look() == []
    monkeypatch.setattr(time, "time", lambda: now - 2 * FRESH_S + 5)  # a machine whose clock is slow
    notice.write([Line("a/own", "gmair on multimnist", 0)])
    monkeypatch.undo()
    assert len(watched.look()) == 1
    (tmp_path / NOTICES / "half.json").write_text(notice.file.read_text()[:40])
    (tmp_path / NOTICES / "other.json").write_text("{}")
    assert list(notices(tmp_path)) == [notice.file.name]


def test_a_store_without_notices_is_read_by_its_records_and_curves(tmp_path: Path) -> None:
    stored(tmp_path, cell_of("gmair"), "done", metrics={"ap50": 0.9}, train_steps=2600)
    running = stored(tmp_path, cell_of("spair"), "running")
    write_curve(running.parent, [{"step": 3, "metrics": {"ap50": 0.25}}])
    old = stored(tmp_path, cell_of("space"), "running")
    for file in (*old.parent.glob("*.json"), old / "record.json"):
        os.utime(file, (time.time() - 2 * SILENT_S,) * 2)
    (tmp_path / "cells" / ("0" * 16) / "own").mkdir(parents=True)  # a cell that is half copied
    watched = Watched(Store(tmp_path))
    assert {line.name.split()[0]: line.state for line in watched.look()} == {
        "gmair": "done",
        "spair": "running",
        "space": "interrupted",
    }
    assert next(line for line in watched.look() if line.state == "running").figures == {"ap50": 0.25}
    assert len(watched.unreadable) == 1


def test_watch_ends_when_all_is_done_and_says_how(tmp_path: Path) -> None:
    stored(tmp_path, cell_of("gmair"), "done", metrics={"ap50": 0.9}, train_steps=2600)
    ran = objbench("watch", str(tmp_path), "--every", "0.1")
    assert (ran.code, ran.out.splitlines()) == (
        0,
        ["gmair on multimnist, seed 0: done, ap50 0.90", "1 cell: 1 done"],
    )
    stored(tmp_path, cell_of("spair"), "failed", error="it broke")
    ran = objbench("watch", str(tmp_path), "--every", "0.1")
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "2 cells: 1 done, 1 failed")
    assert objbench("watch", str(tmp_path / "none")).code == 2


@pytest.mark.slow
def test_watch_follows_and_needs_no_torch(tmp_path: Path) -> None:
    """It waits for a running cell, in a process that must not import torch."""
    cell = cell_of("gmair")
    folder = stored(tmp_path, cell, "running")
    code = (
        "import sys\n"
        f"sys.argv = ['objbench', 'watch', {str(tmp_path)!r}, '--every', '0.1']\n"
        "from objbench.commands import main\n"
        "try:\n    main()\n"
        "finally:\n    print({'torch', 'pandas', 'matplotlib'} & {*sys.modules} or 'light')\n"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "gmair on multimnist, seed 0: running, 0/2600\n"
        write_record(folder, cell.result("done"))
        assert process.stdout.read().splitlines() == [
            "gmair on multimnist, seed 0: done",
            "1 cell: 1 done",
            "light",
        ]
    assert process.returncode == 0


def test_a_comparison_is_also_an_option_of_report(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--compare", "a", "b"]
    assert objbench("report", *words, "--format", "csv").err.startswith(
        "objbench: --compare prints a paragraph"
    )
    assert objbench("report", *words).err == objbench("compare", "a", "b", "--out", str(tmp_path)).err
