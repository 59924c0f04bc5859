"""Finds the backend that `objbench run` uses: this machine, or with `--on` the machines of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from objbench.commands.devices import find_devices, threads_each
from objbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from objbench.run.backend import Backend, Needs, Settings


def check_engine(on: str, needs: Needs) -> None:
    """UsageError when there is no such engine, its package is not installed, nothing answers at its address, or with
    needs of no engine."""
    import importlib.util

    from objbench.plugins import load_target
    from objbench.run.backend import ENGINES

    if not on:
        for name, value in asdict(needs).items():
            if value is not None:
                raise UsageError(
                    f"--{name.removesuffix('_gb')}-per-cell is for a cluster: use it with --on (on this machine, "
                    "--workers says how many cells share it)"
                )
        return
    engine, _, address = on.partition("=")
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if importlib.util.find_spec(engine) is None:
        raise UsageError(
            f"--on {engine} needs the package {engine}; run `pip install 'objbench[{engine}]'` on every machine"
        )
    load_target(ENGINES[engine].check)(address)


def open_engine(
    on: str, settings: Settings, device: str, needs: Needs, count_devices: Callable[[], int]
) -> Backend:
    """The backend that `--on` names; "" is this machine. Connects to the cluster.

    settings: with the number of workers that the user asked for, or 0; without devices and threads, which are found.
    Raises UsageError when there is no such device, or the cluster does not answer or has no room for a cell.
    """
    from objbench.plugins import load_target
    from objbench.run.backend import ENGINES
    from objbench.run.local import Local

    if not on:
        workers = settings.workers or 1
        devices, threads = find_devices(device, count_devices), threads_each(workers)
        return Local(replace(settings, devices=devices, workers=workers, threads=threads))
    engine, _, address = on.partition("=")
    backend: Backend = load_target(ENGINES[engine].backend)(address, settings, device, needs)
    return backend
