"""Runs trainings as processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from objbench.cells.identity import Cell
from objbench.cells.result import Event
from objbench.plugins import Registry
from objbench.run.backend import Settings
from objbench.run.link import Reader

ENVIRONMENT = {
    # glibc keeps freed memory for the next step and does not return it to the system: getting new, zeroed pages took
    # 20 % of a step of GMAIR at the paper's size.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # Waiting threads spin only for a moment, then sleep. Spinning threads can delay the one that all others wait for:
    # beside two trainings of higher priority, a step of GMAIR (demo) with two threads took 4.0 s when they spin and
    # 0.26 s when they sleep at once. On an idle machine, sleeping at once takes twice as long (0.13 s, not 0.06 s), but
    # sleeping after a moment is as fast as spinning.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "30000",
}
"""Environment variables of a training's process; the user's environment overrides them. Other systems ignore them."""


class Local:
    """Runs trainings on this machine; a `Backend`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def prepare(self, registry: Registry, cells: Iterable[Cell]) -> None:
        """Nothing is needed."""

    def slots(self) -> int:
        """The number of workers."""
        return self.settings.workers

    def start(self, folder: Path, cells: list[Cell], lock: int, slot: int) -> LocalJob:
        """Starts a training. Raises OSError when no process can be started."""
        return LocalJob(folder, cells, lock, slot, self.settings)

    def close(self) -> None:
        """Nothing is left."""


class LocalJob:
    """A training with those of its cells that are to be run, in a process on this machine; a `Job`."""

    def __init__(self, folder: Path, cells: list[Cell], lock: int, slot: int, settings: Settings) -> None:
        """folder: of the training. lock: the file descriptor that holds its lock. slot: the number of its worker.

        Raises OSError when no process can be started.
        """
        self.cells, self.slot = cells, slot
        self.started = time.monotonic()
        self.timed_out = False
        self._lock_fd = lock
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
        self._reader = Reader(read_fd)
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "objbench.run.worker", str(folder)]
        command += [cell.clusterer_key for cell in cells]
        command += ["--device", settings.devices[slot % len(settings.devices)]]
        command += ["--threads", str(settings.threads), "--events", str(write_fd)]
        command += ["--checkpoint-every", str(settings.checkpoint_s)]
        command += ["--points", str(settings.points)] if settings.points else []
        command += ["--log", settings.log] if settings.log else []
        command += [word for plugin in settings.plugins for word in ("--plugin", plugin)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(settings.threads))
        try:
            with (folder / "log.txt").open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_fd, lock),  # the lock is held until both processes have ended
                    start_new_session=True,  # Ctrl-C reaches only the runner, which then asks the trainings to stop
                    env=ENVIRONMENT | os.environ | settings.environment | threads | {"PYTHONUNBUFFERED": "1"},
                )
        finally:
            os.close(write_fd)

    @property
    def group(self) -> int:
        """The process group of the process and all processes that it has started."""
        return self._process.pid

    def ended(self) -> bool:
        """True if the process has ended."""
        return self._process.poll() is not None

    def events(self) -> Iterator[Event]:
        """The events received so far; if `ended` has returned True before, all events."""
        return self._reader.events()

    def stop(self) -> None:
        """Asks the process to save a checkpoint and end."""
        self._process.terminate()

    def kill(self) -> None:
        """Kills the process and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError):  # the group is empty
            os.killpg(self.group, signal.SIGKILL)

    def close(self) -> None:
        """Releases the lock. Also kills processes that the training has started: they would keep the lock."""
        self.kill()
        self._reader.close()
        os.close(self._lock_fd)

    def failure(self) -> str:
        """How a process without a record ended."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed (the system does that when memory runs out); see log.txt"
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how} and left no result; see log.txt"
