"""Starts the clients and the server of `traffic.c` on a host."""

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.command import run
from tests.lab.host import Host
from tests.lab.place import Place, Process

_SOURCE = Path(__file__).with_name("traffic.c")
ON_HOST = "/run/traffic"
# Servers, and clients of one measurement: enough to keep the smallest machine busy, and never more than it has.
_PROCESSES = 2
# Ten thousand linear rules make a connection slow, and a busy machine everything.
_PATIENCE_S = 600
# How long a port is watched after the first answer: on a busy machine a late answer can look like an outage.
_WATCHED_S = 1.0


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

    @property
    def changes(self) -> int:
        """How often it has changed so far."""
        return len(self._process.lines())

    @property
    def answers(self) -> bool:
        """Whether the last try was answered."""
        return self._process.lines()[-1].text.startswith("up ")

    def wait(self, state: str, timeout: float) -> tuple[float, float]:
        """Wait until it is `up` or `down` for the first time: when the last other try and the first such ended."""
        since, at = self._process.wait_line(f"^{state} ", timeout).text.split()[1:]
        return float(since), float(at)

    def outage(self, start: int, timeout: float) -> float:
        """Wait for an outage and its end, from change number `start` on; the seconds that the longest of them took."""
        self._process.wait_line("^down ", timeout, start=start)
        lines = [line.text for line in self._process.lines()]
        down = next(number for number, line in enumerate(lines) if number >= start and line.startswith("down "))
        self._process.wait_line("^up ", timeout, start=down)
        time.sleep(_WATCHED_S)
        return longest_outage(line.text for line in self._process.lines()[start:])

    def silence(self, start: int, timeout: float) -> float:
        """Wait until there are no answers any more, from change number `start` on; when the last one came."""
        while True:
            self._process.wait_line("^down ", timeout, start=start)
            time.sleep(_WATCHED_S)
            lines = [line.text for line in self._process.lines()]
            if lines[-1].startswith("down "):
                return float(lines[-1].split()[1])
            start = len(lines)

    def close(self) -> None:
        """Stop trying."""
        self._process.stop()


def longest_outage(lines: Iterable[str]) -> float:
    """Give the seconds from the last answer before the longest outage to the first after it; 0 without any."""
    longest, answered = 0.0, None
    for line in lines:
        state, since, at = line.split()
        if state == "down":
            answered = float(since)
        elif answered is not None:
            longest, answered = max(longest, float(at) - answered), None
    return longest


class Traffic:
    """The program on one host: its server in `server`, its clients outside."""

    def __init__(self, host: Host, server: Place, program: Path) -> None:
        self._host = host
        self._server = server
        shutil.copy(program, f"/proc/{host.init}/root{ON_HOST}")

    def serve(self, greeting: int, stream: int, place: Place | None = None) -> None:
        """Start a server on two ports, in another place if one is given; it ends with the host."""
        server = (place or self._server).popen([ON_HOST, "serve", str(greeting), str(stream), str(_PROCESSES)])
        server.wait_line("^ready$")

    @contextmanager
    def knocking(self, address: str, port: int) -> Iterator[Knocking]:
        """Try a port all the time."""
        knocking = Knocking(self._host.outside.popen([ON_HOST, "knock", address, str(port)]))
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

    @contextmanager
    def flooding(self, address: str, port: int, sources: int, count: int, a_second: int) -> Iterator[Process]:
        """Send first packets from so many sources meanwhile; what is still to be sent at the end is not."""
        words = [ON_HOST, "flood", address, str(port), str(sources), str(count), str(a_second)]
        process = self._host.outside.popen(words)
        try:
            yield process
        finally:
            process.stop()

    def flood(self, address: str, port: int, sources: int, count: int, a_second: int) -> None:
        """Send so many first packets from so many sources, and wait until all are sent."""
        self._client("flood", address, str(port), str(sources), str(count), str(a_second))

    def _client(self, *words: str) -> list[str]:
        return self._host.outside.run([ON_HOST, *words], timeout=_PATIENCE_S).stdout.split()
