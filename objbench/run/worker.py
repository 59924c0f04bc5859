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
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from objbench.cells.evaluation import FITTED, fitted_folder
from objbench.cells.identity import (
    EVALUATED,
    OWN,
    START,
    TEST_SEED,
    Cell,
    Training,
    plain,
    read_cell,
    read_training,
)
from objbench.cells.matrix import changes_of_code, clusterer_changed, config_of_clusterer
from objbench.cells.origin import origin_folder
from objbench.cells.protocols import Protocol
from objbench.cells.result import Event, Position, Status, Trained
from objbench.cells.store import end_early, position, read_record, read_trained, write_record, write_trained
from objbench.clusterer import Clusterer, Objects, ObjectShape
from objbench.detector import trains_by_steps
from objbench.errors import Interrupted, UsageError, error_line
from objbench.guarded import PluginFailed
from objbench.plugins import Registry, load_plugins, load_target
from objbench.run.link import DISK_FULL, Link
from objbench.run.log import KINDS, Log, open_log
from objbench.run.points import Points
from objbench.run.provenance import now, provenance, where_from
from objbench.scenes import first_indices
from objbench.score import clustering
from objbench.score.arrays import flat, load_detections, load_found, load_truth, save_tensors
from objbench.score.detect import detect
from objbench.score.fitted import load_fitted
from objbench.score.metrics import by_these_metrics, score, score_each
from objbench.score.random_state import undisturbed
from objbench.score.samples import FILE as SAMPLES
from objbench.score.samples import Sampler
from objbench.score.scene_checks import FIRST, check_scenes
from objbench.score.trained import Built, build_training, load_weights
from objbench.train import checkpoint
from objbench.train.loop import Watch
from objbench.train.machine import peak_memory_mb
from objbench.train.outcome import Outcome, pictures, run_training
from objbench.train.steps import Diverged


class Clustered(NamedTuple):
    """What a clusterer made of the test objects of a training."""

    clusters: Tensor
    """`[m]` int64."""
    state: dict[str, Tensor]
    """All that it learnt."""
    warnings: list[str]
    seconds: float
    """It took to fit and to assign."""
    objects: int
    """How many it was fitted on."""
    shape: ObjectShape
    """Of them."""
    oracle: bool
    """Whether it was fitted with the true labels."""


class Worker(Link, Watch):
    """A link whose running figures are those of the detector being trained."""

    registry: Registry
    protocol: Protocol
    built: Built

    def __init__(
        self,
        descriptor: int,
        checkpoint_s: float,
        device: torch.device,
        points: int | None = None,
        log: str = "",
    ) -> None:
        """points: of the curve, as `Points` has them. log: the kind of log to write beside the training; "" is none."""
        super().__init__(descriptor)
        self.checkpoint_s, self.device = checkpoint_s, device
        self.points, self.log_kind = Points(points), log
        self.log: Log | None = None
        self.sampler: Sampler | None = None
        self._step = 0
        """Of the last report: the one that a point of the curve belongs to."""
        self.began = time.monotonic()
        self._of_test: clustering.Found | None = None

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
        self._check_content(training)
        if EVALUATED in training.identity:
            if not (folder / "trained.json").exists():
                self._evaluate(folder, training)
        elif not (folder / "trained.json").exists():
            with undisturbed(self.built.detector):  # those of seed 0 were checked when this was planned
                first = first_indices(self.built.train_source, "train", FIRST)
                check_scenes(training.identity["data"], self.built.train_source, "train", first)
            if self.log_kind:
                self.log = open_log(self.log_kind, folder, position(folder).step)
            cells = self._without_those_that_need_what(cells)
            if not cells:
                return
            try:
                self._train(folder, training)
            finally:
                if self.log:
                    self.log.close()
                    self.log = None
        else:
            load_weights(folder, self.built.detector)
        for cell in cells:
            try:
                self.report({"phase": "scoring", "cell": f"{folder.name}/{cell.name}"})
                self._finish(read_cell(cell), cell, seconds_before)
            except Interrupted:
                raise
            except BaseException as error:  # a plugin may raise anything
                if is_disk_full(error):
                    raise
                traceback.print_exc()
                end_early(cell, *how_it_failed(error))

    def _check_content(self, training: Training) -> None:
        """UsageError when the data set holds something else here than where this run was planned."""
        name, then = training.identity["data"], training.identity["fingerprint"]
        if training.identity.get(TEST_SEED, 0) != 0:  # it was planned by the scenes of seed 0
            return
        with undisturbed(self.built.detector):
            now = plain(self.built.test_source.fingerprint())
        if now != then:
            raise UsageError(
                f"the data of '{name}' are not those that this run was planned with: {now}, then {then}"
            )

    def report(self, event: Event) -> None:
        """Sends an event, and logs it."""
        super().report(event)
        self._step = event.get("step", self._step)
        if self.log:
            self.log.add(event)

    def due(self, at: Position, steps: int) -> bool:
        """Whether the curve gets a point after this step."""
        return self.points.due(at, steps)

    def evaluate(self) -> dict[str, float]:
        """The metrics of the main table on the validation scenes, for the curve; those that are defined.

        Those of clusters are not, for a detector that does not cluster: a clusterer that is fitted at every point costs
        too much, and one that is fitted in another way than for the table would show other figures.
        """
        found, truth = detect(
            self.built.detector, self.built.test_source, "validation", self.protocol.validation_scenes
        )
        if self.sampler:
            self.sampler.add(self._step, self.built.detector, self.built.test_source, found, truth)
        of_table = {name: spec for name, spec in self.registry.metrics.items() if spec.columns}
        values = score(replace(self.registry, metrics=of_table), found, truth)
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _train(self, folder: Path, training: Training) -> None:
        """Runs the training to its end, and commits what it gave."""
        identity = training.identity
        plugins = where_from(self.registry, {"model": identity["model"], "data set": identity["data"]})
        began = provenance(self.device) | {"plugins": plugins}
        detector = self.built.detector
        if start := identity.get(START):
            began |= {START: start}
            if not (folder / "checkpoint.json").exists():
                load_weights(origin_folder(folder.parent, training), detector)
        self.sampler = Sampler(folder, position(folder).step)
        outcome = run_training(self.built, training.identity["seed"], self.protocol, folder, self)
        self._commit(folder, training, outcome, began, {"weights": detector.state_dict()})

    def _evaluate(self, folder: Path, training: Training) -> None:
        """Lets the detector of a finished training detect in these test scenes, and commits what it found."""
        identity = training.identity
        plugins = where_from(self.registry, {"model": identity["model"], "data set": identity["data"]})
        known = {name: identity[EVALUATED][name] for name in ("training", "weights")}
        began = provenance(self.device) | {"plugins": plugins, EVALUATED: known}
        origin = origin_folder(folder.parent, training)
        detector, source = self.built.detector, self.built.test_source
        load_weights(origin, detector)
        with undisturbed(detector):  # those of seed 0 were checked when this was planned
            check_scenes(identity["data"], source, "test", first_indices(source, "test", FIRST))
        self.report({"phase": "detecting"})
        found, truth = detect(detector, source, "test", self.protocol.test_scenes)
        before = read_trained(origin)
        outcome = Outcome(before.position, found, truth, pictures(detector, source), before.warnings)
        self._commit(folder, training, outcome, began, {})

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
                warnings=sentences(outcome.warnings),
                provenance=began | {"data": training.identity["fingerprint"], "finished": now()},
            )
            files = [f"{name}.safetensors" for name in tensors]
            files += [name for name in ("curve.jsonl", SAMPLES) if at.curve and (folder / name).exists()]
            write_trained(folder, trained, files)
            checkpoint.remove(folder)

    def _finish(self, cell: Cell, folder: Path, seconds_before: float) -> None:
        """Clusters and scores a cell of the finished training, and records it as done."""
        trained = read_trained(folder.parent)
        tensors: dict[str, Mapping[str, Tensor]] = {}
        warnings = list(trained.warnings)
        more: dict[str, Any] = {"oracle": trained.oracle}
        seconds = 0.0
        if (clusterer := cell.clusterer["name"]) != OWN:
            self.report({"phase": "clustering"})
            with naming(clusterer):
                made = self._clustered(cell, folder)
            warnings, seconds = warnings + made.warnings, made.seconds
            tensors = {"clusters": {"clusters": made.clusters}, "clusterer": made.state}
            more |= {"oracle_clusterer": made.oracle, "objects_fitted_on": made.objects}
            more["object_shape"] = [made.shape.channels, made.shape.size, made.shape.what]
            plugin = where_from(self.registry, {"clusterer": clusterer})
            more["plugins"] = trained.provenance.get("plugins", {}) | plugin
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
            clusterer_seconds=seconds,
            provenance=trained.provenance
            | by_these_metrics(self.registry, [spec for spec, _ in scored])
            | more
            | {
                "warnings": warnings,
                "wall_seconds": seconds_before + time.monotonic() - self.began,
            },
        )
        with self.deferred():  # a cell that is done stays done
            write_record(folder, result, [f"{name}.safetensors" for name in tensors])

    @cached_property
    def _seen(self) -> clustering.Found:
        """What the trained detector stands by in the protocol's training scenes; once for all clusterers."""
        found, truth = detect(self.built.detector, self.built.train_source, "train", self.protocol.fit_scenes)
        return clustering.Found(self.built.train_source, "train", clustering.present(found), truth)

    def _tested(self, folder: Path) -> clustering.Found:
        """What the detector found in the test scenes; once for all clusterers. folder: the training's."""
        if self._of_test is None:
            self._of_test = clustering.Found(self.built.test_source, "test", load_found(folder))
        return self._of_test

    def _without_those_that_need_what(self, cells: list[Path]) -> list[Path]:
        """The cells but for those whose clusterer needs what-latents and whose detector gives none.

        These are recorded as failed: better before a long training than after it. A detector that says it does not
        cluster must give them, so it is not asked; neither is one that cannot detect before it is fitted.
        """
        left = []
        for folder in cells:
            cell = read_cell(folder)
            name, model = cell.clusterer["name"], cell.training.identity["model"]
            if (
                name == OWN
                or not load_target(self.registry.clusterer(name).target).needs_what
                or not self.registry.model(model).clusters
                or not trains_by_steps(type(self.built.detector))
                or detect(self.built.detector, self.built.train_source, "train", 1)[0].what is not None
            ):
                left.append(folder)
            else:
                end_early(folder, "failed", clustering.no_what(name, f"'{model}'"))
        return left

    def _clustered(self, cell: Cell, folder: Path) -> Clustered:
        """Fits the clusterer of a cell on what the detector finds in training scenes, and assigns the test objects.

        Raises PluginFailed, UsageError or ValueError, with one line for the table.
        """
        name = cell.clusterer["name"]
        if clusterer_changed(self.registry, cell):
            raise UsageError(
                f"the source of '{name}' changed since this run was planned; run the command again"
            )
        clusterer = load_target(self.registry.clusterer(name).target)
        config = config_of_clusterer(self.registry, cell)
        clustering.cut_of(name, clusterer, config)
        if FITTED in cell.clusterer:
            return self._clustered_as_before(cell, folder)
        objects = self._seen.objects(clusterer, config, with_labels=clusterer.oracle)
        shape, seed = clustering.shape_of(objects), cell.training.identity["seed"]
        if clusterer.needs_what and not shape.what:
            raise ValueError(clustering.no_what(name, f"'{cell.training.identity['model']}'"))
        began = time.perf_counter()
        made, warnings = clustering.fit(name, clusterer, config, objects, seed)
        state = clustering.state_of(name, made)
        fitted = time.perf_counter() - began
        config = config_of_clusterer(self.registry, cell)  # `fit` may have changed that of the clusterer
        asked = self._tested(folder.parent).objects(clusterer, config)
        began = time.perf_counter()
        clusters = clustering.assign(name, made, asked, config.clusters)
        seconds = fitted + time.perf_counter() - began
        again = clustering.restored(name, clusterer, config, shape, state)
        check_same(name, again, asked, clusters, config.clusters)
        return Clustered(clusters, state, sentences(warnings), seconds, len(objects), shape, clusterer.oracle)

    def _clustered_as_before(self, cell: Cell, folder: Path) -> Clustered:
        """Assigns the test objects of an evaluation by the clusterer of the finished cell, which is not fitted anew."""
        origin = fitted_folder(folder.parent.parent, cell)
        known = read_record(origin)[0].provenance
        shape = ObjectShape(*known["object_shape"])
        fitted = load_fitted(self.registry, origin, cell, shape)
        asked = self._tested(folder.parent).objects(type(fitted.clusterer), fitted.config)
        began = time.perf_counter()
        clusters = clustering.assign(fitted.name, fitted.clusterer, asked, fitted.config.clusters)
        seconds = time.perf_counter() - began
        state = clustering.state_of(fitted.name, fitted.clusterer)
        oracle = type(fitted.clusterer).oracle
        return Clustered(clusters, state, [], seconds, known["objects_fitted_on"], shape, oracle)


ROUNDING = 1000
"""One object in so many may come into another cluster among other objects: where rounding decides, at a border."""


def check_same(name: str, restored: Clusterer, asked: Objects, clusters: Tensor, count: int) -> None:
    """ValueError when a clusterer with the saved state of another does not assign as that one did.

    asked: the objects that `clusters` [m] are of. Every second of them is assigned, and then the rest: no cluster may
    depend on the other objects, or on their order.
    """
    halved = torch.empty_like(clusters)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        halved[half] = clustering.assign(name, restored, asked[half], count)
    if not (other := int((halved != clusters).sum())):
        return
    if forgotten := int((clustering.assign(name, restored, asked, count) != clusters).sum()):
        raise ValueError(
            f"the state_dict of '{name}' does not hold all that it learnt: with its saved state {forgotten} of "
            f"{len(asked)} objects are in another cluster"
        )
    if other * ROUNDING > len(asked):
        raise ValueError(
            f"assign of '{name}' does not look at each object alone: given every second one, {other} of "
            f"{len(asked)} are in another cluster"
        )


def sentences(warnings: Iterable[Any]) -> list[str]:
    """The warnings of a plugin as texts of one line each.

    A plugin that returned one text instead of a list gave its characters one by one: these are put together again.
    """
    found: list[str] = []
    for single, texts in groupby(map(str, warnings), lambda text: len(text) == 1):
        run = list(texts)
        found += ["".join(run)] if single else run
    return [" ".join(text.split()) for text in found if text.strip()]


@contextmanager
def naming(clusterer: str) -> Iterator[None]:
    """For a block that fits and applies a clusterer: each error becomes a line for the table, with its name."""
    try:
        yield
    except (UsageError, OSError):
        raise
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error
    except Exception as error:
        raise PluginFailed.when(f"'{clusterer}'", "the clustering", error_line(error)) from error


def main(words: list[str]) -> int:
    """Runs the cells that the command line names; the exit code says little, the records all."""
    parser = argparse.ArgumentParser(prog="python -m objbench.run.worker")
    parser.add_argument("folder", type=Path, help="the training's")
    parser.add_argument("clusterers", nargs="+", help="the cells' folders in it")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--events", type=int, default=2, help="file descriptor to write events to")
    parser.add_argument("--checkpoint-every", type=float, default=20.0)
    parser.add_argument("--points", type=int)
    parser.add_argument("--log", choices=KINDS, default="")
    parser.add_argument("--plugin", action="append", default=[])
    parsed = parser.parse_args(words)
    torch.set_num_threads(parsed.threads)
    if parsed.device.type == "cuda":
        torch.cuda.set_device(parsed.device)
    folder: Path = parsed.folder
    cells = [folder / name for name in parsed.clusterers]
    worker = Worker(parsed.events, parsed.checkpoint_every, parsed.device, parsed.points, parsed.log)
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


LONGEST = 300
"""Characters of an error in a table."""


def how_it_failed(error: BaseException) -> tuple[Status, str]:
    """A status, and the error as a table can show it; its traceback is in the log."""
    line = " ".join((str(error) if isinstance(error, Diverged) else error_line(error)).split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 6]} [...]"
    no_memory = is_out_of_memory(error) or (error.__context__ and is_out_of_memory(error.__context__))
    return ("out of memory" if no_memory else "failed"), line


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
