"""The connection between the process of a training and the runner: a pipe for events, and a signal to stop."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from objbench.cells.result import Event
from objbench.errors import Interrupted

DISK_FULL = 4
"""Exit code when the disk is full. An event has reported it, and nothing is recorded."""


class Link:
    """The training's end of the connection."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: the file descriptor to write events to."""
        self._descriptor = descriptor
        self._stop = False
        self._at_once = True

    def report(self, event: Event) -> None:
        """Sends an event. If the pipe is closed, the runner has ended, and the training stops."""
        try:
            os.write(self._descriptor, (json.dumps(event) + "\n").encode())
        except BlockingIOError:
            pass  # the pipe is full because the runner is suspended; this event is lost, but the training continues
        except OSError:
            self.ask_to_stop()

    def ask_to_stop(self, *_: object) -> None:
        """Raises Interrupted, except in a `deferred` block. Also used as a signal handler."""
        self._stop = True
        if self._at_once:
            raise Interrupted

    def stopping(self) -> bool:
        """True if the training was asked to stop."""
        return self._stop

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In this block a request to stop raises no exception; long code in the block must call `stopping`."""
        before, self._at_once = self._at_once, False
        try:
            yield
        finally:
            self._at_once = before


class Reader:
    """The runner's end of the connection."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: the file descriptor to read events from; non-blocking."""
        self._descriptor = descriptor
        self._unread = b""

    def events(self) -> Iterator[Event]:
        """The events received since the last call."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._descriptor, 1 << 16):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        yield from map(json.loads, lines)

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self._descriptor)
