"""One cell from start to end, in a process of its own: `python -m objbench.run.worker FOLDER ...`.

Whoever starts it has locked the cell and written `cell.json`. Events go back through a pipe, a JSON line
each; what plugins print goes to `log.txt`; how it ended is in `record.json`.
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
from dataclasses import replace
from pathlib import Path

import torch

from objbench.cells.files import read_json
from objbench.cells.identity import Cell
from objbench.cells.protocols import Protocol
from objbench.cells.result import Position, Status
from objbench.cells.store import end_early, position, read_record, write_record
from objbench.detector import trains_by_steps
from objbench.errors import Interrupted, told
from objbench.plugins import Registry, load_plugins
from objbench.report.pictures import draw
from objbench.run.link import DISK_FULL, Link
from objbench.run.provenance import now, provenance
from objbench.scenes import first_indices
from objbench.score.arrays import flat, save_tensors
from objbench.score.detect import detect, present_what, shown
from objbench.score.metrics import score
from objbench.score.mixture import Mixture
from objbench.score.trained import Built, build_cell
from objbench.train import checkpoint
from objbench.train.loop import train
from objbench.train.machine import peak_memory_mb
from objbench.train.steps import Diverged


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

    before = position(folder)
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
        "metric_versions": registry.metric_versions,
        "oracle": built.detector.oracle,
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


def main(words: list[str]) -> int:
    """Runs the cell that the command line names; the exit code says little, the record all."""
    parser = argparse.ArgumentParser(prog="python -m objbench.run.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--events", type=int, default=2, help="file descriptor to write events to")
    parser.add_argument("--checkpoint-every", type=float, default=20.0)
    parser.add_argument("--plugin", action="append", default=[])
    parsed = parser.parse_args(words)
    torch.set_num_threads(parsed.threads)
    if parsed.device.type == "cuda":
        torch.cuda.set_device(parsed.device)
    link = Link(parsed.events)
    signal.signal(signal.SIGTERM, link.ask_to_stop)
    status: Status = "done"
    error = ""
    try:
        run_cell(
            parsed.folder, load_plugins(tuple(parsed.plugin)), parsed.device, link, parsed.checkpoint_every
        )
    except Interrupted:
        status = "interrupted"
    except BaseException as raised:  # a plugin may even call sys.exit
        traceback.print_exc()
        link.at_once = False
        if isinstance(raised, OSError) and raised.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            link.tell({"disk_full": f"{raised.strerror}: {raised.filename or parsed.folder}"})
            return DISK_FULL
        status, error = "out of memory" if is_out_of_memory(raised) else "failed", one_line(raised)
    if status != "done":
        end_early(parsed.folder, status, error)
    return 0


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
