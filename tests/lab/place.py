"""A place in the lab where programs run and probes start: a host, the network outside it, a guest's network."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from tests.lab.command import Completed, LabError, run
from tests.lab.probe import Prober

_ENVIRONMENT = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}


# How many seconds anything may take that must come, on a slow machine too; waiting costs nothing where it comes sooner.
PATIENCE = 60.0
# So many times as long as a look took, the next one waits, up to this many seconds for each.
_PAUSES, _LONGEST_PAUSE_S = 2, 0.1


def wait_until(
    condition: Callable[[], bool], what: str | Callable[[], str], timeout: float = PATIENCE, interval: float = 0.01
) -> None:
    """Return as soon as `condition` holds; fail when it does not within `timeout` seconds.

    `what` says what was awaited; a function of it is called only then, and can tell how things are instead.
    A condition that takes long to look at, as one that runs programs, is looked at less often: what is awaited needs
    the processor, too.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        if condition():
            return
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:g} s in vain: {what if isinstance(what, str) else what()}")
        time.sleep(max(interval, min(time.monotonic() - began, _LONGEST_PAUSE_S) * _PAUSES))


def child_of(pid: int, proc: Path = Path("/proc")) -> int | None:
    """The first child of a process, by the numbers of that `proc`."""
    try:
        children = (proc / f"{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


@dataclass(frozen=True, slots=True)
class Line:
    """What a program printed, and when (seconds of `time.monotonic`)."""

    time: float
    text: str


class Program(Protocol):
    """What runs a process in the lab, and hears of its end."""

    output: IO[bytes]

    @property
    def pid(self) -> int | None:
        """Its process number on the machine; `None` where it ended before that was known."""

    def poll(self) -> int | None:
        """Its exit status once it ended, negative for a signal."""

    def wait(self, timeout: float) -> int:
        """Wait for that; raises subprocess.TimeoutExpired."""

    def awake(self) -> None:
        """Do what it takes to hear of the end of a program that was stopped."""


class Entered:
    """A program that nsenter starts."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._entering = subprocess.Popen(  # noqa: S603  the lab chose the words
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        assert self._entering.stdout is not None
        self.output: IO[bytes] = self._entering.stdout

    @property
    def pid(self) -> int | None:
        """Its process number; nsenter forks before it starts the program."""
        wait_until(lambda: child_of(self._entering.pid) is not None or self.poll() is not None, "the program starts")
        return child_of(self._entering.pid)

    def poll(self) -> int | None:
        """Its exit status once it ended."""
        return self._entering.poll()

    def wait(self, timeout: float) -> int:
        """Wait for that."""
        return self._entering.wait(timeout)

    def awake(self) -> None:
        """Wake nsenter, which stops itself along with a program that was stopped."""
        self._entering.send_signal(signal.SIGCONT)


class Process:
    """A program that keeps running in the lab. Its output is collected; signals reach the program itself."""

    def __init__(self, program: Program, name: str) -> None:
        self._program = program
        self._lines: list[Line] = []
        self._reader = threading.Thread(target=self._read, name=f"lab-read-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._program.output as output:
            for raw in output:
                self._lines.append(Line(time.monotonic(), raw.decode(errors="replace").rstrip("\n")))

    @property
    def pid(self) -> int:
        """The program's process number on the machine."""
        pid = self._program.pid
        if pid is None:
            raise LabError(f"the program ended at once:\n{self.text()}")
        return pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._program.poll() is None

    def lines(self) -> list[Line]:
        """Everything printed so far, standard output and error together."""
        return list(self._lines)

    def text(self) -> str:
        """The same as one text."""
        return "\n".join(line.text for line in self.lines())

    def take_lines(self) -> list[Line]:
        """Give everything printed since the last call, and forget it: hours of it would fill the memory."""
        taken = self.lines()
        del self._lines[: len(taken)]
        return taken

    def wait_line(self, pattern: str, timeout: float = PATIENCE, *, start: int = 0) -> Line:
        """The first line from number `start` on that the pattern is found in; waits for it."""
        deadline = time.monotonic() + timeout
        while True:
            ended = not self.running and not self._reader.is_alive()
            for line in self.lines()[start:]:
                if re.search(pattern, line.text):
                    return line
            if ended or time.monotonic() > deadline:
                raise LabError(f"no line matches {pattern!r} after {timeout:g} s; it printed:\n{self.text()}")
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        status = self._program.wait(timeout)
        self._reader.join(timeout)
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Signal it if it still runs, and wait for its end."""
        if self.running:
            self.send(number)
            self._program.awake()
        return self.wait(timeout)


@dataclass(frozen=True, slots=True)
class Place(Prober):
    """Where to run programs: the files and processes of the host whose PID 1 is `init`, the network of `namespace`.

    `python` runs this project's code there; `pids`, when given, is another process namespace, so that what is started
    ends with the guest it belongs to.
    """

    init: int
    python: str
    source: Path
    pids: Path | None = None

    def _enter(self, argv: Sequence[str]) -> list[str]:
        pids = f"--pid={self.pids}" if self.pids else "--pid"
        spaces = ["--mount", "--uts", "--ipc", "--cgroup", pids, f"--net={self.namespace}", "--root", "--wd"]
        return ["nsenter", f"--target={self.init}", *spaces, "--", *argv]

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """What programs there find in their environment."""
        return {**_ENVIRONMENT, "PYTHONPATH": str(self.source), **more}

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str = "",
        check: bool = True,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program to its end."""
        return run(self._enter(argv), stdin=stdin, check=check, timeout=timeout, env=self.environment(env or {}))

    def popen(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Process:
        """Start a program that keeps running."""
        return Process(Entered(self._enter(argv), self.environment(env or {})), argv[-1])

    def serve(self, name: str, protocol: str, port: int) -> Process:
        """Start a server that answers `NAME CLIENT-ADDRESS`, and wait until it listens."""
        program = self.source / "tests/lab/serve.py"
        process = self.popen([self.python, str(program), name, protocol, str(port)])
        process.wait_line("^ready$")
        return process


def own_python() -> str:
    """The interpreter that runs this very process."""
    return sys.executable
