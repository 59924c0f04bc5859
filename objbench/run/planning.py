"""Calls plugins before a run begins, in a separate process (`objbench.run.planner`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from objbench.cells.files import Damaged
from objbench.cells.identity import Cell, Training
from objbench.cells.result import CellResult
from objbench.errors import UsageError
from objbench.run.apart import how_it_ended

GRACE_S = 5.0
"""Seconds that the process may take to end."""


class Planner:
    """Calls plugins in a separate process, which starts with the first request or with `start`. A context manager."""

    def __init__(self, plugins: tuple[str, ...], limit_s: float) -> None:
        """plugins: plugin files. limit_s: a plugin that does not answer for this many seconds fails."""
        self.plugins, self.limit_s = plugins, limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Planner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # the process then ends, also if a plugin is running
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._answers.close()

    def start(self) -> None:
        """Starts the process, which loads the plugins while this process continues."""
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", "objbench.run.planner", "--answers", str(writing)]
        command += ["--limit", str(self.limit_s)]
        command += [word for plugin in self.plugins for word in ("--plugin", plugin)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(writing,),
                start_new_session=True,  # Ctrl-C reaches only this process
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads do not survive a fork
            )
        finally:
            os.close(writing)
        self._answers = os.fdopen(reading, "rb")

    def matrix(
        self,
        models: Sequence[str],
        data: Sequence[str],
        seeds: Sequence[int],
        protocol: str,
        overrides: Mapping[str, Mapping[str, str]],
        out: str,
    ) -> tuple[list[Cell], list[CellResult]]:
        """The cells of models x data x seeds, and a failed result for each cell whose plugins fail.

        out: the store where `start_from` looks. Raises UsageError for errors of the user and in the scenes of a data
        set.
        """
        planned = self._ask(
            "plan_matrix",
            models=models,
            data=data,
            seeds=seeds,
            protocol_name=protocol,
            overrides=overrides,
            out=out,
        )
        return _cells(planned), [CellResult(**failure) for failure in planned["failures"]]

    def evaluations(
        self,
        folders: Sequence[Path],
        data: str,
        protocol: str,
        seed: int,
        overrides: Mapping[str, Mapping[str, str]],
    ) -> list[Cell]:
        """The cells of finished cells on other scenes; arguments as `objbench.cells.evaluation.evaluation` has them.

        Raises UsageError for errors of the user, of a plugin, and in the scenes of a data set.
        """
        planned = self._ask(
            "plan_evaluations",
            folders=[str(folder) for folder in folders],
            data=data,
            protocol_name=protocol,
            seed=seed,
            overrides=overrides,
        )
        return _cells(planned)

    def count_devices(self) -> int:
        """The number of CUDA devices that torch finds."""
        return int(self._ask("count_devices"))

    def rescore(self, result: CellResult, anew: bool = False) -> tuple[CellResult, list[str]]:
        """The result of a finished cell with the installed metrics, and a line for each metric that failed.

        The result does not change if its metrics are up to date, unless `anew`. Raises Damaged.
        """
        said = self._ask("rescore_cell", result=asdict(result), anew=anew)
        return CellResult(**said["result"]), said["complaints"]

    def score(self, result: CellResult) -> tuple[dict[str, dict[str, float]], list[str]]:
        """Metric -> its values for a finished cell, and a line for each metric that failed. Raises Damaged."""
        said = self._ask("score_cell", result=asdict(result))
        return said["scored"], said["complaints"]

    def draw(self, result: CellResult, metric: str, first: int, end: int) -> dict[str, Any]:
        """The values of a finished cell by a metric, for the draws first..end-1 of its test scenes.

        As `objbench.score.draws.draw_cell` returns them. Raises UsageError if the metric fails.
        """
        drawn: dict[str, Any] = self._ask(
            "draw_scenes", result=asdict(result), metric=metric, first=first, end=end
        )
        return drawn

    def _ask(self, request: str, **arguments: Any) -> Any:
        if self._process is None:
            self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended; reading the answer will show this
            self._process.stdin.write(
                (json.dumps({"request": request, "arguments": arguments}) + "\n").encode()
            )
            self._process.stdin.flush()
        line = self._answers.readline()
        if not line:
            raise UsageError(f"the process that calls plugins failed: {how_it_ended(self._process.wait())}")
        said = json.loads(line)
        if "usage" in said:
            raise UsageError(said["usage"])
        if "damaged" in said:
            raise Damaged(said["damaged"])
        return said["answer"]


def _cells(planned: Mapping[str, Any]) -> list[Cell]:
    return [Cell(Training(**c["training"]), c["clusterer"], c["about"]) for c in planned["cells"]]
