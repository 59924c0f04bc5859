"""`objbench run --on ray`: a real, small cluster on this machine; nodes and the command are killed in the middle."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objbench.cells.files import Damaged, read_json
from objbench.cells.store import Store
from objbench.errors import UsageError
from running import TOY, rows_of, run

pytest.importorskip("ray", reason="Ray is not installed: pip install 'objbench[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("real_processes")]
LIMIT_S = 300.0
"""Of each wait; far more than is needed on an idle machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head, on which no cell has room, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def command(cluster: Any, out: Path, *words: str) -> subprocess.Popen[str]:
    """Starts the command in a process of its own."""
    line = [
        sys.executable,
        "-m",
        "objbench",
        "run",
        "--models",
        "toy,toy-plain",
        "--data",
        "squares",
        "--plugin",
        TOY,
    ]
    line += ["--out", str(out), "--on", f"ray={cluster.address}", "--json", *words]
    return subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def steps(out: Path) -> list[int]:
    """How far the trainings in a store have come, by their checkpoints."""
    found = []
    for file in out.glob("cells/*/checkpoint.json"):
        with contextlib.suppress(Damaged):
            found.append(int(read_json(file)["position"]["step"]))
    return found


def wait_for(what: Callable[[], bool], command: subprocess.Popen[str]) -> None:
    """Until something is so; fails when the command ends before."""
    end = time.monotonic() + LIMIT_S
    while not what():
        assert command.poll() is None, command.stderr and command.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.1)


def trainings() -> list[str]:
    """The command lines of all processes that train in a temporary folder of a node."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = file.read_text()
            if (
                "objbench.run.worker" in line
                and f"--plugin\0{Path(TOY).name}" not in line
                and "/objbench-" in line
            ):
                found.append(line)
    return found


def test_a_node_and_the_command_die_and_the_figures_are_those_of_one_machine(
    cluster: Any, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.touch()
    words = [
        word
        for model in ("toy", "toy-plain")
        for word in ("-o", f"{model}.slow={slow}", "-o", f"{model}.at=20")
    ]
    words += ["--checkpoint-every", "0.3"]
    there = tmp_path / "there"
    first = again = command(cluster, there, *words)
    try:
        wait_for(lambda: len(steps(there)) == 2, first)
        assert len(trainings()) == 2
        first.kill()  # as the system does when memory runs out: it cannot tidy up
        first.wait()
        before = min(steps(there))
        again = command(cluster, there, *words)
        wait_for(lambda: not trainings(), again)
        wait_for(lambda: min(steps(there)) > before, again)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_for(lambda: len(trainings()) == 1, again)
        slow.unlink()
        out, err = again.communicate(timeout=LIMIT_S)
    finally:
        for process in (first, again):
            process.kill()
    assert again.returncode == 0, err
    assert "was lost; goes on elsewhere from step" in err
    here = rows_of(run(tmp_path / "here", "toy,toy-plain", "--json"))
    rows = json.loads(out)
    assert [row["status"] for row in rows] == ["done", "done"]
    assert [row["metrics"] for row in rows] == [row["metrics"] for row in here]
    records = [Store(there).result(row["cell"]).provenance for row in rows]
    alive = {node.node_id[:8] for node in cluster.worker_nodes}
    assert {record["node"][-9:-1] for record in records} == alive
    assert not list(there.glob("cells/*/.*")), "nothing half-written is left"
    assert not list(there.glob("cells/*/checkpoint*")), "what is gone there is gone here"


def test_what_is_wrong_with_a_cluster_is_said_in_one_line(cluster: Any, tmp_path: Path) -> None:
    ran = command(cluster, tmp_path, "--gpus-per-cell", "2")
    _, err = ran.communicate(timeout=LIMIT_S)
    assert ran.returncode == 2
    assert "no node of the Ray cluster has 1 CPUs, 2 GPUs, which a cell needs" in err
    assert not list(tmp_path.iterdir())


def test_an_address_where_no_ray_answers_is_told_apart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from objbench.run import ray, ray_address

    monkeypatch.setattr(ray_address, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ray_address.no_answer("127.0.0.1", port) == "nothing within 0.3 s"
        server.accept()[0].close()

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(99)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        other = threading.Thread(target=answer)
        other.start()
        assert ray_address.no_answer("127.0.0.1", port) == "something else does"
        other.join()
    with pytest.raises(UsageError, match="no Ray cluster answers there"):
        ray.connect(f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match="not an address"):
        ray.connect("here")


@pytest.mark.parametrize(
    ("cpus", "gpus", "memory", "fit"),
    [(1, 0, 0, 8), (2, 0.5, 8e9, 4), (1, 0.3, 0, 6), (1, 3, 0, 0), (1, 0, 20e9, 1)],
)
def test_how_many_cells_fit_on_a_node(cpus: float, gpus: float, memory: float, fit: int) -> None:
    from objbench.run.ray import room

    assert room({"CPU": 8.0, "GPU": 2.0, "memory": 32e9}, {"CPU": cpus, "GPU": gpus, "memory": memory}) == fit
    assert room({"CPU": 0.0}, {"CPU": cpus, "GPU": gpus, "memory": memory}) == 0


def test_what_a_node_lacks_is_said_without_the_traceback() -> None:
    from ray.exceptions import RayTaskError

    from objbench.run.ray import answer_line

    said = (
        "The remote function failed to import on the worker. This may be because needed library dependencies are "
        "not installed in the worker environment or cannot be found from sys.path ['/a', '/b']:\n\n"
        "Traceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'objbench'\n"
    )
    error = RayTaskError("survey", said, RuntimeError(said))
    assert answer_line(error) == "ModuleNotFoundError: No module named 'objbench'"
    assert answer_line(RayTaskError("survey", "", OSError("no space"))) == "OSError: no space"


def test_of_many_nodes_without_room_those_with_most_are_named() -> None:
    from objbench.run.ray import no_room

    nodes = [
        {"NodeManagerHostname": f"n{i}", "NodeID": "0" * 56, "Resources": {"CPU": 4.0, "GPU": float(i)}}
        for i in range(100)
    ]
    said = no_room({"CPU": 1.0, "GPU": 200.0}, nodes)
    assert "n99 (00000000) has 4 CPUs, 99 GPUs; n98" in said
    assert "(and 97 more nodes); ask for less" in said
    assert len(said) < 300
