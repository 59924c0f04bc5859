"""Checks of plugins, and their findings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from objbench.errors import error_line

GUIDE = "docs/plugins.md"


class Wrong(Exception):
    """The plugin breaks its contract. came: what it did. expected: replaces the check's own `expects`."""

    def __init__(self, came: str, expected: str = "") -> None:
        super().__init__(came)
        self.came, self.expected = came, expected


class DoesNotApply(Exception):
    """The check does not apply to this plugin; the text says why."""


@dataclass(frozen=True)
class Check:
    """A check of one requirement of the contract."""

    name: str
    expects: str
    """The requirement, as a sentence."""
    section: str
    """The anchor of the heading in docs/plugins.md that explains it."""
    look: Callable[[Any], str]
    """Takes the subject; returns in a few words what it saw. Raises Wrong, or any error of the plugin."""


class Subject(Protocol):
    """One registered model, data set, metric or clusterer under examination."""

    kind: str
    name: str

    @property
    def checks(self) -> list[Check]:
        """Its checks, in order."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    kind: str
    plugin: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    expected: str
    came: str
    read: str

    def __str__(self) -> str:
        if self.outcome != "failed":
            return f"{self.outcome}  {self.check}: {self.came}"
        return (
            f"FAILED  {self.check}\n    expected: {self.expected}\n    got:      {self.came}\n"
            f"    see:      {self.read}"
        )


def examine(subject: Subject) -> Iterator[Finding]:
    """Runs every check of a subject, in order."""
    for check in subject.checks:
        yield run_check(subject, check)


def run_check(subject: Subject, check: Check) -> Finding:
    """Runs one check. Any error of the plugin is a failure with the place of the error; its prints go to stderr."""
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    expected = check.expects
    try:
        with contextlib.redirect_stdout(sys.stderr):
            came = check.look(subject)
    except DoesNotApply as reason:
        outcome, came = "skipped", str(reason)
    except Wrong as wrong:
        outcome, came, expected = "failed", wrong.came, wrong.expected or expected
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, when a plugin calls sys.exit
        outcome, came = "failed", error_line(error)
    read = f"{GUIDE}#{check.section}"
    return Finding(subject.kind, subject.name, check.name, outcome, expected, came, read)


def collector(checks: list[Check]) -> Callable[[str, str, str], Callable[..., Callable[[Any], str]]]:
    """A decorator `(name, section, expects)` that adds a function to `checks`."""

    def check(name: str, section: str, expects: str) -> Callable[..., Callable[[Any], str]]:
        def add(look: Callable[[Any], str]) -> Callable[[Any], str]:
            checks.append(Check(name, expects, section, look))
            return look

        return add

    return check
