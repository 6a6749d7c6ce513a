"""The daemon under test, running on a lab host as the service would run it."""

import re
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

from tests.lab.command import LabError
from tests.lab.place import PATIENCE, Line, Place, Process

CONFIG = "/etc/portfwd.toml"
StartProgram = Callable[[Mapping[str, str]], Process]


class Daemon:
    """A running daemon. Readiness and status come as systemd would get them, the audit from standard error."""

    present: ClassVar[WeakSet["Daemon"]] = WeakSet()

    def __init__(self, place: Place, init: int, number: int, start: StartProgram) -> None:
        """Start it with these variables in its environment."""
        # A socket file in the host's /run; abstract names would belong to the machine's network namespace.
        path = f"/run/lab-notify-{number}"
        self._place = place
        self._path = Path(f"/proc/{init}/root{path}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._path))
        self._told: list[str] = []
        self.process: Process = start({"NOTIFY_SOCKET": path})
        self.present.add(self)

    @property
    def pid(self) -> int:
        """Its process number on the machine."""
        return self.process.pid

    def told(self) -> list[str]:
        """Every line sent through the notification socket so far: `READY=1`, `STATUS=…`."""
        while self._has_told(0):
            self._told += self._socket.recv(65536).decode(errors="replace").splitlines()
        return list(self._told)

    def _has_told(self, within: float) -> bool:
        # Unlike select(2), poll(2) takes any descriptor.
        told = select.poll()
        told.register(self._socket, select.POLLIN)
        return bool(told.poll(within * 1000))

    def wait_told(self, pattern: str, timeout: float = PATIENCE, *, start: int = 0) -> None:
        """Wait for a notification, from number `start` on."""
        deadline = time.monotonic() + timeout
        while not any(re.search(pattern, line) for line in self.told()[start:]):
            if time.monotonic() > deadline or not self.process.running:
                raise LabError(f"the daemon did not tell {pattern!r}; it printed:\n{self.process.text()}")
            self._has_told(0.02)

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """Wait for the first `READY=1`."""
        self.wait_told("^READY=1$", timeout)

    def reload(self, timeout: float = PATIENCE) -> None:
        """SIGHUP, and wait until the daemon says that it is ready again."""
        before = len(self.told())
        self.sighup()
        self.wait_told("^READY=1$", timeout, start=before)

    def reload_with(self, config: str, timeout: float = PATIENCE) -> None:
        """Replace the configuration, then as `reload`."""
        self._place.run(["sh", "-c", 'cat >"$1"', "sh", CONFIG], stdin=config)
        self.reload(timeout)

    def log_lines(self) -> list[Line]:
        """What it wrote to standard error so far."""
        return self.process.lines()

    def take(self) -> list[Line]:
        """Give what it logged since the last call; forget that, and its notifications, as a run of hours has to."""
        self.told()
        self._told.clear()
        return self.process.take_lines()

    def wait_log(self, pattern: str, timeout: float = PATIENCE, *, start: int = 0) -> Line:
        """The first log line from number `start` on that the pattern is found in."""
        return self.process.wait_line(pattern, timeout, start=start)

    def sighup(self) -> None:
        """Ask it to read its configuration again."""
        self.process.send(signal.SIGHUP)

    def terminate(self, timeout: float = PATIENCE) -> int:
        """Stop it as systemd would; its exit status."""
        return self.process.stop(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        self.process.stop(signal.SIGKILL)

    def close(self) -> None:
        """End it if it still runs, the hard way if need be, and forget its socket."""
        if self.process.running:
            self.kill()
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._path.unlink(missing_ok=True)
        self.present.discard(self)


def last_lines(number: int) -> str:
    """What each daemon that a test has not closed yet printed last."""
    tails = ((id(daemon), daemon.log_lines()[-number:]) for daemon in list(Daemon.present))
    return "\n".join(f"{name:x} at {line.time:.3f}: {line.text}" for name, lines in tails for line in lines)
