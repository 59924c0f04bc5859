"""What a check is, and what it finds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from objbench.errors import error_line

GUIDE = "docs/plugins.md"


class Wrong(Exception):
    """The plugin breaks its contract: what came, and what was expected if the check's own words say too little."""

    def __init__(self, came: str, expected: str = "") -> None:
        super().__init__(came)
        self.came, self.expected = came, expected


class DoesNotApply(Exception):
    """The check has nothing to look at; the text says why."""


@dataclass(frozen=True)
class Check:
    """One thing that a contract promises."""

    name: str
    expects: str
    """What is expected of a plugin, as a sentence."""
    section: str
    """Where docs/plugins.md tells more: the anchor of a heading."""
    look: Callable[[Any], str]
    """Takes the subject; returns what it saw, in a few words. Raises Wrong, or whatever the plugin raises."""


class Subject(Protocol):
    """One registered model, data set, metric or clusterer under examination."""

    kind: str
    name: str

    @property
    def checks(self) -> list[Check]:
        """What there is to look at, in order."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

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
            f"FAILED  {self.check}\n    expected: {self.expected}\n    came:     {self.came}\n"
            f"    read:     {self.read}"
        )


def examine(subject: Subject) -> Iterator[Finding]:
    """Every check of a subject, one after the other."""
    for check in subject.checks:
        yield run_check(subject, check)


def run_check(subject: Subject, check: Check) -> Finding:
    """One check. Whatever the plugin raises is a failure that says where; what it prints goes to stderr."""
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
    except BaseException as error:  # a plugin may even call sys.exit
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
