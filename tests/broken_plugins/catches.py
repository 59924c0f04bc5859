"""Hangs while it is imported, and takes being told to give up for an error of its own; four times over."""

import contextlib
import time

for _ in range(4):
    with contextlib.suppress(BaseException):
        time.sleep(3600)
