"""Runs trainings with their cells, each training in its own process, here or on other machines. A training that fails,
hangs or is killed does not affect the others."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from objbench.cells.files import Damaged
from objbench.cells.identity import Cell, write_cell
from objbench.cells.result import CellResult, Event, Status
from objbench.cells.store import Store, end_early, read_record, write_record
from objbench.errors import UsageError
from objbench.run.backend import Backend, Job

GRACE_S = 30.0
"""Seconds that a cell has to stop; after that it is killed."""


class Observer(Protocol):
    """Is informed about the progress of a run."""

    def say(self, text: str) -> None:
        """Called with one line of text."""

    def begin(self, cell: Cell) -> None:
        """Called when a cell was started."""

    def update(self, cell: Cell, event: Event) -> None:
        """Called with an event of a cell."""

    def end(self, cell: Cell, result: CellResult) -> None:
        """Called when a cell has ended."""


class Runner:
    """The loop over waiting trainings and running processes."""

    def __init__(self, store: Store, backend: Backend, observer: Observer, force: bool = False) -> None:
        """force: rename the folders of existing trainings, and train again."""
        self.store, self.backend, self.observer, self.force = store, backend, observer, force
        self.jobs: list[Job] = []
        self.results: dict[str, CellResult] = {}
        self.stop_requests = 0
        """How often the user asked to stop: after the first request cells save a checkpoint, after the second they are
        killed."""
        self.fatal = ""
        """An error with which no cell can run: a full disk, or a store that can no longer be written."""
        self._disk_full = True
        self._unlocked = False
        self._deadline = 0.0
        self._waited_for: set[str] = set()
        self._renewed: set[str] = set()
        """Trainings that were set aside as `force` says: once each."""
        self._again: list[list[Cell]] = []
        """Cells whose process ended because of another cell of their training."""

    def run(self, cells: list[Cell]) -> dict[str, CellResult]:
        """Runs the cells and returns their results by key. If it was interrupted, `stop_requests` is above 0.

        Waits for trainings that another objbench is running. UsageError when the disk is full.
        """
        jobs: dict[str, list[Cell]] = {}
        for cell in cells:
            jobs.setdefault(cell.training.key, []).append(cell)
        waiting = deque(jobs.values())
        with self._signals():
            try:
                while waiting or self.jobs or self._again:
                    waiting.extend(self._again)
                    self._again.clear()
                    if self.stop_requests or self.fatal:
                        waiting.clear()
                        self._stop_all()
                    else:
                        self._fill_slots(waiting)
                    time.sleep(0.1)
                    for job in list(self.jobs):
                        self._poll(job)
            finally:
                for job in self.jobs:  # only after an error in this loop
                    job.kill()
        if self.fatal:
            todo = "free some space" if self._disk_full else "correct this"
            raise UsageError(f"{self.fatal}; {todo} and run the same command again: it continues from here")
        return self.results

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(*_: object) -> None:
            self.stop_requests += 1
            if self.stop_requests == 1:
                self.observer.say("stopping: cells save a checkpoint (press Ctrl-C again to kill them)")

        previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop_all(self) -> None:
        """Asks the jobs to stop. Kills them after GRACE_S, or at once after a second request to stop."""
        if not self._deadline:
            self._deadline = time.monotonic() + GRACE_S
            for job in self.jobs:
                job.stop()
        if self.stop_requests > 1 or time.monotonic() > self._deadline:
            for job in self.jobs:
                job.kill()

    def _poll(self, job: Job) -> None:
        """Passes on the events of a job; kills it when its time is over; takes its results when it has ended."""
        try:
            ended = job.ended()  # checked first: if it has ended, all its events are there
        except OSError as error:
            job.kill()
            self._give_up(error)
            return
        for event in job.events():
            self.fatal = self.fatal or event.get("disk_full", "")
            if "notice" in event:
                self.observer.say(f"{job.cells[0].name}: {event['notice']}")
            if "cell" in event:
                job.started = time.monotonic()
            self.observer.update(job.cells[0], event)
        if ended:
            self._end(job)
        elif time.monotonic() - job.started > self.backend.settings.timeout:
            job.timed_out = True
            job.kill()

    def _fill_slots(self, waiting: deque[list[Cell]]) -> None:
        """Starts waiting trainings in the idle slots, if no other process is running them."""
        for _ in range(len(waiting)):  # each is tried once
            if len(self.jobs) >= self.backend.slots():
                return
            cells = waiting.popleft()
            training = cells[0].training.key
            try:
                lock = self.store.lock(training)
            except OSError as error:
                self._give_up(error)
                return
            if self.store.lockless and not self._unlocked:
                self._unlocked = True
                self.observer.say(
                    f"warning: the file system of {self.store.out} has no locks: "
                    "run no other objbench there until this one ends"
                )
            if lock is None:
                waiting.append(cells)
                if training not in self._waited_for:
                    self._waited_for.add(training)
                    self.observer.say(f"{cells[0].name}: waiting for {self.store.holder(training)}")
                continue
            cells = self._still_to_do(cells)
            if not cells:
                os.close(lock)
                continue
            try:
                self._start(cells, lock)
            except OSError as error:
                os.close(lock)
                self._give_up(error)
                return

    def _give_up(self, error: OSError) -> None:
        """Starts no more jobs after this error; running jobs are asked to stop."""
        self.fatal = f"{error.strerror}: {error.filename or self.store.out}"
        self._disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

    def _still_to_do(self, cells: list[Cell]) -> list[Cell]:
        """The cells of a locked training that are not done. Folders that are damaged are renamed."""
        left = []
        training = cells[0].training.key
        if self.force and training not in self._renewed and self.store.folder(training).exists():
            others = [key for key in self.store.cell_keys() if key.startswith(f"{training}/")]
            aside = self.store.set_aside(training, "old")
            what = f" with its {len(others)} cells" if len(others) > 1 else ""
            self.observer.say(f"{cells[0].name}: the old training{what} was renamed to {aside}")
        self._renewed.add(training)
        self._set_aside_if_damaged(cells[0], training)
        for cell in cells:
            known = self._set_aside_if_damaged(cell, cell.key)
            if known and known.status == "done":  # another objbench has run it in the meantime
                self.results[cell.key] = known
            else:
                left.append(cell)
        return left

    def _set_aside_if_damaged(self, cell: Cell, key: str) -> CellResult | None:
        """The result of the cell with this key, or None for a training; renames a damaged folder."""
        try:
            if "/" in key:
                return self.store.verify(key)
            self.store.verify_training(key)
        except Damaged as error:
            aside = self.store.set_aside(key)
            self.observer.say(f"{cell.name}: {error}; renamed to {aside.name}, run again")
        return None

    def _start(self, cells: list[Cell], lock: int) -> None:
        for cell in cells:
            folder = self.store.folder(cell.key)
            folder.mkdir(parents=True, exist_ok=True)
            write_cell(folder, cell)
            write_record(folder, cell.result("running"))
        slot = min(set(range(len(self.jobs) + 1)) - {job.slot for job in self.jobs})
        folder = self.store.folder(cells[0].training.key)
        self.jobs.append(self.backend.start(folder, cells, lock, slot))
        self.observer.begin(cells[0])

    def _end(self, job: Job) -> None:
        """Takes the results of a process that has ended, or records why there are none.

        Where it ended in one of its cells, of which the training was done, the cells after that one are run in another
        process: they are not to blame.
        """
        self.jobs.remove(job)
        status, error = self._how_it_ended(job)
        blamed = False
        again = []
        for cell in job.cells:
            folder = self.store.folder(cell.key)
            try:
                result, _ = read_record(folder)
                if result.status == "running":
                    if blamed and status in ("failed", "timed out"):
                        again.append(cell)
                        continue
                    result = end_early(folder, status, error)
                    blamed = (folder.parent / "trained.json").exists()
            except (Damaged, OSError) as trouble:  # the record of a failure may find the disk full
                result = cell.result(status, error=error or str(trouble))
            self.results[cell.key] = replace(result, path=str(folder))
        job.close()
        for cell in job.cells:
            if cell not in again:
                self.observer.end(cell, self.results[cell.key])
        if again:
            self._again.append(again)

    def _how_it_ended(self, job: Job) -> tuple[Status, str]:
        """The status and error of a process that left no record."""
        if job.timed_out:
            return "timed out", f"killed after {self.backend.settings.timeout:g} s"
        if self.stop_requests or self.fatal:
            return "interrupted", ""
        return "failed", job.failure()
