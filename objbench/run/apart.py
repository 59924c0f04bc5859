"""Calls functions that use plugins, each in a separate forked process. A plugin may print, hang, exit or crash there,
and its changes to the process are lost when the process ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from objbench.errors import UsageError, error_line
from objbench.guarded import PluginFailed, watched

POLL_S = 0.2
"""Seconds between two checks of a process that reports nothing."""


class Apart:
    """Calls each function in a separate process; an `objbench.guarded.Ask`."""

    def __init__(self, limit_s: float, caller: int) -> None:
        """limit_s: a process that reports nothing for this many seconds is killed. caller: a file descriptor that
        becomes readable when the calling process has ended."""
        self.limit_s, self.caller = limit_s, caller

    def __call__(self, who: str, question: Callable[..., Any], *arguments: Any) -> Any:
        """See `objbench.guarded.Ask`."""
        reading, writing = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with (
            warnings.catch_warnings()
        ):  # Python warns of forks with threads, but the threads of libraries are idle
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if not process:
            os.close(reading)
            _answer(writing, who, question, arguments)
        os.close(writing)
        os.set_blocking(reading, False)
        try:
            said = self._listen(process, reading, who)
        finally:
            os.close(reading)
        if "usage" in said:
            raise UsageError(said["usage"])
        if "failed" in said:
            raise PluginFailed(*said["failed"])
        return said["answer"]

    def _listen(self, process: int, reading: int, who: str) -> dict[str, Any]:
        """The final message of the process. The process and all processes that it has started have then been killed."""
        part, unread = "its module", b""
        heard = time.monotonic()
        status = None
        try:
            while True:
                ready, _, _ = select.select([reading, self.caller], [], [], POLL_S)
                if self.caller in ready:
                    raise SystemExit
                ended, code = os.waitpid(process, os.WNOHANG)  # checked before the last read from the pipe
                status = code if ended else None
                with contextlib.suppress(BlockingIOError):
                    while data := os.read(reading, 1 << 16):
                        unread += data
                *lines, unread = unread.split(b"\n")
                for line in lines:
                    said: dict[str, Any] = json.loads(line)
                    if "at" not in said:
                        return said
                    who, part = said["at"]
                    heard = time.monotonic()
                if status is not None:
                    raise PluginFailed.when(who, part, how_it_ended(os.waitstatus_to_exitcode(status)))
                if time.monotonic() - heard > self.limit_s:
                    raise PluginFailed.when(who, part, f"no answer within {self.limit_s:g} s; it was killed")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
                os.killpg(process, signal.SIGKILL)
            if status is None:
                with contextlib.suppress(ProcessLookupError):  # it may not have its own group yet
                    os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


def one_thread_apart(limit_s: float) -> Apart:
    """An `Apart` for a command's own process, which from now on uses one thread: threads do not survive a fork."""
    import torch

    torch.set_num_threads(1)
    never, _kept_open = os.pipe()
    return Apart(limit_s, never)


def how_it_ended(code: int) -> str:
    """How a process without a final message ended, by its exit code."""
    if code == -signal.SIGKILL:
        return "its process was killed (the system does that when memory runs out)"
    return (
        f"its process died of {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"
    )


def _answer(writing: int, who: str, question: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Calls the function in the new process, sends the result, and ends the process."""

    def say(**said: Any) -> None:
        left = (json.dumps(said) + "\n").encode()
        while left:
            left = left[os.write(writing, left) :]

    try:
        os.setpgid(0, 0)
        with watched(lambda who, part: say(at=[who, part])):
            answer = question(*arguments)
        say(answer=answer)
    except PluginFailed as error:
        say(failed=[str(error), error.what])
    except UsageError as error:
        say(usage=str(error))
    except BaseException as error:
        say(failed=[f"{who} failed: {error_line(error)}", error_line(error)])
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)
