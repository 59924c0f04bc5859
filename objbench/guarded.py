"""Guards calls of plugins: their prints, errors, and changes of the working directory and of environment variables do
not harm the harness."""

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
"""Signals whose handlers are restored after a plugin was called."""

_watchers: list[Callable[[str, str], None]] = []


class PluginFailed(UsageError):
    """A plugin raised an error, called sys.exit, crashed or did not answer. The text is one line with its name."""

    def __init__(self, line: str, what: str) -> None:
        """line: the whole message. what: its part about how the plugin failed."""
        super().__init__(line)
        self.what = what

    @classmethod
    def when(cls, who: str, part: str, what: str) -> PluginFailed:
        """who: the plugin, such as "'blobs'". part: the part that was called, such as "its constructor"."""
        return cls(f"{who} failed in {part}: {what}", what)


class Ask(Protocol):
    """Calls a function that uses a plugin, in this process or in another one."""

    def __call__(self, who: str, question: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `question(*arguments)`, a JSON value. Raises UsageError, and PluginFailed if the plugin fails."""


def ask_here(who: str, question: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function in this process."""
    return question(*arguments)


@contextlib.contextmanager
def calling(who: str, part: str) -> Iterator[None]:
    """For a block that runs the code of a plugin. See `PluginFailed.when` for `who` and `part`.

    What the plugin prints goes to stderr. The working directory, environment variables, the handlers of SIGINT and
    SIGTERM, and torch's default dtype and device are restored after the block. Every error becomes PluginFailed, also
    sys.exit; a UsageError is not changed.
    """
    for watcher in _watchers:
        watcher(who, part)
    try:
        with unmoved(), _same_defaults(), _stdout_is_stderr():
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
    """In this block all prints go to stderr, also those of C libraries and of child processes."""
    kept = None
    with contextlib.suppress(OSError):  # stdout or stderr is closed
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
def _same_defaults() -> Iterator[None]:
    """Restores the dtype and the device that torch gives new tensors: another plugin may run next in this process."""
    before = _defaults()
    try:
        yield
    finally:
        torch, now = sys.modules.get("torch"), _defaults()
        if torch is not None and now != before:
            dtype, device = before or (torch.float32, torch.device("cpu"))
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(None if device.type == "cpu" else device)


def _defaults() -> tuple[Any, Any] | None:
    """The dtype and the device of new tensors; None when torch is not loaded."""
    torch = sys.modules.get("torch")  # it is not loaded here: a plugin that only registers needs none
    return None if torch is None else (torch.get_default_dtype(), torch.get_default_device())


@contextlib.contextmanager
def unmoved() -> Iterator[None]:
    """Restores the working directory, environment variables, and the handlers of SIGINT and SIGTERM after the block."""
    here, variables = None, dict(os.environ)
    with contextlib.suppress(OSError):  # it was removed
        here = os.getcwd()
    in_main_thread = threading.current_thread() is threading.main_thread()  # only it may set handlers
    handlers = {number: signal.getsignal(number) for number in KEPT} if in_main_thread else {}
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if here is not None and os.getcwd() != here:
                os.chdir(here)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in variables.items() if os.environ.get(name) != value})
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextlib.contextmanager
def watched(watcher: Callable[[str, str], None]) -> Iterator[None]:
    """In this block `watcher(who, part)` is called before each call of a plugin's code."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
