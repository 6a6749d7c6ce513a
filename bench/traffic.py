"""Starts the clients and the server of `traffic.c` on a host."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.command import run
from tests.lab.host import Host
from tests.lab.place import Place, Process

_SOURCE = Path(__file__).with_name("traffic.c")
_ON_HOST = "/run/traffic"
# Servers, and clients of one measurement: enough to keep the smallest machine busy, and never more than it has.
_PROCESSES = 2
# Ten thousand linear rules make a connection slow, and a busy machine everything.
_PATIENCE_S = 600


@contextmanager
def compiled() -> Iterator[Path]:
    """Compile the program for any Linux of this machine's kind; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kvm-portfwd-bench-") as directory:
        program = Path(directory, "traffic")
        run(["cc", "-O2", "-static", "-o", program, _SOURCE])
        yield program


@dataclass(frozen=True, slots=True)
class Connections:
    """How many connections a second, and the latency of connect(2) that half and 99 % of them were below."""

    rate: float
    p50: float
    p99: float


class Knocking:
    """A client outside that tries again and again, half a millisecond after each answer."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._process.wait_line("^(up|down) ")

    def first(self, state: str) -> int:
        """The number of the first line that tells of `up` or `down`."""
        return next(number for number, line in enumerate(self._process.lines()) if line.text.startswith(f"{state} "))

    def wait(self, state: str, timeout: float, start: int = 0) -> tuple[float, float]:
        """Wait until it is `up` or `down`, from line `start` on: when the last other try and the first such ended."""
        since, at = self._process.wait_line(f"^{state} ", timeout, start=start).text.split()[1:]
        return float(since), float(at)

    def close(self) -> None:
        """Stop trying."""
        self._process.stop()


class Traffic:
    """The program on one host: its server in `server`, its clients outside."""

    def __init__(self, host: Host, server: Place, program: Path) -> None:
        self._host = host
        self._server = server
        shutil.copy(program, f"/proc/{host.init}/root{_ON_HOST}")

    def serve(self, greeting: int, stream: int) -> None:
        """Start the server on two ports; it ends with the host."""
        server = self._server.popen([_ON_HOST, "serve", str(greeting), str(stream), str(_PROCESSES)])
        server.wait_line("^ready$")

    @contextmanager
    def knocking(self, address: str, port: int) -> Iterator[Knocking]:
        """Try a port all the time."""
        knocking = Knocking(self._host.outside.popen([_ON_HOST, "knock", address, str(port)]))
        try:
            yield knocking
        finally:
            knocking.close()

    def connections(self, address: str, port: int, count: int) -> Connections:
        """Open and close so many connections; the host forgets them afterwards."""
        words = self._client("connect", address, str(port), str(count), str(_PROCESSES))
        self._host.run("conntrack", "--flush")
        return Connections(*map(float, words))

    def throughput(self, address: str, port: int, seconds: float) -> float:
        """Bytes per second of one connection that only receives."""
        (rate,) = self._client("pull", address, str(port), str(seconds))
        return float(rate)

    def _client(self, *words: str) -> list[str]:
        return self._host.outside.run([_ON_HOST, *words], timeout=_PATIENCE_S).stdout.split()
