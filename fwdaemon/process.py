"""The one place that starts programs.

No shell, absolute paths from the system's own directories, a clean environment, a time limit. Who runs what is decided
elsewhere.
"""

import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Timer
from typing import Protocol

from fwdaemon.errors import ProcessError

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C"}
_TIMEOUT = 30.0
_RECENT = 64


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended with status 0."""

    stdout: str
    stderr: str


class Runner(Protocol):
    """Whoever runs programs for us."""

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """Run a program to its end.

        Raises:
            ProcessError: it is not installed, ended with another status than 0, or took longer than 30 seconds.

        """
        ...

    def started(self, pid: int) -> bool:
        """Tell whether `pid` is, or was until lately, a program of ours."""
        ...


class SystemRunner:
    """Runs programs of this machine. Safe to use from one thread at a time."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_RECENT)

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """See `Runner.run`."""
        process = self._start(argv, stdin)
        with process:
            self._recent.append(process.pid)
            try:
                stdout, stderr = process.communicate(stdin, timeout=_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise ProcessError(argv, stdin, -1, f"it was still running after {_TIMEOUT:.0f} seconds") from error
        if process.returncode != 0:
            raise ProcessError(argv, stdin, process.returncode, stderr)
        return Finished(stdout, stderr)

    def started(self, pid: int) -> bool:
        """See `Runner.started`."""
        return pid in self._recent

    def _start(self, argv: Sequence[str], stdin: str) -> "subprocess.Popen[str]":
        program = find_program(argv[0])
        if program is None:
            raise ProcessError(argv, stdin, 127, "the program is not installed")
        pipe = subprocess.PIPE
        # Arguments are built from our own constants and validated names, and no shell reads them.
        return subprocess.Popen(  # noqa: S603
            [program, *argv[1:]],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=_ENVIRONMENT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )


class Companion:
    """A module of this program that runs as a process of its own, and answers each line with a line.

    It finds the same modules as we do. It should end when its standard input does, so that it cannot outlive us.
    """

    def __init__(self, module: str, argument: str, environment: Mapping[str, str]) -> None:
        """Start it; `environment` is all it is told besides a clean one. Raises OSError when that is impossible."""
        modules = ":".join(path for path in sys.path if path)
        self._process = subprocess.Popen(  # noqa: S603  every word is ours
            [sys.executable, "-P", "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_ENVIRONMENT, "PYTHONPATH": modules, **environment},
            text=True,
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def exchange(self, line: str, patience: float) -> str:
        """Send a line and wait for one; empty when it ended, or had to be ended after `patience` seconds."""
        sink, source = self._process.stdin, self._process.stdout
        if sink is None or source is None:
            return ""
        limit = Timer(patience, self._process.kill)
        limit.start()
        try:
            sink.write(f"{line}\n")
            sink.flush()
            return source.readline()
        except OSError:  # it does not listen any more
            return ""
        finally:
            limit.cancel()

    def close(self, patience: float) -> int:
        """End it, the hard way after `patience` seconds, and give its status."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not read any more is lost
                if pipe is not None:
                    pipe.close()
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def find_program(name: str) -> str | None:
    """Give the absolute path of a system program, or `None` where it is not installed."""
    return shutil.which(name, path=_PATH)
