"""Cells as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from objbench.cells.identity import Cell
from objbench.cells.result import Event
from objbench.run.link import Reader

ENVIRONMENT = {
    # glibc keeps freed memory for the next step instead of giving it back to the system: getting its pages anew,
    # zeroed, took a fifth of a step of GMAIR at the paper's size.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # Threads that wait for one another spin a moment only, then sleep. Spinning, they can hold up the one that all
    # wait for: beside two trainings of higher priority a step of GMAIR (demo) took two of them 4.0 s, asleep at once
    # 0.26 s. Alone, asleep at once takes twice as long (0.13 s for 0.06 s), and this costs nothing.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "30000",
}
"""What a cell's process is given unless the user's environment says otherwise. Other systems ignore it."""


@dataclass(frozen=True)
class Settings:
    """How to run, none of which is part of a key."""

    devices: list[str]
    """The n-th worker has the n-th, over and over: ["cpu"], or ["cuda:0", "cuda:1"]."""
    workers: int
    threads: int
    """CPU threads of each worker."""
    timeout: float
    """Seconds after which a cell is killed; may be infinite."""
    checkpoint_s: float
    plugins: tuple[str, ...]
    points: int | None = None
    """Of a training's curve: see `objbench.run.points`."""
    log: str = ""
    """The kind of log that is written beside a training: see `objbench.run.log`. "" is none."""


class LocalJob:
    """A training with the cells of it that are to be done, in a process of its own on this machine."""

    def __init__(self, folder: Path, cells: list[Cell], lock: int, slot: int, settings: Settings) -> None:
        """folder: the training's. lock: the descriptor that holds its lock. slot: which worker's place it has.

        Raises OSError when no process can be started.
        """
        self.cells, self.slot = cells, slot
        self.started = time.monotonic()
        """When what it does now began: the training, or one of its cells. Each may take the time limit."""
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
                    pass_fds=(write_fd, lock),  # the lock is held until both of us are gone
                    start_new_session=True,  # Ctrl-C reaches us alone, and we ask the cells
                    env=ENVIRONMENT | os.environ | threads | {"PYTHONUNBUFFERED": "1"},
                )
        finally:
            os.close(write_fd)

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def events(self) -> Iterator[Event]:
        """The events that have come. All of them, if `ended` was asked before and said yes."""
        return self._reader.events()

    def stop(self) -> None:
        """Asks it to save a checkpoint and end."""
        self._process.terminate()

    def kill(self) -> None:
        """Kills it and whatever it started."""
        with contextlib.suppress(ProcessLookupError):  # the group is empty
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Gives back the lock. What the process has started ends with it: it would hold the lock, too."""
        self.kill()
        self._reader.close()
        os.close(self._lock_fd)

    def failure(self) -> str:
        """How a process that recorded nothing ended."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed (the system does that when memory runs out); see log.txt"
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how} and left no result; see log.txt"
