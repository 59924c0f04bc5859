"""Around every call of a plugin's code: what it prints, where it goes and how it ends hurts nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from objbench.errors import UsageError, error_line, place_of

KEPT = (signal.SIGINT, signal.SIGTERM)
"""Signals whose handlers are ours: plugins may not keep theirs."""

_watchers: list[Callable[[str, str], None]] = []


class PluginFailed(UsageError):
    """A plugin raised an error, called sys.exit, died or did not answer. One line that names it."""

    def __init__(self, line: str, what: str) -> None:
        """line: all that is said. what: the part of it that says how the plugin's code ended."""
        super().__init__(line)
        self.what = what

    @classmethod
    def when(cls, who: str, part: str, what: str) -> PluginFailed:
        """who: the plugin, as "'blobs'". part: what of it was called, as "its constructor"."""
        return cls(f"{who} failed in {part}: {what}", what)


class Ask(Protocol):
    """How a question to a plugin is asked: in this process or in another."""

    def __call__(self, who: str, question: Callable[..., Any], *arguments: Any) -> Any:
        """What `question(*arguments)` returns, a JSON value. Raises UsageError, PluginFailed if the plugin fails."""


def ask_here(who: str, question: Callable[..., Any], *arguments: Any) -> Any:
    """Asks in this process."""
    return question(*arguments)


@contextlib.contextmanager
def calling(who: str, part: str) -> Iterator[None]:
    """In this block the code of a plugin runs. See `PluginFailed.when` for `who` and `part`.

    What it prints goes to stderr. The working directory and the handlers of SIGINT and SIGTERM are restored after it.
    Whatever it raises becomes PluginFailed, sys.exit as well; a UsageError stays what it is.
    """
    for watcher in _watchers:
        watcher(who, part)
    try:
        with unmoved(), _stdout_is_stderr():
            yield
    except UsageError:
        raise
    except SystemExit as error:
        code = "" if error.code is None else repr(error.code)
        raise PluginFailed.when(who, part, f"it called sys.exit({code}){place_of(error)}") from None
    except Exception as error:
        raise PluginFailed.when(who, part, error_line(error)) from None


@contextlib.contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """In this block what is printed goes to stderr, also by libraries in C and by processes that are started."""
    kept = None
    with contextlib.suppress(OSError):  # one of the two is closed
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


@contextlib.contextmanager
def unmoved() -> Iterator[None]:
    """Restores the working directory and the handlers of SIGINT and SIGTERM after the block."""
    here = None
    with contextlib.suppress(OSError):  # it was removed
        here = os.getcwd()
    in_main_thread = threading.current_thread() is threading.main_thread()  # others may set no handlers
    handlers = {number: signal.getsignal(number) for number in KEPT} if in_main_thread else {}
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if here is not None and os.getcwd() != here:
                os.chdir(here)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextlib.contextmanager
def watched(watcher: Callable[[str, str], None]) -> Iterator[None]:
    """In this block `watcher(who, part)` is called whenever the code of a plugin is about to run."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
