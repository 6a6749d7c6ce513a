"""Limits for each source, and the log of connections: who is over a limit is dropped, and no one else.

Each question is asked from an address of which limits know nothing yet, since what they count is lost with a wipe.
"""

import itertools
import json
import re
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Network

from tests.chaos.admission import ANYBODY
from tests.chaos.model import COUNTED, RATED, STEADY
from tests.chaos.server import TCP_PORT
from tests.chaos.stage import Stage
from tests.lab.host import CLIENT4, PUBLIC4
from tests.lab.place import wait_until

_RATE, _OPEN = 3, 2
_PATIENT_S, _SILENT_S = 3.0, 0.4
_LINES = 2_000
# The kernel looks through its connections once a minute where nothing happens (gc_worker in
# net/netfilter/nf_conntrack_core.c), and one that is reset would stay for ten seconds.
_LOGGED_WITHIN_S = 90.0
_SOONER = "net.netfilter.nf_conntrack_tcp_timeout_close=1"
_RESET = struct.pack("ii", 1, 0)


class Limits:
    """Asks on one stage; each method says what is wrong."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        stage.host.run("sysctl", "-q", "-w", _SOONER)
        self._sources = map(str, IPv4Network(ANYBODY).hosts())
        self._checks: list[Callable[[], list[str]]] = [self._rate, self._open_and_log]
        self._turn = itertools.cycle(self._checks)

    def wrong(self) -> list[str]:
        """Ask of one of them in turn."""
        return next(self._turn)()

    def _connected(self, at_end: ExitStack, source: str, port: int, timeout: float) -> socket.socket | None:
        try:
            connection = at_end.enter_context(
                self._stage.host.outside.connect(PUBLIC4, port, source=source, timeout=timeout)
            )
            connection.sendall(b"?")
            return connection if connection.recv(1) == b"?" else None
        except OSError:
            return None

    def _rate(self) -> list[str]:
        with ExitStack() as at_end:
            source, other = next(self._sources), next(self._sources)
            asked = [(source, _PATIENT_S)] * _RATE + [(source, _SILENT_S), (other, _PATIENT_S)]
            answered = [self._connected(at_end, who, RATED, wait) is not None for who, wait in asked]
        wanted = [True] * _RATE + [False, True]
        return [f"port {RATED} from {source}, and then from {other}: {answered}"] * (answered != wanted)

    def _open_and_log(self) -> list[str]:
        lost = self._lost()
        with ExitStack() as at_end:
            source, other = next(self._sources), next(self._sources)
            asked = [(source, _PATIENT_S)] * _OPEN + [(source, _SILENT_S), (other, _PATIENT_S)]
            found = [self._connected(at_end, who, COUNTED, wait) for who, wait in asked]
            answered = [connection is not None for connection in found]
            if answered != [True] * _OPEN + [False, True]:
                return [f"port {COUNTED} from {source}, and then from {other}: {answered}"]
            first = found[0]
            assert first is not None
            own_port = first.getsockname()[1]
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            first.close()
            again = self._connected(at_end, source, COUNTED, _PATIENT_S)
        self._check_logged(f"{source}:{own_port}", lost)
        return [f"port {COUNTED} from {source} once one was closed: no answer"] * (again is None)

    def _check_logged(self, client: str, lost: int) -> None:
        """See that the journal has where a connection began and where it ended, while there is one that reads.

        Beside 100,000 connections that go at once the kernel may have no room for one more: then it has to be counted.
        """
        if self._stage.world.short & {"journal", "run"}:
            return
        there = re.escape(f"tcp {client} -> {PUBLIC4}:{COUNTED} -> ")
        patterns = [rf"^{word} {STEADY}: {there}" for word in ("connected", "disconnected")]
        what = f"the journal says where {client} began and ended"
        wait_until(
            lambda: all(self._is_logged(pattern) for pattern in patterns) or self._lost() > lost,
            what,
            timeout=_LOGGED_WITHIN_S,
        )

    def _lost(self) -> int:
        """How many begins and ends of connections the daemon counts as lost."""
        number: int = json.loads(self._stage.host.portfwd("status", "--json").stdout)["lost_connection_events"]
        return number

    def _is_logged(self, pattern: str) -> bool:
        return re.search(pattern, self._journal(), re.MULTILINE) is not None

    def _journal(self) -> str:
        return self._stage.host.run("journalctl", "--output=cat", f"--lines={_LINES}", check=False).stdout


def is_online(stage: Stage) -> bool:
    """Whether a guest reaches who is outside, as libvirt lets it."""
    try:
        with stage.origins[STEADY].connect(CLIENT4, TCP_PORT, timeout=_PATIENT_S) as connection:
            connection.sendall(b"?")
            return connection.recv(1) == b"?"
    except OSError:
        return False
