"""All that is worth doing on a machine with a GPU, in one command, from a checkout and with nothing installed but what
objbench needs:

    python -m benchmarks.on_gpu --out DIR --minutes 9

Runs the tests that need a GPU, measures the steps of every detector at the paper protocol, eager and captured, and
spends the rest of its minutes training GMAIR on MultiMNIST by the paper protocol. The same command goes on with that
training where the last one stopped. A stage that fails is recorded, and the next one runs.

What it leaves in DIR:

    summary.json, summary.md     what each stage came to, and the machine
    tests.txt, tests.xml         the report of the tests
    steps.json, steps.md         steps/s, images/s, memory, and captured over eager
    profile-MODEL.txt            where a captured step's time goes
    table.md, curve.jsonl        the training's table and its running figures
    weights.safetensors          what it has come to, weights alone, in half precision: to look with, not to go on
    runs/                        its cell, with the checkpoint that it goes on from
    log.txt                      whatever the stages printed
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("tests", "steps", "train")
MODELS = ("gmair", "spair", "space")
RESERVE_S = 30.0
"""Kept back at the end for the checkpoint and the table."""
SHARE = 0.3
"""The part of the minutes that the tests, and likewise the steps, may take."""
BATCH = 16
NEEDED = (
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "safetensors",
    "platformdirs",
    "mlxtend",
    "rich",
)
TINY_OPTIONS = ("gmair.steps=3", "gmair.batch_size=2", "gmair.mixture_start=0")


def site(folder: Path) -> Path:
    """A folder which, on PYTHONPATH, has a checkout stand for an installed objbench; nothing is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in (("objbench", "objbench"), ("objbench_plugins", "plugins")):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / place)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"objbench-{project['version']}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: objbench\nVersion: {project['version']}\n")
    groups = project["entry-points"] | {"console_scripts": project["scripts"]}
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


class Session:
    """One call of this program: where it writes, and until when it may run."""

    def __init__(self, out: Path, minutes: float, device: str, tiny: bool) -> None:
        self.out, self.device, self.tiny = out, device, tiny
        self.seconds, self.began = 60 * minutes, time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(site(out / ".site")), os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        )
        self.environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self.stages: list[dict[str, Any]] = []

    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def run(self, words: Sequence[str], to: Path, limit: float, ask: bool = False, **environment: str) -> int:
        """Runs a Python module until `limit` seconds are over; what it prints goes into the file `to`.

        Then it is killed, or, with `ask`, interrupted first, as with Ctrl-C, and given RESERVE_S. Returns its exit
        code. TimeoutError when it had to be killed.
        """
        print(f"+ python -m {' '.join(words)}", file=sys.stderr, flush=True)
        with to.open("ab") as printed:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=self.environment | environment,
                start_new_session=True,
            )
        try:
            return process.wait(max(0.0, limit))
        except subprocess.TimeoutExpired:
            if ask:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(2 * RESERVE_S)
            raise TimeoutError(f"python -m {words[0]} did not end in {limit:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
            process.wait()

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Does a part of the session and notes what it came to, an error too."""
        began = time.monotonic()
        try:
            found = {"status": "done"} | work()
        except Exception as error:  # the next stage is to run, whatever this one met
            found = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        self.stages.append({"stage": name, "seconds": round(time.monotonic() - began, 1)} | found)
        self.save()

    def save(self) -> None:
        """Writes the summary as it is so far."""
        write(self.out / "summary.json", json.dumps({"stages": self.stages}, indent=2))
        lines = [f"| {s['stage']} | {s['status']} | {s['seconds']} | {said(s)} |" for s in self.stages]
        write(self.out / "summary.md", "\n".join(["| stage | status | s | |", "|---|---|--:|---|", *lines]))


def said(stage: dict[str, Any]) -> str:
    """What a stage came to, in one cell of a table."""
    rest = {k: v for k, v in stage.items() if k not in ("stage", "status", "seconds", "provenance")}
    return "; ".join(f"{k} {v}" for k, v in rest.items()).replace("\n", " ").replace("|", "/")


def write(path: Path, text: str) -> None:
    """Replaces a file."""
    path.write_text(text + "\n")


# The stages


def machine(session: Session) -> dict[str, Any]:
    """Versions, device and git state; the GPU must be there if it was asked for."""
    import torch

    from objbench.run.provenance import provenance

    if session.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU; --device cpu --tiny tries this program without")
    device = torch.device(session.device)
    found: dict[str, Any] = {"device": provenance(device)["device"], "provenance": provenance(device)}
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        found["missing"] = missing  # what needs them will say so
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"memory_gb": round(total / 1e9, 1), "free_gb": round(free / 1e9, 1)}
        found["cuda"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return found


def tests(session: Session) -> dict[str, Any]:
    """The tests that need a GPU. Failed ones do not fail the stage, but are counted and named."""
    for name in ("tests.txt", "tests.xml"):
        (session.out / name).unlink(missing_ok=True)
    words = ["pytest", "-m", "cuda", "tests/test_cuda.py", "-rA", "--tb=short", "-p", "no:cacheprovider"]
    words.append(f"--junit-xml={session.out / 'tests.xml'}")
    code = session.run(words, session.out / "tests.txt", SHARE * session.seconds)
    lines = (session.out / "tests.txt").read_text().splitlines()
    found: dict[str, Any] = {"exit_code": code, "said": lines[-1] if lines else "nothing"}
    if failed := [line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]:
        found["failed"] = failed
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {code}: {found['said']}")
    return found


def steps(session: Session) -> dict[str, Any]:
    """Steps a second of every detector, and a table of them; a detector that fails has a line that says so."""
    ways = ["eager", "captured"] if session.device == "cuda" else ["eager"]
    groups = [",".join(MODELS)] if session.tiny else MODELS
    until = time.monotonic() + SHARE * session.seconds
    rows: list[dict[str, Any]] = []
    troubles = []
    for names in groups:
        for way in ways:
            to = session.out / "rows.jsonl"
            to.unlink(missing_ok=True)
            words = ["benchmarks.on_gpu", "--measure", names, way, "--device", session.device]
            words += ["--out", str(session.out), *(["--tiny"] if session.tiny else [])]
            try:
                code = session.run(words, session.out / "log.txt", until - time.monotonic())
                if code:
                    raise RuntimeError(f"exit code {code}, see log.txt")
            except Exception as error:
                troubles.append(f"{names} {way}: {error}")
            if to.exists():
                rows += [json.loads(line) for line in to.read_text().splitlines()]
                to.unlink()
    for row in rows:
        same = [
            r for r in rows if (r["model"], r["phase"], r["way"]) == (row["model"], row["phase"], "eager")
        ]
        if row["way"] == "captured" and same:
            row["over_eager"] = row["steps_per_second"] / same[0]["steps_per_second"]
    write(session.out / "steps.json", json.dumps({"rows": rows, "troubles": troubles}, indent=2))
    write(session.out / "steps.md", steps_table(rows, troubles))
    if not rows:
        raise RuntimeError("; ".join(troubles))
    return {"rows": len(rows)} | ({"troubles": troubles} if troubles else {})


def steps_table(rows: list[dict[str, Any]], troubles: list[str]) -> str:
    """The rows in Markdown."""
    lines = [
        "| model | phase | way | batch | steps/s | images/s | peak MB | captured / eager |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio = f"{row['over_eager']:.2f}" if "over_eager" in row else ""
        lines.append(
            f"| {row['model']} | {row['phase']} | {row['way']} | {row['batch']} | {row['steps_per_second']:.4g} | "
            f"{row['steps_per_second'] * row['batch']:.4g} | {row['peak_memory_mb']:.0f} | {ratio} |"
        )
    return "\n".join([*lines, *(f"\nNot measured: {trouble}" for trouble in troubles)])


def train(session: Session, options: Sequence[str]) -> dict[str, Any]:
    """Trains by the paper protocol until the time is over, or to its end; what it has come to."""
    if session.left() <= RESERVE_S and not session.tiny:
        raise TimeoutError("no time is left for training")
    runs = session.out / "runs"
    scale = "demo" if session.tiny else "paper"
    of_tiny = TINY_OPTIONS if session.tiny else ()
    words = ["objbench", "run", "--models", "gmair", "--data", "multimnist", "--protocol", scale]
    words += ["--out", str(runs), "--device", session.device, "--checkpoint-every", "60"]
    words += [word for option in (*of_tiny, *options) for word in ("-o", option)]
    reserve = 0.0 if session.tiny else RESERVE_S
    log = session.out / "log.txt"
    found: dict[str, Any] = {"exit_code": session.run(words, log, session.left() - reserve, ask=True)}
    folder = last_cell(runs)
    record = json.loads((folder / "record.json").read_text())
    if record["status"] in ("failed", "out of memory") and session.left() > 2 * reserve:
        found |= {"captured": f"{record['status']}: {record['error']}", "then": "eager"}
        left = session.left() - reserve
        found["exit_code"] = session.run(words, log, left, ask=True, OBJBENCH_EAGER="1")
        record = json.loads((folder / "record.json").read_text())
    found |= {"cell": folder.name, "training": record["status"], "steps": record["train_steps"]}
    found |= {"training_seconds": round(record["seconds"], 1), "error": record["error"]}
    if record["seconds"]:
        found["steps_per_second"] = round(record["train_steps"] / record["seconds"], 2)
    keep(folder, session.out)
    table = session.out / "table.md"
    table.unlink(missing_ok=True)
    with contextlib.suppress(TimeoutError):
        session.run(["objbench", "report", "--out", str(runs), "--paper", "--format", "md"], table, 120)
    if record["status"] not in ("done", "interrupted"):
        raise RuntimeError(f"the training ended as {record['status']}: {record['error']}; {said(found)}")
    return {name: value for name, value in found.items() if value != ""}


def last_cell(runs: Path) -> Path:
    """The folder of the cell that was run last."""
    folders = [path.parent for path in runs.glob("cells/*/*/record.json")]
    if not folders:
        raise RuntimeError("no cell was made; see log.txt")
    return max(folders, key=lambda folder: (folder / "record.json").stat().st_mtime)


def keep(folder: Path, out: Path) -> None:
    """Puts what is small of a cell's training beside the tables: running figures, and weights in half precision."""
    import torch

    from objbench.score.arrays import load_tensors, save_tensors

    folder = folder.parent
    if (folder / "curve.jsonl").exists():
        (out / "curve.jsonl").write_bytes((folder / "curve.jsonl").read_bytes())
    found = sorted(folder.glob("checkpoint-*.safetensors")) + sorted(folder.glob("weights.safetensors"))
    if not found:
        return
    tensors = load_tensors(found[-1])
    weights = {
        k.removeprefix(".model."): v for k, v in tensors.items() if not k.startswith((".optimizers", ".rng"))
    }
    half = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in weights.items()}
    save_tensors(out / "weights.safetensors", half)


# Measuring, in a process of its own


def measure(models: Sequence[str], way: str, session_out: Path, device_name: str, tiny: bool) -> None:
    """Appends lines to rows.jsonl: of the first phase of each detector, and of the one in the middle of training."""
    for model in models:
        for row in measured(model, way, session_out, device_name, tiny):
            with (session_out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


def measured(model: str, way: str, out: Path, device_name: str, tiny: bool) -> list[dict[str, Any]]:
    """The rows of a detector."""
    from objbench.options import build
    from objbench.plugins import load_plugins, load_target

    cls = load_target(load_plugins().model(model).target)
    scale = "demo" if tiny else "paper"
    settings = cls.settings(scale, "multimnist") | {"batch_size": 2 if tiny else BATCH}
    config = build(cls.Config, model, settings, {})
    phases = {"first": (config, 0), "middle": (config, config.steps // 2)}
    if not config.gate_cells:  # as fast as it could be
        gate = {"gate_cells": 16, "gate_from" if hasattr(config, "gate_from") else "gate_step": 0}
        phases["gated to 16"] = (build(cls.Config, model, settings | gate, {}), config.steps // 2)
    rows = []
    for phase, (config, start) in phases.items():
        kept = out / f"profile-{model}.txt" if way == "captured" and phase == "middle" else None
        found = measured_phase(cls, config, start, way, device_name, tiny, kept)
        rows.append({"model": model, "phase": phase, "way": way, "protocol": scale} | found)
    return rows


def measured_phase(
    cls: Any, config: Any, start: int, way: str, device_name: str, tiny: bool, kept: Path | None
) -> dict[str, Any]:
    """Steps a second from step `start` on, on images that are there already, so that data costs nothing.

    kept: where to write a profile, if at all.
    """
    import torch

    from objbench.scenes import SceneShape
    from objbench.score.random_state import seed_everything
    from objbench.train.captured import WARM_STEPS, CapturedSteps, CudaGraph
    from objbench.train.machine import peak_memory_mb
    from objbench.train.steps import InitialGroup, Steps, check_finite

    seed_everything(0)
    device, side = torch.device(device_name), 64 if tiny else 128
    detector = cls(config, SceneShape(1, side, side)).to(device).train()
    optimizers = detector.optimizers()
    initial = InitialGroup.of(optimizers)
    batches = [torch.rand(config.batch_size, 1, side, side).pow(4) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            batches = [images.pin_memory() for images in batches]
        take: Any = Steps(detector, optimizers, initial)
        if way == "captured":
            graph = CudaGraph(device)
            stack.enter_context(graph.stream())
            take = CapturedSteps(detector, optimizers, initial, graph)
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        warm, seconds, count = 1 if tiny else WARM_STEPS + 3, 0.0, 0
        losses = [take(batches[step % 4], start + step) for step in range(warm)]
        wait()
        began = time.perf_counter()
        while not count or seconds < (0.0 if tiny else 2.5):
            for _ in range(1 if tiny else 20):
                losses.append(take(batches[count % 4], start + count % 50))  # of one phase, however many
                count += 1
            wait()  # training does so twice a second
            seconds = time.perf_counter() - began
        check_finite(losses, len(losses) - 1)
        peak = peak_memory_mb(device)
        if kept:
            with contextlib.suppress(Exception):  # there may be a GPU and no right to look at it
                write(kept, profile(functools.partial(take, batches[0], start)))
    found = {"batch": config.batch_size, "step": start, "steps_per_second": count / seconds}
    return found | {"steps_measured": count, "peak_memory_mb": peak, "device": str(device)}


def profile(work: Callable[[], object]) -> str:
    """Which kernels the time goes to, over five runs."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(5):
            work()
        torch.cuda.synchronize()
    return str(seen.key_averages().table(sort_by="self_device_time_total", row_limit=30))


def main() -> int:
    """Runs the stages; 0 when all were done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything is left")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N", help="how long it may take (9)")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"which, of {','.join(STAGES)} (all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="everything so small that a CPU does it in a minute"
    )
    parser.add_argument("-o", action="append", default=[], metavar="OPTION", help="for objbench run")
    parser.add_argument("--measure", nargs=2, metavar=("MODELS", "WAY"), help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    out = parsed.out.resolve()
    if parsed.measure:
        measure(parsed.measure[0].split(","), parsed.measure[1], out, parsed.device, parsed.tiny)
        return 0
    wanted = parsed.stages.split(",")
    if strange := sorted(set(wanted) - set(STAGES)):
        parser.error(f"no stage named '{strange[0]}' (stages: {', '.join(STAGES)})")
    session = Session(out, parsed.minutes, parsed.device, parsed.tiny)
    sys.path.insert(0, str(out / ".site"))
    session.stage("machine", lambda: machine(session))
    if "tests" in wanted:
        session.stage("tests", lambda: tests(session))
    if "steps" in wanted:
        session.stage("steps", lambda: steps(session))
    if "train" in wanted:
        session.stage("train", lambda: train(session, parsed.o))
    print((out / "summary.md").read_text(), end="")
    return int(any(stage["status"] != "done" for stage in session.stages))


if __name__ == "__main__":
    sys.exit(main())
