"""One cell from start to end, in a process of its own: `python -m objbench.cell FOLDER ...`.

Whoever starts it has locked the cell and written `cell.json`. Events go back through a pipe, a JSON line
each; what plugins print goes to `log.txt`; how it ended is in `record.json`.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import signal
import sys
import textwrap
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from objbench import checkpoint
from objbench.checkpoint import Position
from objbench.clustering import Mixture, MixtureConfig
from objbench.detector import Detections, Detector, trains_by_steps
from objbench.errors import UsageError, told
from objbench.evaluation import (
    columns,
    detect,
    device_of,
    flat,
    load_detections,
    present_what,
    shown,
    undisturbed,
)
from objbench.matrix import MIXTURE, Cell
from objbench.options import build
from objbench.plugins import Registry, load_plugins, load_target
from objbench.protocols import Protocol
from objbench.provenance import now, peak_memory_mb, provenance
from objbench.results import CellResult, Status
from objbench.scenes import SceneShape, SceneSource
from objbench.scoring import metric_versions, score
from objbench.store import check_files, load_tensors, read_json, read_record, save_tensors, write_record
from objbench.training import Diverged, Interrupted, first_indices, read_curve, seed_everything, train

DISK_FULL = 4
"""Exit code when the disk is full. Nothing is recorded then, so the cell is one that was interrupted."""
PICTURES = 100
"""Test scenes that pictures are made of."""


class Link:
    """The pipe and the signal between a cell and whoever runs the matrix."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.stop = False
        """Whether the cell was asked to stop."""
        self.at_once = True
        """Whether being asked raises Interrupted; the training loop looks for itself, after each step."""

    def tell(self, event: dict[str, Any]) -> None:
        """Sends an event. When nobody reads any more, whoever ran the matrix is gone, and the cell stops."""
        try:
            os.write(self._descriptor, (json.dumps(event) + "\n").encode())
        except BlockingIOError:
            pass  # the reader is asleep; an event may get lost, a training not
        except OSError:
            self.ask_to_stop()

    def ask_to_stop(self, *_: object) -> None:
        """Also a signal handler."""
        self.stop = True
        if self.at_once:
            raise Interrupted


class Built(NamedTuple):
    """A cell's parts, made of its plugins."""

    detector: Detector
    training: SceneSource
    """Scenes of the cell's own seed."""
    evaluation: SceneSource
    """Scenes of seed 0: cells that differ in seed alone are tested on the same scenes."""
    mixture: MixtureConfig | None
    """How to cluster for a detector that does not."""


def build_cell(registry: Registry, cell: Cell, device: torch.device | str) -> Built:
    """Makes the parts of a cell, the detector untrained. Seeds every global random generator."""
    identity = cell.identity
    source_class = load_target(registry.source(identity["data"]).target)
    data_config = build(source_class.Config, identity["data"], cell.data_config)
    training, evaluation = source_class(data_config, identity["seed"]), source_class(data_config, 0)
    mixture = build(MixtureConfig, MIXTURE, identity["mixture"]) if "mixture" in identity else None
    return Built(build_detector(registry, cell, evaluation.shape, device), training, evaluation, mixture)


def build_detector(registry: Registry, cell: Cell, shape: SceneShape, device: torch.device | str) -> Detector:
    """Makes the detector of a cell, untrained, for images of that shape. Seeds every global random generator."""
    identity = cell.identity
    detector_class = load_target(registry.model(identity["model"]).target)
    config = build(detector_class.Config, identity["model"], cell.model_config)
    seed_everything(identity["seed"])
    detector: Detector = detector_class(config, shape).to(device)
    return detector


def load_trained(registry: Registry, folder: Path, device: str = "cpu") -> tuple[Built, Mixture | None]:
    """A finished cell, ready to detect: its parts, and what clusters its detections if the detector does not.

    UsageError when it is not done, or its weights do not fit the plugin as it is now; Damaged when a file is.
    """
    cell, _ = _finished(folder)
    built = build_cell(registry, cell, device)
    return built, _load_weights(folder, built.detector, built.mixture)


def load_detector(registry: Registry, folder: Path, device: str = "cpu") -> tuple[Detector, Mixture | None]:
    """What of a finished cell is needed to detect: as `load_trained`, without its data.

    The shape of its images is in its record. Records of earlier versions lack it; the data is built for these.
    """
    cell, provenance_ = _finished(folder)
    if "shape" not in provenance_:
        built, mixture = load_trained(registry, folder, device)
        return built.detector, mixture
    detector = build_detector(registry, cell, SceneShape(*provenance_["shape"]), device)
    identity = cell.identity
    config = build(MixtureConfig, MIXTURE, identity["mixture"]) if "mixture" in identity else None
    return detector, _load_weights(folder, detector, config)


def _finished(folder: Path) -> tuple[Cell, dict[str, Any]]:
    """A finished cell and its provenance, its files checked."""
    result, files = read_record(folder)
    if result.status != "done":
        raise UsageError(f"cell {folder.name} is not done but {result.status}; run it first")
    check_files(folder, files)
    return Cell(**read_json(folder / "cell.json")), result.provenance


def _load_weights(folder: Path, detector: Detector, mixture: MixtureConfig | None) -> Mixture | None:
    """Gives a detector its trained weights, and puts it into eval mode; returns the trained mixture."""
    try:
        detector.load_state_dict(load_tensors(folder / "weights.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(
            f"cell {folder.name}: its weights do not fit the plugin of today ({reason})"
        ) from None
    detector.eval()
    return None if mixture is None else Mixture(mixture, load_tensors(folder / "mixture.safetensors"))


def run_cell(folder: Path, registry: Registry, device: torch.device, link: Link, checkpoint_s: float) -> None:
    """Trains the cell in `folder`, scores it, and records it as done; goes on from its checkpoint."""
    start, began = time.monotonic(), replace(read_record(folder)[0], provenance=provenance(device))
    write_record(folder, began)
    cell = Cell(**read_json(folder / "cell.json"))
    protocol = Protocol(summary="", **cell.identity["protocol"])
    built = build_cell(registry, cell, device)
    for name, value in built.detector.state_dict().items():
        if not isinstance(value, torch.Tensor):  # better found out now than after the training
            raise TypeError(f"its state '{name}' is {type(value).__name__}; weights can only be tensors")

    before = checkpoint.position(folder)
    if trains_by_steps(type(built.detector)):
        link.at_once = False
        at = train(
            built.detector,
            built.training,
            cell.identity["seed"],
            folder,
            evaluate=lambda: _validate(registry, built, protocol),
            tell=link.tell,
            stopping=lambda: link.stop,
            checkpoint_s=checkpoint_s,
            fit_scenes=protocol.fit_scenes,
        )
        link.at_once = True
    else:
        link.tell({"phase": "fitting"})
        at = _fit(built, protocol)

    link.tell({"phase": "scoring"})
    found, truth = detect(built.detector, built.evaluation, "test", protocol.test_scenes)
    tensors = {"weights": built.detector.state_dict()}
    warnings = []
    if before.step and before.machine != at.machine:
        warnings.append(f"trained on {before.machine} to step {before.step}, then on {at.machine}")
    if built.mixture:
        seen, _ = detect(built.detector, built.training, "train", protocol.fit_scenes)
        mixture, warning = Mixture.fit(built.mixture, present_what(seen))
        warnings += [warning] if warning else []
        found, tensors["mixture"] = mixture.apply(found), mixture.tensors
    metrics = score(registry, found, truth, warnings.append)

    link.at_once = False  # what follows is short, and a cell that is done stays done
    tensors |= {"detections": flat(found), "truth": flat(truth)}
    for name, named in tensors.items():
        save_tensors(folder / f"{name}.safetensors", named)
    files = [f"{name}.safetensors" for name in tensors] + (["curve.jsonl"] if at.curve else [])
    more = {
        "data": cell.identity["fingerprint"],
        "metric_versions": metric_versions(registry),
        "oracle": built.detector.oracle,
        "shape": list(built.evaluation.shape),
        "warnings": warnings,
        "wall_seconds": before.seconds + time.monotonic() - start,
        "finished": now(),
    }
    result = replace(
        began,
        status="done",
        metrics=metrics,
        seconds=at.seconds,
        train_steps=at.step,
        images_per_second=at.images / at.seconds,
        peak_memory_mb=max(at.peak_memory_mb, peak_memory_mb(device)),
        provenance=began.provenance | more,
    )
    write_record(folder, result, files)
    checkpoint.remove(folder)
    link.tell({"phase": "drawing"})
    try:
        draw(folder, registry, built)
    except Exception:  # the cell is done whether or not it can be drawn
        traceback.print_exc()


def _fit(built: Built, protocol: Protocol) -> Position:
    """For a detector that does not train by steps: shows it the first training scenes, once."""
    indices = first_indices(built.training, "train", protocol.fit_scenes)
    scenes = shown(built.training.scenes("train", indices), built.detector)
    began = time.perf_counter()
    built.detector.fit(scenes)
    return Position(seconds=time.perf_counter() - began, images=len(scenes))


def _validate(registry: Registry, built: Built, protocol: Protocol) -> dict[str, float]:
    """The metrics of the main table on the validation scenes, for the curve; those that are defined.

    A mixture is here fitted on these very detections, and once: what runs often must be cheap.
    """
    found, truth = detect(built.detector, built.evaluation, "validation", protocol.validation_scenes)
    if built.mixture:
        config = replace(built.mixture, restarts=1)
        found = Mixture.fit(config, present_what(found))[0].apply(found)
    of_table = {name: spec for name, spec in registry.metrics.items() if spec.columns}
    values = score(replace(registry, metrics=of_table), found, truth)
    return {name: value for name, value in values.items() if math.isfinite(value)}


def draw(folder: Path, registry: Registry, built: Built) -> list[Path]:
    """Draws the first test scenes of a finished cell; returns what was written."""
    from objbench.report.pictures import SCENES, write_pictures

    scenes = built.evaluation.scenes("test", first_indices(built.evaluation, "test", PICTURES))
    found = load_detections(folder)
    first = found.image < len(scenes)
    parts = {name: value[first] for name, value in vars(found).items() if isinstance(value, torch.Tensor)}
    with undisturbed(built.detector):
        picture = built.detector.reconstruct(scenes.images[:SCENES].to(device_of(built.detector)))
    picture = None if picture is None else picture.cpu()
    found, classes = Detections(len(scenes), **parts), built.evaluation.classes
    return write_pictures(folder, scenes, found, picture, classes, read_curve(folder), columns(registry))


def main(words: list[str]) -> int:
    """Runs the cell that the command line names; the exit code says little, the record all."""
    parser = argparse.ArgumentParser(prog="python -m objbench.cell")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--events", type=int, default=2, help="file descriptor to write events to")
    parser.add_argument("--checkpoint-every", type=float, default=20.0)
    parser.add_argument("--plugin", action="append", default=[])
    told = parser.parse_args(words)
    torch.set_num_threads(told.threads)
    if told.device.type == "cuda":
        torch.cuda.set_device(told.device)
    link = Link(told.events)
    signal.signal(signal.SIGTERM, link.ask_to_stop)
    status: Status = "done"
    error = ""
    try:
        run_cell(told.folder, load_plugins(tuple(told.plugin)), told.device, link, told.checkpoint_every)
    except Interrupted:
        status = "interrupted"
    except BaseException as raised:  # a plugin may even call sys.exit
        traceback.print_exc()
        link.at_once = False
        if isinstance(raised, OSError) and raised.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            link.tell({"disk_full": f"{raised.strerror}: {raised.filename or told.folder}"})
            return DISK_FULL
        status, error = "out of memory" if is_out_of_memory(raised) else "failed", one_line(raised)
    if status != "done":
        end_early(told.folder, status, error)
    return 0


def end_early(folder: Path, status: Status, error: str = "") -> CellResult:
    """Records that a cell ended before it was done, as far as its checkpoint reaches."""
    at = checkpoint.position(folder)
    result = replace(
        read_record(folder)[0],
        status=status,
        error=error,
        seconds=at.seconds,
        train_steps=at.step,
        peak_memory_mb=at.peak_memory_mb,
    )
    write_record(folder, result)
    return result


def one_line(error: BaseException) -> str:
    """An error as a table can show it; its traceback is in the log."""
    return textwrap.shorten(str(error) if isinstance(error, Diverged) else told(error), 300)


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
