"""Runs cells, each in a process of its own: one may fail, hang or be killed, and no other notices."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, replace

from objbench.cells.files import Damaged, write_json
from objbench.cells.identity import Cell
from objbench.cells.result import CellResult, Status
from objbench.cells.store import Store, end_early, read_record, write_record
from objbench.errors import UsageError
from objbench.run.link import DISK_FULL
from objbench.run.local import ENVIRONMENT, Settings, Worker
from objbench.run.progress import Progress

GRACE_S = 30.0
"""A cell that was asked to stop and has not by then is killed."""


class Runner:
    """The loop over cells that wait and processes at work."""

    def __init__(self, store: Store, settings: Settings, progress: Progress) -> None:
        self.store, self.settings, self.progress = store, settings, progress
        self.workers: list[Worker] = []
        self.results: dict[str, CellResult] = {}
        self.asked = 0
        """How often we were asked to stop: once lets cells save a checkpoint, twice kills them."""
        self.trouble = ""
        """What no cell can run with: a full disk."""
        self._deadline = 0.0

    def run(self, cells: list[Cell]) -> dict[str, CellResult]:
        """Runs the cells; their results by key. `asked` tells whether it was interrupted.

        A cell that another objbench is at work on is waited for. UsageError when the disk is full.
        """
        waiting = deque(cells)
        with self._signals():
            try:
                while waiting or self.workers:
                    if self.asked or self.trouble:
                        waiting.clear()
                        self._wind_down()
                    else:
                        self._start_some(waiting)
                    time.sleep(0.1)
                    for worker in list(self.workers):
                        self._look_after(worker)
            finally:
                for worker in self.workers:  # only if this loop itself failed
                    worker.kill()
        if self.trouble:
            raise UsageError(
                f"{self.trouble}; mend that and run the same command again: it goes on from here"
            )
        return self.results

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(*_: object) -> None:
            self.asked += 1
            if self.asked == 1:
                self.progress.say("stopping: cells save a checkpoint (again to kill them)")

        previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _wind_down(self) -> None:
        """Asks the workers to stop; kills those that do not, or at once when we were asked twice."""
        if not self._deadline:
            self._deadline = time.monotonic() + GRACE_S
            for worker in self.workers:
                worker.process.terminate()
        if self.asked > 1 or time.monotonic() > self._deadline:
            for worker in self.workers:
                worker.kill()

    def _look_after(self, worker: Worker) -> None:
        """Passes on what a worker tells; kills it when its time is over; takes its result when it is gone."""
        gone = worker.process.poll() is not None  # looked at first: then all it told is in the pipe
        for event in worker.read():
            self.trouble = self.trouble or event.get("disk_full", "")
            self.progress.update(worker.cell, event)
        if gone:
            self._end(worker)
        elif time.monotonic() - worker.started > self.settings.timeout:
            worker.timed_out = True
            worker.kill()

    def _start_some(self, waiting: deque[Cell]) -> None:
        """Fills the idle workers with cells that nobody else is at work on."""
        for _ in range(len(waiting)):  # a look at each
            if len(self.workers) >= self.settings.workers:
                return
            cell = waiting.popleft()
            lock = self.store.lock(cell.key)
            if lock is None:
                waiting.append(cell)
                continue
            try:
                known = self.store.verified(cell.key)
            except Damaged as error:
                aside = self.store.set_aside(cell.key)
                self.progress.say(f"{cell.name}: {error}; set aside as {aside.name}, run again")
                known = None
            if known and known.status == "done":  # by another objbench, meanwhile
                self.results[cell.key] = known
                os.close(lock)
                continue
            try:
                self._start(cell, lock)
            except OSError as error:
                self.trouble = f"{error.strerror}: {error.filename or self.store.out}"
                return

    def _start(self, cell: Cell, lock: int) -> None:
        folder, settings = self.store.folder(cell.key), self.settings
        folder.mkdir(exist_ok=True)
        write_json(folder / "cell.json", asdict(cell))
        write_record(folder, cell.result("running"))
        slot = min(set(range(settings.workers)) - {w.slot for w in self.workers})
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "objbench.run.worker", str(folder)]
        command += ["--device", settings.devices[slot % len(settings.devices)]]
        command += ["--threads", str(settings.threads), "--events", str(write_end)]
        command += ["--checkpoint-every", str(settings.checkpoint_s)]
        command += [word for plugin in settings.plugins for word in ("--plugin", plugin)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(settings.threads))
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write_end, lock),  # the lock is held until both of us are gone
                start_new_session=True,  # Ctrl-C reaches us alone, and we ask the cells
                env=ENVIRONMENT | os.environ | threads | {"PYTHONUNBUFFERED": "1"},
            )
        os.close(write_end)
        self.workers.append(Worker(cell, slot, process, lock, read_end))
        self.progress.begin(cell)

    def _end(self, worker: Worker) -> None:
        """Takes the result of a process that is gone, or records why there is none."""
        self.workers.remove(worker)
        os.close(worker.events)
        cell, folder = worker.cell, self.store.folder(worker.cell.key)
        status, error = self._how_it_ended(worker)
        try:
            result, _ = read_record(folder)
            if result.status == "running":
                result = end_early(folder, status, error)
        except (Damaged, OSError) as trouble:  # the record of a failure may find the disk full
            result = cell.result(status, error=error or str(trouble))
        os.close(worker.lock)
        self.results[cell.key] = result = replace(result, path=str(folder))
        self.progress.end(cell, result)

    def _how_it_ended(self, worker: Worker) -> tuple[Status, str]:
        """For a process that left no word of its own."""
        code = worker.process.wait()
        if worker.timed_out:
            return "timed out", f"killed after {self.settings.timeout:g} s"
        if self.asked or self.trouble or code == DISK_FULL:
            return "interrupted", ""
        if code == -signal.SIGKILL:
            return "out of memory", "killed by the system, as it does when memory runs out"
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return "failed", f"its process {how} and left no result; see log.txt"
