"""Asks plugins what a run needs to know of them, for a process that cannot risk it: `python -m objbench.run.planner`.

A request is a line of JSON on stdin, its answer a line on the pipe `--answers`; the end of stdin ends the process.
stdout is stderr here. Every question to a plugin is asked in a process that is forked for it; in this one no code of
a plugin runs, but what registers it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from objbench.cells.evaluation import evaluation
from objbench.cells.files import Damaged, canonical
from objbench.cells.identity import Cell
from objbench.cells.matrix import matrix
from objbench.cells.protocols import protocol
from objbench.cells.result import CellResult
from objbench.cells.sweeps import expanded
from objbench.errors import UsageError, error_line
from objbench.guarded import PluginFailed
from objbench.options import list_depth
from objbench.plugins import Registry, load_plugins, load_target
from objbench.run.apart import Apart
from objbench.score.arrays import load_detections, load_truth
from objbench.score.draws import draw_cell
from objbench.score.metrics import rescore, score_each
from objbench.score.scene_checks import check_data_of


def plan_matrix(
    registry: Registry,
    ask: Apart,
    models: list[str],
    data: list[str],
    seeds: list[int],
    protocol_name: str,
    overrides: dict[str, dict[str, str]],
    out: str,
) -> dict[str, Any]:
    """The cells of a matrix whose scenes are right, and a failed result for each that no plugin could speak for.

    An option with several values makes cells of each.
    """
    failures: list[CellResult] = []
    scale = protocol(protocol_name)
    every: dict[str, Cell] = {}  # a swept option is not one of every model
    for combination in expanded(overrides, lambda owner, key: ask(owner, option_depth, registry, owner, key)):
        found = matrix(registry, models, data, seeds, scale, combination, ask, failures, out)
        every |= {cell.key: cell for cell in found if cell.key not in every}
    failures = list({canonical(asdict(f)): f for f in failures}.values())
    order = {seed: i for i, seed in enumerate(seeds)}
    cells = sorted(every.values(), key=lambda cell: order[cell.training.identity["seed"]])
    cells = check_data_of(registry, cells, ask, failures)
    return {"cells": [asdict(cell) for cell in cells], "failures": [asdict(f) for f in failures]}


def option_depth(registry: Registry, owner: str, key: str) -> int:
    """How deep lists in the values of a plugin's option are; 0 of an unknown option, which `matrix` refuses."""
    tables: list[Mapping[str, Any]] = [registry.models, registry.data, registry.clusterers]
    targets = [table[owner].target for table in tables if owner in table]
    return list_depth(load_target(targets[0]).Config, key) if targets else 0


def plan_evaluations(
    registry: Registry,
    ask: Apart,
    folders: list[str],
    data: str,
    protocol_name: str,
    seed: int,
    overrides: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """The cells of finished cells on other scenes, once these are right. PluginFailed when a plugin fails."""
    cells = [
        evaluation(registry, Path(folder), data, protocol_name, overrides, seed, ask) for folder in folders
    ]
    check_data_of(registry, cells, ask)
    return {"cells": [asdict(cell) for cell in cells]}


def count_devices(registry: Registry, ask: Apart) -> int:
    """How many CUDA devices torch finds here."""

    def count() -> int:  # CUDA once looked at cannot be used after a fork
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    try:
        return int(ask("torch", count))
    except PluginFailed:
        return 0


def _import_once() -> None:
    """Imports what metrics usually need, so that each process that is forked for one has it already."""
    importlib.import_module("objbench.mistakes")  # with scipy


def rescore_cell(registry: Registry, ask: Apart, result: dict[str, Any], anew: bool) -> dict[str, Any]:
    """A finished cell's result by the metrics as they are now, and a line for each metric that failed."""
    _import_once()
    complaints: list[str] = []
    fresh = rescore(registry, CellResult(**result), complaints.append, ask, anew)
    return {"result": asdict(fresh), "complaints": complaints}


def score_cell(registry: Registry, ask: Apart, result: dict[str, Any]) -> dict[str, Any]:
    """The values of a finished cell by each metric, and a line for each metric that failed."""
    _import_once()
    complaints: list[str] = []
    folder = Path(result["path"])
    scored = score_each(registry, load_detections(folder), load_truth(folder), complaints.append, ask)
    return {"scored": {spec.name: values for spec, values in scored}, "complaints": complaints}


def draw_scenes(
    registry: Registry, ask: Apart, result: dict[str, Any], metric: str, first: int, end: int
) -> dict[str, Any]:
    """The values of a finished cell by a metric, for draws of its test scenes."""
    _import_once()
    values: dict[str, Any] = ask(
        f"metric '{metric}'", draw_cell, CellResult(**result).path, registry.metric(metric), first, end
    )
    return values


REQUESTS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (plan_matrix, plan_evaluations, count_devices, rescore_cell, score_cell, draw_scenes)
}


def main(words: list[str]) -> None:
    """Answers requests until there are no more."""
    parser = argparse.ArgumentParser(prog="python -m objbench.run.planner")
    parser.add_argument("--answers", type=int, required=True, help="file descriptor to write answers to")
    parser.add_argument("--limit", type=float, required=True, help="seconds that a plugin may be silent")
    parser.add_argument("--plugin", action="append", default=[])
    parsed = parser.parse_args(words)
    requests = os.fdopen(os.dup(0), "rb", buffering=0)  # no plugin can read from or write to these two
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    os.set_inheritable(parsed.answers, False)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the calling process loads them too, and prints this
            registry = load_plugins(tuple(parsed.plugin))
    except UsageError as error:
        with contextlib.suppress(BrokenPipeError), os.fdopen(parsed.answers, "w") as answers:
            print(json.dumps({"usage": str(error)}), file=answers, flush=True)
        return
    ask = Apart(parsed.limit, requests.fileno())
    # A command that was killed reads no answer; nobody is left who could be told.
    with contextlib.suppress(BrokenPipeError), os.fdopen(parsed.answers, "w") as answers:
        for line in requests:
            request: dict[str, Any] = json.loads(line)
            try:
                answer = {"answer": REQUESTS[request["request"]](registry, ask, **request["arguments"])}
            except UsageError as error:
                answer = {"usage": str(error)}
            except Damaged as error:
                answer = {"damaged": str(error)}
            except Exception as error:
                answer = {"usage": f"{request['request']}: {error_line(error)}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
