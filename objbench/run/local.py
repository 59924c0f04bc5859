"""Cells as processes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from objbench.cells.identity import Cell

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
    """How to run, none of which is part of a cell's identity."""

    devices: list[str]
    """The n-th worker has the n-th, over and over: ["cpu"], or ["cuda:0", "cuda:1"]."""
    workers: int
    threads: int
    """CPU threads of each worker."""
    timeout: float
    """Seconds after which a cell is killed; may be infinite."""
    checkpoint_s: float
    plugins: tuple[str, ...]


@dataclass
class Worker:
    """A process at work on a cell."""

    cell: Cell
    slot: int
    process: subprocess.Popen[bytes]
    lock: int
    events: int
    """The end of the pipe that we read."""
    started: float = field(default_factory=time.monotonic)
    unread: bytes = b""
    timed_out: bool = False

    def kill(self) -> None:
        """Kills it and whatever it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def read(self) -> Iterator[dict[str, Any]]:
        """The events that have come."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.events, 1 << 16):
                self.unread += data
        *lines, self.unread = self.unread.split(b"\n")
        yield from map(json.loads, lines)
