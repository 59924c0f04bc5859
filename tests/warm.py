"""Starts processes of objbench from one that has imported torch already, which saves 2 s of CPU time for each.

`install` changes how this process starts `python [-P] [-X ...] -m objbench...`: the new process is forked from a server
that has imported other packages, but nothing of objbench and no plugin. It is a child of this process as usual, with
the arguments, environment, folder, streams and file descriptors that were asked for. What differs: its command line in
/proc is that of the server, all have the same PYTHONHASHSEED, and the options -X are ignored. Processes of objbench
that these processes start are forked likewise: each has a server of its own, which is a copy of the first, is in the
same process group, and ends with it. Tests of what differs use the fixture `real_processes`. Linux only.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # for the server, which is started with -P
import compiled

sys.path.pop()  # its processes do not see the tests' modules

IMPORTED = (
    "torch",
    "torchvision.ops",
    "safetensors.torch",
    "scipy.optimize",
    "sklearn.mixture",
    "pandas",
    "pluggy",
    "click",
)
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2): orphans below this process become its children."""
LARGEST = 1 << 17
"""Bytes of a request; a larger one starts a process as usual."""
_start = subprocess.Popen._execute_child  # type: ignore[attr-defined]
executables = {sys.executable}
"""Whose processes are forked. One more is added when all its packages are installed; it has a server of its own."""


class Server:
    """The process that is forked. It ends when the one that uses it does."""

    def __init__(self, connection: socket.socket, environment: Mapping[str, str]) -> None:
        """connection: to it. environment: what it had when it imported."""
        self._socket, self._environment = connection, environment
        self._lock, self._user = threading.Lock(), os.getpid()
        self._libc = ctypes.CDLL(None, use_errno=True)

    @classmethod
    def begin(cls, executable: str) -> Server:
        """Starts one that forks processes of this Python."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with theirs:
            subprocess.Popen(
                [executable, "-P", os.path.abspath(__file__), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=environment,
            )  # fmt: skip
        return cls(ours, environment)

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether a new process would see its environment as the server did when it imported."""
        omp = environment.get("OMP_NUM_THREADS")
        if self._user != os.getpid():  # forked by other means: the server belongs to its parent
            return False
        return (omp, environment.get("MKL_NUM_THREADS", omp)) == ("1", "1") and all(
            environment.get(name) == self._environment.get(name)
            for name in environment.keys() | self._environment.keys()
            if name.startswith(("PYTHON", "MPL", "CUDA")) and name != "PYTHONUNBUFFERED"
        )

    def start(self, request: dict[str, Any], descriptors: Sequence[int]) -> int | None:
        """The pid of a new child; None when the request is too large or the server has ended."""
        data = json.dumps(request | {"parent": os.getpid(), "limit_s": 20}).encode()
        if len(data) > LARGEST:
            return None
        with self._lock:
            self._libc.prctl(SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._socket, [data], list(descriptors))
                return int(self._socket.recv(64) or 0) or None
            except OSError:
                return None
            finally:
                self._libc.prctl(SUBREAPER, 0, 0, 0, 0)


def install(server: Server | None = None) -> None:
    """From now on processes of objbench are forked from a server; without one it starts with the first process."""
    servers = {sys.executable: server} if server else {}

    def execute(
        self: Any, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: bool, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, restore_signals: bool, *of_system: Any,
    ) -> None:  # fmt: skip
        words = _after_m(args)
        *_, new_session, group = of_system
        if words and not (preexec_fn or shell or not restore_signals or group != -1) and close_fds:
            environment = {**(os.environ if env is None else env)}
            if args[0] not in servers:
                servers[args[0]] = Server.begin(args[0])
            forking = servers[args[0]]
            streams = [own if fd == -1 else fd for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
            request = {
                "words": words,
                "safe_path": "-P" in args[: args.index("-m")],
                "environment": environment,
                "folder": os.path.abspath(cwd or "."),
                "new_session": bool(new_session),
                "file_size": resource.getrlimit(resource.RLIMIT_FSIZE),
                "targets": [0, 1, 2, *pass_fds],
            }
            if forking.serves(environment) and (pid := forking.start(request, [*streams, *pass_fds])):
                self.pid, self._child_created = pid, True
                self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
                return
        _start(
            self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, *of_system,
        )  # fmt: skip

    subprocess.Popen._execute_child = execute  # type: ignore[attr-defined]


def uninstall() -> None:
    """Processes start as usual."""
    subprocess.Popen._execute_child = _start  # type: ignore[attr-defined]


def _after_m(args: Any) -> list[str]:
    """The module of objbench and its arguments in a command line; nothing of another command."""
    words = [str(word) for word in args] if isinstance(args, list | tuple) else []
    if not executables.issuperset(words[:1]) or not words:
        return []
    at = 1
    while at < len(words) and words[at] in ("-P", "-X"):
        at += 1 + (words[at] == "-X")
    is_ours = words[at : at + 1] == ["-m"] and words[at + 1].partition(".")[0] == "objbench"
    return words[at + 1 :] if is_ours else []


def serve(connection: socket.socket) -> tuple[dict[str, Any], socket.socket]:
    """Forks a process for each request; returns it in that process, with the connection to a server of its own."""
    while True:
        data, received, _, _ = socket.recv_fds(connection, LARGEST + 1, 64)
        if not data:
            os._exit(0)
        request: dict[str, Any] = json.loads(data)
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            if os.fork():
                os._exit(0)
            ours, theirs = become(request, received, writing)
            if ours:
                return request, ours
            connection = theirs  # this is the new process's server
            continue
        for fd in received:
            os.close(fd)
        os.close(writing)
        pid = os.read(reading, 64)
        os.close(reading)
        os.waitpid(between, 0)  # the new process is now a child of the process that asked
        connection.send(pid)


def become(
    request: dict[str, Any], received: list[int], ready: int
) -> tuple[socket.socket | None, socket.socket]:
    """Makes this process the one that was asked for. Writes its pid to the pipe `ready` once it has its session.

    Returns the two ends of a connection between it and a copy of the server; in the copy None and the other end.
    """
    until = time.monotonic() + request["limit_s"]
    while os.getppid() != request["parent"]:
        if time.monotonic() > until:
            os._exit(127)
        time.sleep(0.001)
    if request["new_session"]:
        os.setsid()
    os.write(ready, str(os.getpid()).encode())
    targets = request["targets"]
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, max(*targets, 300) + 1) for fd in received]
    for copy, target in zip(copies, targets, strict=True):
        os.dup2(copy, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in targets:
            with contextlib.suppress(OSError):
                os.close(int(name))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in targets:  # whoever waits for the end of a stream or a lock waits for the new process alone
            os.dup2(nowhere, fd)
        ours.close()
        return None, theirs
    theirs.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, tuple(request["file_size"]))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(
            line_buffering=unbuffered or stream is sys.stderr or os.isatty(1), write_through=unbuffered
        )  # type: ignore[union-attr]
    if not request["safe_path"]:
        sys.path.insert(0, os.getcwd())
    importlib.import_module("numpy").random.seed(None)
    return ours, theirs


def main() -> None:
    """Serves, and in each forked process runs what was asked for."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the tests; this process ends with theirs
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    compiled.install()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection would copy the memory that processes share
    environment = dict(os.environ)
    request, own = serve(connection)
    install(Server(own, environment))
    sys.argv = words = request["words"]
    code = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as done:
        if isinstance(done.code, str):
            print(done.code, file=sys.stderr)
        code = 1 if isinstance(done.code, str) else int(done.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    _end(code)


def _end(code: int) -> None:
    """Ends as Python does, but for freeing all that was imported, which takes long."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
