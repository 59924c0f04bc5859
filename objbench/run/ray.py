"""Runs trainings on the machines of a Ray cluster: `objbench run ... --on ray[=ADDRESS]`.

Each training is a Ray actor with the resources that a cell needs; it starts the same process as on one machine
(`objbench.run.host`). Only the runner's machine, where this module is used, writes the store. When a node is lost, its
trainings go on elsewhere from the checkpoints that were shipped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from objbench.cells.identity import START, Cell, Training
from objbench.cells.origin import WEIGHTS, origin_folder
from objbench.cells.result import Event
from objbench.cells.store import position
from objbench.errors import UsageError, error_line
from objbench.plugins import Registry
from objbench.run.backend import Needs, Settings
from objbench.run.host import Host, Order, Report, survey
from objbench.run.luggage import (
    TRAVELS,
    PluginFile,
    archive,
    differences,
    facts,
    names_of,
    paths_of,
    plugin_files,
    with_paths,
)
from objbench.run.ray_address import HOW, check_address
from objbench.run.shipping import packed, store

SURVEY_S = 120.0
"""Seconds within which every node must say what it has."""
LOOK_S = 2.0
"""Seconds after which the nodes of the cluster are looked at again."""
LOSSES = 3
"""A training fails when it was lost so often without a new checkpoint: it may be what kills the nodes."""
NAMED = 3
"""Of more nodes than this, an error names those with most."""
RESOURCES = {"CPU": "CPUs", "GPU": "GPUs", "memory": "GB of memory"}


class RayBackend:
    """A `Backend` on the cluster at an address."""

    def __init__(self, address: str, settings: Settings, device: str, needs: Needs) -> None:
        """Connects. address: "HOST:PORT", or "" for RAY_ADDRESS, else the cluster of this machine.

        Raises UsageError when it does not answer, or no node has room for a cell.
        """
        connect(address)
        # What Ray prints of lost nodes goes to stdout, where only results may be.
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._nodes: list[dict[str, Any]] = []
        self._looked = -math.inf
        self._most = settings.workers or math.inf
        gpus = needs.gpus
        if gpus is not None and device == ("cpu" if gpus else "cuda"):
            self.close()
            raise UsageError(
                f"--gpus-per-cell {gpus:g} does not go with --device {device}; leave one of them out"
            )
        if gpus is None:
            gpus = float(
                device == "cuda" or (device == "auto" and any("GPU" in n["Resources"] for n in self.nodes()))
            )
        cpus = needs.cpus or 1
        self.needs = {"CPU": float(cpus), "GPU": gpus, "memory": (needs.memory_gb or 0.0) * 1e9}
        if not self.slots():
            fault = no_room(self.needs, self.nodes())
            self.close()
            raise UsageError(fault)
        environment = {name: os.environ[name] for name in TRAVELS if name in os.environ}
        devices = ["cuda:0"] if gpus else ["cpu"]  # a cell sees the GPUs that are its own
        self.settings = replace(settings, devices=devices, threads=cpus, environment=environment)
        self._host = ray.remote(Actor).options(
            num_cpus=cpus, num_gpus=gpus, memory=self.needs["memory"] or None, max_restarts=0
        )
        self.plugins: list[PluginFile] = []
        self._archives: dict[str, Any] = {}

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as Ray describes them; at most LOOK_S old."""
        if time.monotonic() - self._looked > LOOK_S:
            self._nodes = [node for node in ray.nodes() if node["Alive"]]
            self._looked = time.monotonic()
        return self._nodes

    def slots(self) -> int:
        """As many as the nodes have room for, or as many as the user asked for, if that is less."""
        return int(min(self._most, sum(room(node["Resources"], self.needs) for node in self.nodes())))

    def prepare(self, registry: Registry, cells: Iterable[Cell]) -> None:
        """UsageError when a node has another Python, or other versions, plugins or code than this machine."""
        cells = list(cells)
        self.plugins = plugin_files(registry, self.settings.plugins)
        names = names_of(cells)
        paths = sorted({path for cell in cells for path in absolute(cell.training).values()})
        asked = {
            ray.remote(survey)
            .options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            )
            .remote(self.plugins, names, paths, self.settings.environment): node_name(node)
            for node in self.nodes()
            if room(node["Resources"], self.needs)
        }
        here = facts(registry, names)
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SURVEY_S)
        faults = []
        missing: set[str] = set()
        for answer, node in asked.items():
            said = answer_of(answer if answer in answered else None)
            missing.update(said.get("missing", ()))
            if fault := said.get("error") or "; ".join(differences(here, said["facts"])[:3]):
                faults.append(f"node {node}: {fault}")
        if faults:
            more = f" (and {len(faults) - 1} more nodes)" if len(faults) > 1 else ""
            raise UsageError(f"{faults[0]}{more}; install the same on every node")
        self._archives = {path: ray.put(archive(path)) for path in sorted(missing)}

    def start(self, folder: Path, cells: list[Cell], lock: int, slot: int) -> RayJob:
        """Starts a training, as soon as there is room for it."""
        return RayJob(self, folder, cells, lock, slot)

    def send(self, folder: Path, cells: list[Cell]) -> tuple[Any, Any]:
        """An actor to which a training was sent, and its future answer that this has begun."""
        training = cells[0].training
        key = training.key
        (folder / "log.txt").touch()
        files = {
            f"{key}/{name}": data for name, data in packed(folder, [c.clusterer_key for c in cells]).items()
        }
        if START in training.identity:
            origin = origin_folder(folder.parent, training)
            files[f"{origin.name}/{WEIGHTS}"] = (origin / WEIGHTS).read_bytes()
        paths = absolute(training)
        training = with_paths(training, paths)
        order = Order(
            [replace(cell, training=training) for cell in cells],
            self.settings,
            files,
            self.plugins,
            # Of what some node lacks; in a list, so that it is fetched only where it is needed.
            {path: [self._archives[path]] for path in paths.values() if path in self._archives},
        )
        host = self._host.remote()
        return host, host.begin_here.remote(order)

    def close(self) -> None:
        """Leaves the cluster, which goes on."""
        ray.shutdown()
        self._quiet.close()


class Actor(Host):
    """A `Host` in a process of Ray."""

    def begin_here(self, order: Order) -> str:
        """Starts the training; the name of this node."""
        context = ray.get_runtime_context()
        node = f"{socket.gethostname()} ({context.get_node_id()[:8]})"
        self.begin(order, node, lambda archived: bytes(ray.get(archived)))
        return node


class RayJob:
    """A training on some node; a `Job`."""

    def __init__(self, backend: RayBackend, folder: Path, cells: list[Cell], lock: int, slot: int) -> None:
        self.cells, self.slot = cells, slot
        self.timed_out = False
        self._backend, self._folder, self._lock = backend, folder, lock
        self._events: deque[Event] = deque()
        self._over = self._stopped = False
        self._failure = ""
        self._losses, self._lost_at = 0, -1
        self._send()

    def _send(self) -> None:
        self.started = math.inf
        self._node = ""
        self._events.append({"phase": "waiting for a node"})
        self._host, self._answer = self._backend.send(self._folder, self.cells)

    def ended(self) -> bool:
        """Takes what the node has sent; True if the training has ended. OSError when that cannot be written."""
        if not self._over and ray.wait([self._answer], timeout=0)[0]:
            try:
                said: str | Report = ray.get(self._answer)
            except RayTaskError as error:  # of a full disk there, say
                self._end(f"node {self._node or 'unknown'}: {error_line(cause_of(error))}")
            except RayError as error:
                self._lost(error)
            else:
                self._take(said)
        return self._over

    def _take(self, said: str | Report) -> None:
        if isinstance(said, str):
            self._node, self.started = said, time.monotonic()
            self._events.append({"phase": f"starting on {said}"})
        else:
            store(self._folder, said.parcel)
            self._events.extend(said.events)
            if said.ended:
                self._end(said.failure)
                return
        self._answer = self._host.poll.remote()

    def _lost(self, error: RayError) -> None:
        """Lets the training go on elsewhere."""
        ray.kill(self._host)  # it may only be out of reach
        step = position(self._folder).step
        self._losses = 1 if step > self._lost_at else self._losses + 1
        self._lost_at = step
        where = f"node {self._node}" if self._node else "its node"
        if self._stopped:
            self._end(f"{where} was lost")
        elif self._losses == LOSSES:
            self._end(f"{where} was lost, {LOSSES} times without a new checkpoint ({type(error).__name__})")
        else:
            at = f"from step {step}" if step else "from its start"
            self._events.append({"notice": f"{where} was lost; goes on elsewhere {at}", "phase": "lost"})
            self._send()

    def _end(self, failure: str) -> None:
        self._over, self._failure = True, failure
        ray.kill(self._host)

    def events(self) -> Iterator[Event]:
        """The events received so far; if `ended` has returned True before, all events."""
        while self._events:
            yield self._events.popleft()

    def stop(self) -> None:
        """Asks the training to save a checkpoint and end."""
        self._stopped = True
        if self._node:
            self._host.stop.remote()
        else:
            self.kill()

    def kill(self) -> None:
        """Ends the training at once."""
        if not self._over:
            self._end("killed")

    def close(self) -> None:
        """Releases the lock."""
        self.kill()
        os.close(self._lock)

    def failure(self) -> str:
        """How a training without a record ended."""
        return self._failure


def connect(address: str) -> None:
    """Joins the cluster at an address. UsageError when nothing answers there, or it runs another Ray or Python."""
    address = check_address(address)  # again: planning, between the first time and this, may take minutes
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except ConnectionError:
        raise UsageError(f"--on ray: no Ray cluster runs on this machine; {HOW}") from None
    except Exception as error:  # another version of Python or Ray, above all
        raise UsageError(f"--on ray={address}: {error_line(error)}") from None


def room(resources: dict[str, float], needs: dict[str, float]) -> int:
    """How many cells fit on a node."""
    fits = []
    for name, need in needs.items():
        have = resources.get(name, 0.0)
        if name == "GPU" and 0 < need < 1:
            fits.append(int(1 / need + 1e-9) * int(have))
        elif need:
            fits.append(int(have / need + 1e-9))
    return min(fits)


def no_room(needs: dict[str, float], nodes: list[dict[str, Any]]) -> str:
    """Says that no node has what a cell needs, and what there is."""
    wanted = ", ".join(_amount(name, need) for name, need in needs.items() if need)
    most = sorted(nodes, key=lambda n: [n["Resources"].get(name, 0.0) for name in ("GPU", "CPU", "memory")])
    there = "; ".join(
        f"{node_name(n)} has {', '.join(_amount(name, n['Resources'].get(name, 0.0)) for name in needs)}"
        for n in most[: -NAMED - 1 : -1]
    )
    if len(nodes) > NAMED:
        there += f" (and {len(nodes) - NAMED} more nodes)"
    return f"no node of the Ray cluster has {wanted}, which a cell needs: {there}; ask for less, or add nodes"


def node_name(node: dict[str, Any]) -> str:
    """What messages call a node, by Ray's description of it."""
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"


def answer_of(answer: Any) -> dict[str, Any]:
    """What `survey` gave on a node; {"error": a line} when it failed. answer: a future one, or None."""
    if answer is None:
        return {"error": f"no answer within {SURVEY_S:g} s"}
    try:
        said: dict[str, Any] = ray.get(answer)
    except RayError as error:
        return {"error": f"cannot run objbench: {answer_line(error)}"}
    return said


def answer_line(error: RayError) -> str:
    """An error of a node in one line. Where objbench or a package of it is missing there, Ray puts the search path of
    modules and a traceback into its message; only the last line of that tells what is missing."""
    cause = cause_of(error)
    lines = str(cause).strip().splitlines()
    if len(lines) > 1 and "failed to import on the worker" in lines[0]:
        return lines[-1].strip()
    return error_line(cause)


def cause_of(error: RayError) -> BaseException:
    """What was raised on a node, without Ray's words around it."""
    cause: BaseException | None = error.cause if isinstance(error, RayTaskError) else None
    return cause or error


def absolute(training: Training) -> dict[str, str]:
    """The paths in a training's options, each with its absolute form: nodes have another working folder."""
    return {value: os.path.abspath(value) for value in paths_of(training)}


def _amount(name: str, value: float) -> str:
    return f"{value / 1e9 if name == 'memory' else value:.3g} {RESOURCES[name]}"
