"""Runs a training on this machine for a runner on another one, in a temporary folder: the two share no disk.

What happens in the folder is shipped with every answer, so when this machine is lost, the training can go on elsewhere
from the last checkpoint that was shipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from objbench.cells.identity import Cell, write_cell
from objbench.cells.result import Event
from objbench.run.backend import Settings
from objbench.run.local import LocalJob
from objbench.run.luggage import Names, PluginFile, unarchive, with_paths
from objbench.run.shipping import Changes, Parcel, unpack

WAIT_S = 0.5
"""Seconds after which a call to `poll` returns at the latest."""
GUARD = """exec 3<&0
{ read -r ended <&3; [ "$ended" ] || kill -s KILL -- "-$1"; rm -rf -- "$2"; } >/dev/null 2>&1 &"""
"""A shell script: when its stdin is closed, kills a process group and removes a folder; at a line it only removes."""


@dataclass(frozen=True)
class Order:
    """A training that is to be run."""

    cells: list[Cell]
    settings: Settings
    files: dict[str, bytes]
    """Those it goes on from, of itself and of trainings whose weights it starts from: their paths in `cells`."""
    plugins: list[PluginFile]
    paths: dict[str, Any]
    """Path on the runner's machine -> what `fetch` makes its archive of."""


@dataclass(frozen=True)
class Report:
    """What happened since the last one."""

    events: list[Event]
    parcel: Parcel
    ended: bool
    failure: str = ""
    """How a process that has ended would have failed, if it left no record."""


class Host:
    """One training on this machine. Only one method may run at a time."""

    def begin(self, order: Order, node: str, fetch: Callable[[Any], bytes]) -> None:
        """Starts the training. node: the name of this machine. fetch: gets an archive of data that is not here.

        Raises OSError.
        """
        self.place = Path(tempfile.mkdtemp(prefix="objbench-"))
        try:
            self._begin(order, node, fetch)
        except BaseException:
            shutil.rmtree(self.place, ignore_errors=True)
            raise

    def _begin(self, order: Order, node: str, fetch: Callable[[Any], bytes]) -> None:
        folder = self.place / "cells" / order.cells[0].training.key
        unpack(folder.parent, order.files)
        places = {}
        for number, (path, archive) in enumerate(order.paths.items()):
            if not os.path.exists(path):
                places[path] = str(unarchive(fetch(archive), self.place / "data" / str(number)))
        training = with_paths(order.cells[0].training, places)
        for cell in order.cells:
            (folder / cell.clusterer_key).mkdir(parents=True, exist_ok=True)
            write_cell(folder / cell.clusterer_key, replace(cell, training=training))
        (folder / "log.txt").touch()
        self._watched = Changes(folder)
        settings = replace(
            order.settings,
            plugins=written(order.plugins, self.place / "plugins"),
            environment=order.settings.environment | {"OBJBENCH_NODE": node},
        )
        self._job = LocalJob(folder, order.cells, os.open(os.devnull, os.O_RDONLY), 0, settings)
        guard = ["/bin/sh", "-c", GUARD, "objbench", str(self._job.group), str(self.place)]
        with subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True) as started:
            assert started.stdin is not None
            self._guard = os.dup(started.stdin.fileno())  # the guard stays when this process dies

    def poll(self) -> Report:
        """What happened since the last call; waits for up to WAIT_S until the training ends."""
        until = time.monotonic() + WAIT_S
        while not (ended := self._job.ended()) and time.monotonic() < until:
            time.sleep(0.02)
        report = Report(list(self._job.events()), self._watched.changes(), ended)
        if not ended:
            return report
        report = replace(report, failure=self._job.failure())
        self._job.close()
        os.write(self._guard, b"ended\n")
        os.close(self._guard)
        return report

    def stop(self) -> None:
        """Asks the training to save a checkpoint and end."""
        self._job.stop()


def written(plugins: Sequence[PluginFile], folder: Path) -> tuple[str, ...]:
    """Writes the files of plugins, those of each into a folder of its own; the paths for `--plugin`."""
    for number, plugin in enumerate(plugins):
        unpack(folder / str(number), plugin.files)
    return tuple(str(folder / str(number) / plugin.name) for number, plugin in enumerate(plugins))


def survey(
    plugins: Sequence[PluginFile], names: Names, paths: Sequence[str], environment: dict[str, str]
) -> dict[str, Any]:
    """{"facts": what this machine has of what must be the same on all, "missing": the paths that it lacks}; or
    {"error": a line}.

    In a process like that of a training: with the same Python, and the same plugins.
    """
    with tempfile.TemporaryDirectory(prefix="objbench-") as place:
        asked = {"plugins": written(plugins, Path(place)), "names": names}
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "objbench.run.survey"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
    if ran.returncode:
        return {"error": (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]}
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer | {"missing": [path for path in paths if not os.path.exists(path)]}
