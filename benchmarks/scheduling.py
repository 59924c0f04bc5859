"""What it costs the runner to keep many machines busy: 2,000 cells in 100 slots, none of which trains.

A cell sleeps, ships checkpoints as a node does (`objbench.run.shipping`), and ends with a record. The cluster's own
part, starting a process on a node, is not in these figures. The store is in TMPDIR: every file is flushed to that disk.

python benchmarks/scheduling.py [CELLS [SLOTS [SECONDS]]]
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from objbench.cells.files import checksums, write_json
from objbench.cells.identity import OWN, Cell, Training
from objbench.cells.result import CellResult, Event
from objbench.cells.store import Store, write_record
from objbench.plugins import Registry
from objbench.run.backend import Settings
from objbench.run.runner import Runner
from objbench.run.shipping import Parcel, store
from objbench.train.machine import peak_memory_mb

CELLS, SLOTS, SECONDS = 2000, 100, 5.0
CHECKPOINT = bytes(100_000)
CHECKPOINTS = 2


class Sleeping:
    """A `Job` that sleeps, ships checkpoints, and is done."""

    def __init__(self, folder: Path, cells: list[Cell], lock: int, slot: int, seconds: float) -> None:
        self.folder, self.cells, self.slot, self._lock = folder, cells, slot, lock
        self.started = time.monotonic()
        self.timed_out = False
        self.end = self.started + seconds
        self._ships = [self.started + seconds * (n + 1) / (CHECKPOINTS + 1) for n in range(CHECKPOINTS)]

    def ended(self) -> bool:
        """True when it has slept."""
        now = time.monotonic()
        while self._ships and self._ships[0] <= now:
            step = CHECKPOINTS - len(self._ships) + 1
            old = f"checkpoint-{step - 1}.safetensors"
            self._ships.pop(0)
            store(
                self.folder,
                Parcel({f"checkpoint-{step}.safetensors": CHECKPOINT}, {"log.txt": b"a line\n"}, (old,)),
            )
            position = {"step": step, "seconds": 1.0}
            name = f"checkpoint-{step}.safetensors"
            write_json(
                self.folder / "checkpoint.json",
                {"training": self.folder.name, "position": position, "files": checksums(self.folder, [name])},
            )
        if now < self.end:
            return False
        (cell,) = self.cells
        write_record(self.folder / OWN, cell.result("done", metrics={"ap50": 1.0}, train_steps=CHECKPOINTS))
        return True

    def events(self) -> Iterator[Event]:
        """One, as a node sends twice a second."""
        yield {"phase": "sleeping"}

    def stop(self) -> None:
        """Nothing stops it."""

    def kill(self) -> None:
        """Nothing kills it."""

    def failure(self) -> str:
        """It does not fail."""
        return ""

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._lock)


class Sleepers:
    """A `Backend` of sleeping cells; each sleeps about so long."""

    def __init__(self, slots: int, seconds: float) -> None:
        self.settings = Settings(["cpu"], slots, 1, math.inf, 1.0, ())
        self._seconds, self._random = seconds, random.Random(0)
        self._last: dict[int, Sleeping] = {}
        self.delays: list[float] = []
        """Seconds from the end of a cell to the start of the next one in its slot."""

    def prepare(self, registry: Registry, cells: Iterable[Cell]) -> None:
        """Nothing is needed."""

    def slots(self) -> int:
        """As many."""
        return self.settings.workers

    def start(self, folder: Path, cells: list[Cell], lock: int, slot: int) -> Sleeping:
        """Lets a cell sleep."""
        seconds = self._seconds * self._random.uniform(0.5, 1.5)
        job = Sleeping(folder, cells, lock, slot, seconds)
        if before := self._last.get(slot):
            self.delays.append(job.started - before.end)
        self._last[slot] = job
        return job

    def close(self) -> None:
        """Nothing is left."""


class Silent:
    """An `Observer` that says nothing."""

    def say(self, text: str) -> None: ...

    def begin(self, cell: Cell) -> None: ...

    def update(self, cell: Cell, event: Event) -> None: ...

    def end(self, cell: Cell, result: CellResult) -> None: ...


def sleeping_cells(count: int) -> list[Cell]:
    """Cells with identities of usual size, of no plugin."""
    identity: dict[str, Any] = {
        "model": "sleeper",
        "data": "none",
        "protocol": {"name": "demo", "fit_scenes": 1},
        "model_config": {f"option_{i}": i / 7 for i in range(40)},
        "data_config": {f"option_{i}": i for i in range(12)},
        "fingerprint": {"source": "none"},
    }
    one = Cell(Training(identity, identity["model_config"], identity["data_config"], {}), {"name": OWN})
    return [
        replace(one, training=replace(one.training, identity=identity | {"seed": i})) for i in range(count)
    ]


def rows(count: int = CELLS, slots: int = SLOTS, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """One row a figure."""
    import torch

    with tempfile.TemporaryDirectory() as out:
        stored = Store(out)
        stored.prepare()
        cells = sleeping_cells(count)
        backend = Sleepers(slots, seconds)
        before, cpu, start = peak_memory_mb(torch.device("cpu")), time.process_time(), time.monotonic()
        results = Runner(stored, backend, Silent()).run(cells)
        wall, cpu = time.monotonic() - start, time.process_time() - cpu
        assert [result.status for result in results.values()] == ["done"] * count
        files = [path for path in Path(out).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    note = f"{count:,} cells that sleep {seconds:g} s on average, in {slots} slots"
    grown = peak_memory_mb(torch.device("cpu")) - before
    delays = sorted(backend.delays)
    best = count * seconds / slots
    found = [
        ("memory of the runner", grown, "MB", f"more at its peak than before; {note}"),
        ("delay, median", statistics.median(delays), "s", "from the end of a cell to the next in its slot"),
        ("delay, 99 of 100", delays[int(0.99 * (len(delays) - 1))], "s", "below this"),
        (
            "processor time a cell",
            1e3 * cpu / count,
            "ms",
            f"of the runner, with {CHECKPOINTS} checkpoints shipped",
        ),
        ("wall time", wall, "s", f"{best:.0f} s if nothing cost anything"),
        (
            "store, a cell",
            size / count / 1e3,
            "kB",
            f"{len(files) / count:.1f} files; its last checkpoint is in it",
        ),
    ]
    return [
        {"name": f"scheduling: {name}", "value": value, "unit": unit, "note": why}
        for name, value, unit, why in found
    ]


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:]]
    for row in rows(*(int(word) for word in given[:2]), *given[2:]):
        print(f"{row['name']:<36} {row['value']:>10.3f} {row['unit']:<4} {row['note']}")
