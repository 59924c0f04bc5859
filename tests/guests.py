"""A plugin file whose parts misbehave, each where its name says; beside it the toy."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import toy_plugin
from objbench import DataSpec, MetricSpec, ModelSpec, hookimpl
from objbench.detector import Detections
from objbench.scenes import GroundTruth, Scenes, SceneShape, Split

HOWS = ("quits", "exits", "hangs", "raises", "crashes", "prints", "moves", "forks")


def misbehave(how: str) -> None:
    """Does that."""
    match how:
        case "quits":
            sys.exit(3)
        case "exits":
            os._exit(4)
        case "hangs":
            time.sleep(600)
        case "raises":
            raise OSError("the digits are gone")
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "prints":
            print("not JSON")
            os.system("echo not JSON either")
        case "moves":
            os.chdir("/")
            os.environ["OBJBENCH_PLUGINS"] = "nonsense"
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)
        case "forks":
            if not os.fork():
                time.sleep(600)
                os._exit(0)


def _model(how: str) -> type[toy_plugin.Toy]:
    class Misbehaving(toy_plugin.ToyFit):  # type: ignore[misc]
        def __init__(self, config: Any, shape: SceneShape) -> None:
            if not os.environ.get("OBJBENCH_TEST_CELL"):
                misbehave(how)
            super().__init__(config, shape)

    return Misbehaving  # type: ignore[return-value]


def _data(how: str, where: str) -> type[toy_plugin.Squares]:
    class Misbehaving(toy_plugin.Squares):  # type: ignore[misc]
        def __init__(self, config: Any, seed: int) -> None:
            super().__init__(config, seed)
            if where == "built":
                misbehave(how)

        def fingerprint(self) -> dict[str, Any]:
            if where == "asked":
                misbehave(how)
            return dict(super().fingerprint())

        def scenes(self, split: Split, indices: Any) -> Scenes:
            if where == "drawn":
                misbehave(how)
            return super().scenes(split, indices)

    return Misbehaving


for _how in HOWS:
    globals()[f"Model_{_how}"] = _model(_how)
    for _where in ("built", "asked", "drawn"):
        globals()[f"Data_{_where}_{_how}"] = _data(_how, _where)


def moody(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    """Misbehaves as the file beside the environment's say-so holds."""
    file = Path(os.environ.get("OBJBENCH_TEST_MOOD", "/nowhere"))
    misbehave(file.read_text() if file.exists() else "")
    return {"mood": 1.0}


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """One for each way."""
    return [ModelSpec(how, how, f"guests:Model_{how}") for how in HOWS]


@hookimpl
def objbench_data() -> list[DataSpec]:
    """One for each way and place."""
    return [
        DataSpec(f"{where}-{how}", how, f"guests:Data_{where}_{how}")
        for how in HOWS
        for where in ("built", "asked", "drawn")
    ]


@hookimpl
def objbench_metrics() -> list[MetricSpec]:
    """One that may do each."""
    return [MetricSpec("moody", "as the mood is", "guests:moody", version=int(os.environ.get("MOODY", "1")))]
