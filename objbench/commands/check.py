"""`objbench check`: checks that a plugin keeps its contract."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from objbench.cells.overrides import parse_overrides
from objbench.commands.shared import json_option, overrides_option, plugin_option
from objbench.errors import UsageError
from objbench.plugins import load_plugins


@click.command()
@click.argument("what", metavar="NAME|FILE|PACKAGE")
@overrides_option
@json_option
@plugin_option
def check(what: str, options: tuple[str, ...], as_json: bool, plugin_files: tuple[str, ...]) -> None:
    """Check that a plugin keeps its contract, before the first long run.

    NAME is a model, data set, metric or clusterer; FILE a plugin in one file, PACKAGE an installed one: all that they
    register is checked. Models and clusterers are tried on simple scenes, with their `demo` settings. Exit code 0: all
    passed, 1: something failed.
    """
    overrides = parse_overrides(options)
    if what.endswith(".py") or Path(what).is_file():
        plugin_files = (*plugin_files, what)
    registry = load_plugins(plugin_files)

    from objbench.run.local import ENVIRONMENT

    # Before torch is imported: the two threads of some checks would spin for most of the time on a busy machine.
    os.environ.update(ENVIRONMENT | os.environ)
    import torch  # slow to import

    from objbench.conformance.kit import Finding, examine
    from objbench.conformance.subjects import find_subjects

    torch.set_num_threads(
        1
    )  # batches are small, and on a busy machine more threads would wait for each other
    subjects = find_subjects(registry, what, overrides)
    if strange := sorted(overrides.keys() - {subject.name for subject in subjects}):
        raise UsageError(
            f"-o {strange[0]}...: only options of {', '.join(s.name for s in subjects)} can be set here"
        )
    for subject in subjects:
        if subject.kind == "model" and "start_from" in overrides.get(subject.name, {}):
            raise UsageError(
                f"-o {subject.name}.start_from: check tries a detector from its own start; leave it out"
            )
    findings: list[Finding] = []
    for subject in subjects:
        if not as_json:
            click.echo(f"{subject.kind} {subject.name}")
        for finding in examine(subject):
            findings.append(finding)
            if not as_json:
                click.echo("  " + str(finding).replace("\n", "\n  "))
    counts = Counter(finding.outcome for finding in findings)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        click.echo(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")))
    sys.exit(bool(counts["failed"]))
