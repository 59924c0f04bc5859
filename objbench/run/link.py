"""The pipe and the signal between a cell's process and whoever runs the matrix."""

from __future__ import annotations

import json
import os
from typing import Any

from objbench.errors import Interrupted

DISK_FULL = 4
"""Exit code when the disk is full. Nothing is recorded then, so the cell is one that was interrupted."""


class Link:
    """The pipe and the signal between a cell and whoever runs the matrix."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.stop = False
        """Whether the cell was asked to stop."""
        self.at_once = True
        """Whether being asked raises Interrupted; the training loop looks for itself, after each step."""

    def tell(self, event: dict[str, Any]) -> None:
        """Sends an event. When nobody reads any more, whoever ran the matrix is gone, and the cell stops."""
        try:
            os.write(self._descriptor, (json.dumps(event) + "\n").encode())
        except BlockingIOError:
            pass  # the reader is asleep; an event may get lost, a training not
        except OSError:
            self.ask_to_stop()

    def ask_to_stop(self, *_: object) -> None:
        """Also a signal handler."""
        self.stop = True
        if self.at_once:
            raise Interrupted
