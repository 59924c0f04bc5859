"""Where trainings run: what the runner needs of a backend. On this machine it is `objbench.run.local`; the others are
in ENGINES, and are imported only when they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from objbench.cells.identity import Cell
from objbench.cells.result import Event
from objbench.plugins import Registry


class Engine(NamedTuple):
    """Where a backend is defined."""

    backend: str
    """A class that is called with an address, Settings, a device and Needs. Its module imports the engine."""
    check: str
    """A function that is called with an address before anything else, and raises UsageError. Its module does not."""


ENGINES = {"ray": Engine("objbench.run.ray:RayBackend", "objbench.run.ray_address:check_address")}
"""By the name that `--on` takes."""


@dataclass(frozen=True)
class Settings:
    """How to run trainings; none of this is part of a key."""

    devices: list[str]
    """Such as ["cpu"] or ["cuda:0", "cuda:1"]; workers use them in turn."""
    workers: int
    """Trainings at once; 0: as many as the backend has room for."""
    threads: int
    """CPU threads of each worker."""
    timeout: float
    """Seconds after which a cell is killed; may be infinite."""
    checkpoint_s: float
    plugins: tuple[str, ...]
    points: int | None = None
    """The number of points of a training's curve: see `objbench.run.points`."""
    log: str = ""
    """The kind of log that is written for a training: see `objbench.run.log`. "" means no log."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of a training's process, beside those of this process."""


@dataclass(frozen=True)
class Needs:
    """What each cell needs of a machine of a cluster; None: the default of the backend."""

    cpus: int | None = None
    gpus: float | None = None
    """A part of 1 shares a GPU."""
    memory_gb: float | None = None
    """10^9 bytes."""


class Job(Protocol):
    """A training that runs, with those of its cells that are to be run."""

    cells: list[Cell]
    slot: int
    started: float
    """When what it does now began, by `time.monotonic`: the training, or one of its cells. Each may take the time
    limit. Infinite while it waits for a machine."""
    timed_out: bool

    def ended(self) -> bool:
        """True if it has ended. OSError when its files cannot be written."""

    def events(self) -> Iterator[Event]:
        """The events received so far; if `ended` has returned True before, all events."""

    def stop(self) -> None:
        """Asks it to save a checkpoint and end."""

    def kill(self) -> None:
        """Ends it at once."""

    def close(self) -> None:
        """Releases the lock, and whatever it uses."""

    def failure(self) -> str:
        """How a job without a record ended."""


class Backend(Protocol):
    """Starts trainings."""

    settings: Settings

    def prepare(self, registry: Registry, cells: Iterable[Cell]) -> None:
        """Called once, before these cells run. UsageError when they cannot run."""

    def slots(self) -> int:
        """How many trainings may run at once; this may change."""

    def start(self, folder: Path, cells: list[Cell], lock: int, slot: int) -> Job:
        """Starts a training. folder: of the training. lock: the file descriptor that holds its lock. slot: a number
        below the number of jobs, which no other job has. OSError when it cannot be started."""

    def close(self) -> None:
        """Called when no job is left, and before anything is printed to stdout; it may be called again."""
