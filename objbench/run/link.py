"""The pipe and the signal between a cell's process and whoever runs the matrix: both ends."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from objbench.cells.result import Event
from objbench.errors import Interrupted

DISK_FULL = 4
"""Exit code when the disk is full, which an event has reported; nothing is recorded then."""


class Link:
    """The end that a cell's process has."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: that of the pipe, to write events to."""
        self._descriptor = descriptor
        self._stop = False
        self._at_once = True

    def report(self, event: Event) -> None:
        """Sends an event. When nobody reads any more, whoever ran the matrix is gone, and the cell stops."""
        try:
            os.write(self._descriptor, (json.dumps(event) + "\n").encode())
        except BlockingIOError:
            pass  # the reader is asleep; an event may get lost, a training not
        except OSError:
            self.ask_to_stop()

    def ask_to_stop(self, *_: object) -> None:
        """Also a signal handler. Raises Interrupted, but in a `deferred` block."""
        self._stop = True
        if self._at_once:
            raise Interrupted

    def stopping(self) -> bool:
        """Whether the cell was asked to stop."""
        return self._stop

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In this block a request to stop raises nothing; who is inside asks `stopping`, or is soon done."""
        before, self._at_once = self._at_once, False
        try:
            yield
        finally:
            self._at_once = before


class Reader:
    """The end that whoever runs the matrix has."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: that of the pipe, to read events from; not blocking."""
        self._descriptor = descriptor
        self._unread = b""

    def events(self) -> Iterator[Event]:
        """The events that have come since the last call."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._descriptor, 1 << 16):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        yield from map(json.loads, lines)

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self._descriptor)
