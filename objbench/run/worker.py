"""One training and its cells from start to end, in a process of its own: `python -m objbench.run.worker FOLDER ...`.

Whoever starts it has locked the training, and written what it and its cells are. Events go back through a pipe, a
JSON line each; what plugins print goes to `log.txt`; how each cell ended is in its `record.json`.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objbench.cells.evaluation import FITTED, mixture_folder
from objbench.cells.identity import (
    EVALUATED,
    MIXTURE,
    OWN,
    START,
    Cell,
    MixtureConfig,
    Training,
    read_cell,
    read_training,
)
from objbench.cells.matrix import changes_of_code
from objbench.cells.origin import origin_folder
from objbench.cells.protocols import Protocol
from objbench.cells.result import Status, Trained
from objbench.cells.store import end_early, position, read_record, read_trained, write_record, write_trained
from objbench.errors import Interrupted, UsageError, told
from objbench.options import build
from objbench.plugins import Registry, load_plugins
from objbench.run.link import DISK_FULL, Link
from objbench.run.provenance import now, provenance
from objbench.scenes import first_indices
from objbench.score.arrays import flat, load_detections, load_truth, save_tensors
from objbench.score.detect import detect
from objbench.score.metrics import by_these_metrics, score, score_each
from objbench.score.mixture import cluster, load_mixture
from objbench.score.random_state import undisturbed
from objbench.score.scene_checks import FIRST, check_scenes
from objbench.score.trained import Built, build_training, load_weights
from objbench.train import checkpoint
from objbench.train.loop import Watch
from objbench.train.machine import peak_memory_mb
from objbench.train.outcome import Outcome, pictures, run_training
from objbench.train.steps import Diverged


class Worker(Link, Watch):
    """A link whose running figures are those of the detector being trained."""

    registry: Registry
    protocol: Protocol
    built: Built

    def __init__(self, descriptor: int, checkpoint_s: float, device: torch.device) -> None:
        super().__init__(descriptor)
        self.checkpoint_s, self.device = checkpoint_s, device
        self.began = time.monotonic()

    def run(self, folder: Path, cells: list[Path], registry: Registry) -> None:
        """Trains the training in `folder`, unless that is done, then clusters, scores and records its cells.

        Raises UsageError when the code has changed since they were planned, and whatever the training raises; a cell
        that fails after the training is recorded as failed, and the others go on.
        """
        self.registry = registry
        training = read_training(folder)
        if changed := changes_of_code(self.registry, training):
            raise UsageError(
                f"the source changed since this run was planned ({', '.join(changed)}); run the command again"
            )
        seconds_before = position(folder).seconds
        self.protocol = Protocol(summary="", **training.identity["protocol"])
        self.built = build_training(self.registry, training, self.device)
        if EVALUATED in training.identity:
            if not (folder / "trained.json").exists():
                self._evaluate(folder, training)
        elif not (folder / "trained.json").exists():
            with undisturbed(self.built.detector):  # those of seed 0 were checked when this was planned
                first = first_indices(self.built.train_source, "train", FIRST)
                check_scenes(training.identity["data"], self.built.train_source, "train", first)
            self._train(folder, training)
        else:
            load_weights(folder, self.built.detector)
        for cell in cells:
            try:
                self._finish(read_cell(cell), cell, seconds_before)
            except Exception as error:
                if is_disk_full(error):
                    raise
                traceback.print_exc()
                end_early(cell, *how_it_failed(error))

    def evaluate(self) -> dict[str, float]:
        """The metrics of the main table on the validation scenes, for the curve; those that are defined.

        A mixture is here fitted on these very detections, and once: what runs often must be cheap.
        """
        found, truth = detect(
            self.built.detector, self.built.test_source, "validation", self.protocol.validation_scenes
        )
        if found.clusters is None:
            found = cluster(MixtureConfig(restarts=1), found, found)[0]
        of_table = {name: spec for name, spec in self.registry.metrics.items() if spec.columns}
        values = score(replace(self.registry, metrics=of_table), found, truth)
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _train(self, folder: Path, training: Training) -> None:
        """Runs the training to its end, and commits what it gave."""
        began = provenance(self.device)
        detector = self.built.detector
        if start := training.identity.get(START):
            began |= {START: start}
            if not (folder / "checkpoint.json").exists():
                load_weights(origin_folder(folder.parent, training), detector)
        outcome = run_training(self.built, training.identity["seed"], self.protocol, folder, self)
        self._commit(folder, training, outcome, began, {"weights": detector.state_dict()})

    def _evaluate(self, folder: Path, training: Training) -> None:
        """Lets the detector of a finished training detect in these test scenes, and commits what it found."""
        began = provenance(self.device)
        origin = origin_folder(folder.parent, training)
        detector, source = self.built.detector, self.built.test_source
        load_weights(origin, detector)
        with undisturbed(detector):  # those of seed 0 were checked when this was planned
            check_scenes(training.identity["data"], source, "test", first_indices(source, "test", FIRST))
        self.report({"phase": "detecting"})
        found, truth = detect(detector, source, "test", self.protocol.test_scenes)
        before = read_trained(origin)
        outcome = Outcome(before.position, found, truth, pictures(detector, source), before.warnings)
        known = {name: training.identity[EVALUATED][name] for name in ("training", "weights")}
        self._commit(folder, training, outcome, began | {EVALUATED: known}, {})

    def _commit(
        self,
        folder: Path,
        training: Training,
        outcome: Outcome,
        began: dict[str, Any],
        weights: dict[str, Mapping[str, Tensor]],
    ) -> None:
        """Writes what a training gave, or an evaluation, and then that it ended."""
        at, detector = outcome.position, self.built.detector
        tensors = weights | {
            "detections": flat(outcome.detections),
            "truth": flat(outcome.truth),
            "shown": outcome.pictures,
        }
        with self.deferred():  # what follows is short, and a training that is done stays done
            for name, named in tensors.items():
                save_tensors(folder / f"{name}.safetensors", named)
            trained = Trained(
                training=folder.name,
                position=replace(
                    at, peak_memory_mb=max(at.peak_memory_mb, peak_memory_mb(self.device)), curve=[]
                ),
                classes=tuple(self.built.test_source.classes),
                shape=(detector.shape.channels, detector.shape.height, detector.shape.width),
                oracle=detector.oracle,
                warnings=outcome.warnings,
                provenance=began | {"data": training.identity["fingerprint"], "finished": now()},
            )
            files = [f"{name}.safetensors" for name in tensors] + (["curve.jsonl"] if at.curve else [])
            write_trained(folder, trained, files)
            checkpoint.remove(folder)

    def _finish(self, cell: Cell, folder: Path, seconds_before: float) -> None:
        """Clusters and scores a cell of the finished training, and records it as done."""
        self.report({"phase": "scoring"})
        trained = read_trained(folder.parent)
        tensors: dict[str, Mapping[str, Tensor]] = {}
        warnings = list(trained.warnings)
        if FITTED in cell.clusterer:
            mixture = load_mixture(mixture_folder(folder.parent.parent, cell), cell)
            assert mixture is not None
            found = mixture.apply(load_detections(folder))
            assert found.clusters is not None
            if not mixture.tensors:
                warnings.append(
                    "all detections are in cluster 0: the evaluated cell found too little to tell apart"
                )
            tensors = {"clusters": {"clusters": found.clusters}, "clusterer": mixture.tensors}
        elif cell.clusterer["name"] != OWN:
            config = build(MixtureConfig, MIXTURE, cell.clusterer["config"])
            seen, _ = detect(self.built.detector, self.built.train_source, "train", self.protocol.fit_scenes)
            found, state, warning = cluster(config, seen, load_detections(folder))
            assert found.clusters is not None
            warnings += [warning] if warning else []
            tensors = {"clusters": {"clusters": found.clusters}, "clusterer": state}
        for name, named in tensors.items():  # before any metric has seen them
            save_tensors(folder / f"{name}.safetensors", named)
        scored = list(score_each(self.registry, load_detections(folder), load_truth(folder), warnings.append))
        at = trained.position
        result = replace(
            cell.result("done"),
            metrics={name: value for _, values in scored for name, value in values.items()},
            seconds=at.seconds,
            train_steps=at.step,
            images_per_second=at.images / at.seconds,
            peak_memory_mb=max(at.peak_memory_mb, peak_memory_mb(self.device)),
            provenance=trained.provenance
            | by_these_metrics(self.registry, [spec for spec, _ in scored])
            | {
                "oracle": trained.oracle,
                "warnings": warnings,
                "wall_seconds": seconds_before + time.monotonic() - self.began,
            },
        )
        with self.deferred():  # a cell that is done stays done
            write_record(folder, result, [f"{name}.safetensors" for name in tensors])


def main(words: list[str]) -> int:
    """Runs the cells that the command line names; the exit code says little, the records all."""
    parser = argparse.ArgumentParser(prog="python -m objbench.run.worker")
    parser.add_argument("folder", type=Path, help="the training's")
    parser.add_argument("clusterers", nargs="+", help="the cells' folders in it")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--events", type=int, default=2, help="file descriptor to write events to")
    parser.add_argument("--checkpoint-every", type=float, default=20.0)
    parser.add_argument("--plugin", action="append", default=[])
    parsed = parser.parse_args(words)
    torch.set_num_threads(parsed.threads)
    if parsed.device.type == "cuda":
        torch.cuda.set_device(parsed.device)
    folder: Path = parsed.folder
    cells = [folder / name for name in parsed.clusterers]
    worker = Worker(parsed.events, parsed.checkpoint_every, parsed.device)
    signal.signal(signal.SIGTERM, worker.ask_to_stop)
    status: Status = "interrupted"
    error = ""
    try:
        worker.run(folder, cells, load_plugins(tuple(parsed.plugin)))
    except Interrupted:
        pass
    except BaseException as raised:  # a plugin may even call sys.exit
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        traceback.print_exc()
        if is_disk_full(raised):
            with worker.deferred():
                worker.report({"disk_full": f"{raised.strerror}: {raised.filename or folder}"})  # type: ignore[attr-defined]
            return DISK_FULL
        status, error = how_it_failed(raised)
    for cell in cells:
        if read_record(cell)[0].status == "running":
            end_early(cell, status, error)
    return 0


def how_it_failed(error: BaseException) -> tuple[Status, str]:
    """A status, and the error as a table can show it; its traceback is in the log."""
    line = textwrap.shorten(str(error) if isinstance(error, Diverged) else told(error), 300)
    return ("out of memory" if is_out_of_memory(error) else "failed"), line


def is_disk_full(error: BaseException) -> bool:
    """Whether nothing can be written any more."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which torch says in several ways."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # not by way of whatever threads and exit handlers plugins have left behind
