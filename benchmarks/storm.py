"""Disturbs a run in every way that a machine can, and compares its figures with those of an undisturbed run:

    python -m benchmarks storm [--kills N] [--minutes M] [--seed S]

A matrix of tiny trainings runs in one store, again and again the same command. Meanwhile, at random instants: SIGKILL
of a cell, of the command, or of all; SIGSTOP, once for a minute; a second user with the same command; a checkpoint cut
short; a clock that jumps; a read-only store; a full disk. At the end every figure must be equal, nothing may be left
behind, and no command may have ended with a traceback.

The last two faults need a file system of their own, a small tmpfs. The machine's clock is that of all its programs, so
only that of the commands and trainings jumps, by a library that a C compiler makes of clock.c. Where there is no such
thing, the fault is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

TOY = Path(__file__).resolve().parents[1] / "tests" / "toy_plugin.py"
MODELS = ("toy", "toy-plain")
STEPS = 40
DISK_MB = 24
PATIENCE_S = 900.0
"""After so long without an end, something hangs."""
LINES = {
    "kill a cell": "its process was killed",
    "cut a checkpoint short": "renamed to",
    "second user": "waiting for process",
    "read-only store": "cannot write there",
    "full disk": "free some space",
}
"""Fault -> what the user is told. Who was killed cannot tell."""
KINDS = ("kill the command", "kill all", "stop for a while", "clock jumps", *LINES)
NEED_A_DISK = ("read-only store", "full disk")
NEED_A_CLOCK = ("clock jumps",)
DAY_S = 86400
FULL_S = 120.0
"""A disk is full for so long at most."""


class Storm:
    """One store, and the commands that run in it."""

    def __init__(self, folder: Path, seeds: int, seed: int, say: Callable[[str], None]) -> None:
        """folder: an empty one. seeds: of the matrix. seed: of the faults and their instants."""
        self.folder, self.seeds, self.say = folder, seeds, say
        self.random = random.Random(seed)
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.mounted = not _quiet("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.disk))
        self.out = self.disk / "store"
        self.clock = folder / "clock"
        self.faked = self._own_clock()
        self.slow = folder / "slow"
        self.running: list[subprocess.Popen[bytes]] = []
        self.faults: Counter[str] = Counter()
        self.commands = 0
        self.began = time.monotonic()

    def __enter__(self) -> Storm:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()
        if self.mounted:
            _quiet("umount", "-l", str(self.disk))

    def start(self, out: Path | None = None) -> subprocess.Popen[bytes]:
        """The command, which is always the same."""
        line = [sys.executable, "-m", "objbench", "run", "--models", ",".join(MODELS), "--data", "squares"]
        line += [
            "--plugin",
            str(TOY),
            "--out",
            str(out or self.out),
            "--seeds",
            str(self.seeds),
            "--workers",
            "2",
        ]
        line += ["--checkpoint-every", "0.5", "--json"]
        for model in MODELS:
            for option in (f"steps={STEPS}", f"slow={self.slow}", "at=0"):
                line += ["-o", f"{model}.{option}"]
        self.commands += 1
        with (self.folder / f"{self.commands}.out").open("wb") as stdout, self.told().open("wb") as stderr:
            process = subprocess.Popen(
                line,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                env=os.environ | self.faked | {"OMP_NUM_THREADS": "1"},
            )
        self.running.append(process)
        return process

    def told(self, number: int = 0) -> Path:
        """The file with what a command, by default the last, said on stderr."""
        return self.folder / f"{number or self.commands}.err"

    def figures(self, out: Path | None = None) -> list[dict[str, float]]:
        """Runs the command to its end, undisturbed; the metrics of all cells."""
        number = self.commands + 1
        self.set_clock(0)
        code = self.start(out).wait(PATIENCE_S)
        self.running.pop()
        if code:
            raise AssertionError(f"exit code {code}: {self.told(number).read_text()}")
        return [row["metrics"] for row in json.loads((self.folder / f"{number}.out").read_text())]

    def cells(self) -> list[int]:
        """The processes of trainings in the store."""
        return _processes("objbench.run.worker", f"{self.out}/cells/")

    def kill_all(self) -> None:
        """SIGKILL for commands and trainings with all that they have started."""
        for process in self.running:
            _signal(process.pid, signal.SIGKILL, group=True)
            process.wait()
        for cell in self.cells():
            _signal(cell, signal.SIGKILL, group=True)
        self.running.clear()

    def disturb(self, fault: str) -> None:
        """Does one thing."""
        self.faults[fault] += 1
        self.say(f"{time.monotonic() - self.began:6.1f} s  {fault}")
        match fault:
            case "kill a cell":
                for cell in self.cells()[:1]:
                    _signal(cell, signal.SIGKILL)
            case "kill the command":
                _signal(self.running[0].pid, signal.SIGKILL)
            case "kill all":
                self.kill_all()
            case "stop for a while":
                stopped = self.random.choice([*self.cells(), self.running[0].pid])
                _signal(stopped, signal.SIGSTOP)
                time.sleep(60 if self.faults[fault] == 1 else self.random.uniform(0.5, 3))
                _signal(stopped, signal.SIGCONT)
            case "clock jumps":
                self.set_clock(self.random.choice((-400, -1, -0.01, 0, 0.01, 1, 400)) * DAY_S)
            case "second user":
                self.start()
            case "cut a checkpoint short":
                self.kill_all()
                for file in sorted(self.out.glob("cells/*/checkpoint-*"))[:1]:
                    os.truncate(file, file.stat().st_size // 2)
            case "read-only store":
                self.read_only()
            case "full disk":
                self.fill()

    def _own_clock(self) -> dict[str, str]:
        """The environment of programs whose clock is ours; {} when that cannot be done here."""
        library = self.folder / "clock.so"
        if _quiet(
            "cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(Path(__file__).with_name("clock.c"))
        ):
            return {}
        made = {"LD_PRELOAD": str(library), "STORM_CLOCK": str(self.clock)}
        self.set_clock(DAY_S)
        line = [sys.executable, "-c", "import time; print(time.time())"]
        ran = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | made)
        works = not ran.returncode and float(ran.stdout) > time.time() + DAY_S / 2
        self.set_clock(0)
        return made if works else {}

    def set_clock(self, seconds: float) -> None:
        """Lets the clock of all commands and trainings jump to so much after the machine's."""
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(f"{seconds:+.0f}")
        fresh.replace(self.clock)  # never half-written

    def read_only(self) -> None:
        """A command of somebody who may only read."""
        view = self.folder / "view"
        view.mkdir(exist_ok=True)
        _quiet("mount", "--bind", str(self.disk), str(view))
        _quiet("mount", "-o", "remount,ro,bind", str(view))
        try:
            code = self.start(view / "store").wait(PATIENCE_S)
            self.running.pop()
            assert code == 2, f"exit code {code}: {self.told().read_text()}"
        finally:
            _quiet("umount", "-l", str(view))

    def fill(self) -> None:
        """A disk that is full until the commands have given up."""
        filler = self.disk / "filler"
        end = time.monotonic() + FULL_S
        try:
            with filler.open("ab", buffering=0) as file:
                while self.running and time.monotonic() < end:
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(4096))
                    self.tidy()
                    time.sleep(0.05)
        finally:
            filler.unlink()

    def has_a_target(self, fault: str) -> bool:
        """Whether there is what a fault would strike; one that strikes nothing tries nothing."""
        match fault:
            case "kill a cell" | "full disk":
                return bool(self.cells())
            case "cut a checkpoint short":
                return any(self.out.glob("cells/*/checkpoint-*"))
        return True

    def left_out(self) -> tuple[str, ...]:
        """The faults that cannot be tried here."""
        return (() if self.mounted else NEED_A_DISK) + (() if self.faked else NEED_A_CLOCK)

    def tidy(self) -> None:
        """Forgets the commands that have ended."""
        self.running = [process for process in self.running if process.poll() is None]

    def blow(self, kills: int, seconds: float, kinds: Sequence[str]) -> None:
        """Disturbs so often, or for so long."""
        kinds = [kind for kind in kinds if kind not in self.left_out()]
        self.slow.touch()
        waiting: list[str] = []
        while sum(self.faults.values()) < kills and time.monotonic() - self.began < seconds:
            self.tidy()
            if not self.running:
                self.start()
            time.sleep(self.random.uniform(0, 5))
            self.tidy()
            if self.running:  # else the command has just ended
                if not waiting:  # each kind once, in any order, before one comes again
                    waiting = self.random.sample(kinds, len(kinds))
                while not self.has_a_target(waiting[-1]) and self.running:
                    time.sleep(0.05)
                    self.tidy()
                if self.running:
                    self.disturb(waiting.pop())
        self.slow.unlink()

    def left_behind(self) -> list[str]:
        """Processes and half-written files that are there when all has ended."""
        end = time.monotonic() + 10
        while (alive := _processes(str(self.out))) and time.monotonic() < end:
            time.sleep(0.1)
        hidden = [str(path.relative_to(self.out)) for path in self.out.rglob(".*")]
        return [f"process {process}" for process in alive] + hidden

    def words(self) -> str:
        """All that the commands said on stderr."""
        return "".join(self.told(number).read_text() for number in range(1, self.commands + 1))


def storm(
    folder: Path,
    kills: int,
    seconds: float,
    seeds: int = 2,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Runs a storm in an empty folder; what is wrong after it."""
    with Storm(folder, seeds, seed, say) as run:
        calm = run.figures(folder / "calm")
        run.began = time.monotonic()
        run.blow(kills, seconds, kinds)
        for process in run.running:  # these may finish what they do
            process.wait(PATIENCE_S)
        wrong = []
        after = run.figures()
        if after != calm:
            wrong.append(f"figures differ: {after}, undisturbed {calm}")
        if left := run.left_behind():
            wrong.append(f"left behind: {', '.join(left)}")
        words = run.words()
        if "Traceback" in words:
            wrong.append(f"a traceback: {words[words.index('Traceback') :]}")
        for fault, count in sorted(run.faults.items()):
            told = words.count(LINES[fault]) if fault in LINES else "-"
            say(f"{fault:<24} {count:>4} times, lines told: {told}")
            if told == 0 and count >= 3:
                wrong.append(f"{fault}: nobody was told")
        if not run.mounted and set(kinds) & set(NEED_A_DISK):
            say("read-only store and full disk: left out, as no tmpfs can be mounted here")
        if not run.faked and set(kinds) & set(NEED_A_CLOCK):
            say("clock jumps: left out, as no library can be compiled or preloaded here")
        figures = sum(len(metrics) for metrics in calm)
        say(
            f"{run.commands} commands; {figures} figures of {len(calm)} cells "
            + ("differ" if after != calm else "are equal")
        )
        return wrong


def _processes(*words: str) -> list[int]:
    """Processes whose command line has these words, but for this one."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = file.read_text(errors="replace")
            if all(word in line for word in words) and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
    return sorted(found)


def _signal(process: int, number: int, group: bool = False) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(process, number)


def _quiet(*words: str) -> int:
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode
    except OSError:
        return 1


def main(words: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks storm", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, metavar="N", help="faults  [default: 40]")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="at most  [default: 10]")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="seeds of the matrix  [default: 4]")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the faults  [default: 0]")
    parsed = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the disk and what runs in it do not stay behind
    with tempfile.TemporaryDirectory(prefix="storm-", ignore_cleanup_errors=True) as folder:
        wrong = storm(Path(folder), parsed.kills, 60 * parsed.minutes, parsed.seeds, parsed.seed)
    for line in wrong:
        print(f"WRONG: {line}")
    return bool(wrong)
