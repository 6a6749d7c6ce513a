"""Connections that must not notice: streams whose every byte is checked, and numbered datagrams, round after round.

Some faults cut them by right: when the last NAT rule of a family goes, the kernel stops translating what it translated
so far (nf_nat_unregister_fn, net/netfilter/nf_nat_core.c), and a foreign rule that refuses everything does so until the
gate is ahead of it again. Through those they rest: nothing is under way, and the very same connection has to go on
afterwards.
"""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.lab.place import wait_until
from tests.lab.probe import Prober

_STALLED_S = 20.0
_LOST_AFTER_S = 3.0
_PAUSE_S = 0.02


def _chunk(number: int) -> bytes:
    """Bytes that no other number has."""
    return hashlib.sha256(str(number).encode()).digest() * 32


class Transfer:
    """One connection in a thread of its own; `exchange` sends and checks one piece and raises when it does not come."""

    def __init__(self, what: str, connection: socket.socket, exchange: Callable[[int], int]) -> None:
        self.what = what
        self._connection = connection
        self.bytes = self.pieces = 0
        self.broken: str | None = None
        self._exchange = exchange
        self._may_go, self._is_resting, self._over = threading.Event(), threading.Event(), threading.Event()
        self._may_go.set()
        self._thread = threading.Thread(target=self._run, name=f"steady-{what}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_PAUSE_S) and self.broken is None:
            if not self._may_go.is_set():
                self._is_resting.set()
                self._may_go.wait()
                continue
            try:
                self.bytes += self._exchange(self.pieces)
                self.pieces += 1
            except OSError as error:
                self.broken = f"{self.what}: piece {self.pieces}: {type(error).__name__} {error}"
        self._is_resting.set()

    def rest(self) -> None:
        """Return when nothing is under way."""
        self._is_resting.clear()
        self._may_go.clear()
        self._is_resting.wait(_STALLED_S)

    def go_on(self) -> None:
        """End the rest."""
        self._may_go.set()

    def is_carried(self) -> bool:
        """Whether one more piece comes back, while it rests; it is of no use any more afterwards."""
        self._connection.settimeout(_LOST_AFTER_S)
        try:
            self._exchange(self.pieces)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._may_go.set()
        self._thread.join(_STALLED_S)


def _stream(connection: socket.socket) -> Callable[[int], int]:
    connection.settimeout(_STALLED_S)

    def exchange(number: int) -> int:
        chunk, back = _chunk(number), b""
        connection.sendall(chunk)
        while len(back) < len(chunk):
            part = connection.recv(65536)
            if not part:
                raise ConnectionError("the other side closed the connection")
            back += part
        if back != chunk:
            raise ConnectionError("other bytes came back than were sent")
        return len(chunk)

    return exchange


def _datagrams(connection: socket.socket, name: str) -> Callable[[int], int]:
    connection.settimeout(_LOST_AFTER_S)

    def exchange(number: int) -> int:
        sent = str(number).encode()
        connection.send(sent)
        back = connection.recv(65536)
        if back != name.encode() + b" " + sent:
            raise ConnectionError(f"{back!r} came back for number {number}")
        return len(sent)

    return exchange


def _can_connect(client: Prober, address: str, port: int) -> bool:
    try:
        client.connect(address, port).close()
    except OSError:
        return False
    return True


Ways = Sequence[tuple[Prober, tuple[str, int]]]


@contextmanager
def transfers(streams: Ways, datagrams: tuple[Prober, tuple[str, int]], name: str) -> "Iterator[Steady]":
    """Begin a stream by each of these ways and datagrams by the last, once all can be had; they end with the block."""
    steady = Steady(lambda at_end: _begun(streams, datagrams, name, at_end))
    try:
        yield steady
    finally:
        steady.close()


def _begun(streams: Ways, datagrams: tuple[Prober, tuple[str, int]], name: str, at_end: ExitStack) -> list[Transfer]:
    for origin, (address, port) in streams:
        wait_until(lambda: _can_connect(origin, address, port), f"{address} port {port} answers", timeout=30)  # noqa: B023  it is asked before the next turn
    running = []
    for origin, (address, port) in streams:
        connection = at_end.enter_context(origin.connect(address, port, timeout=5))
        running.append(Transfer(f"tcp {address} port {port}", connection, _stream(connection)))
    client, there = datagrams
    flow = at_end.enter_context(client.flow(*there))
    exchange = _datagrams(flow.connection, name)
    running.append(Transfer(f"udp {there[0]} port {there[1]}", flow.connection, exchange))
    return running


class Steady:
    """All of them."""

    def __init__(self, begin: Callable[[ExitStack], list[Transfer]]) -> None:
        self._begin = begin
        self._before = (0, 0)
        self.resting = self.over = False
        self._at_end = ExitStack()
        self._running = begin(self._at_end)

    def rest(self) -> None:
        """Let all of them rest."""
        if not self.resting:
            for transfer in self._running:
                transfer.rest()
        self.resting = True

    def go_on(self) -> None:
        """Let all go on over the same connections, and return when each has exchanged something."""
        if self.over:
            self._renew()
        if self.resting:
            self.resting = False
            for transfer in self._running:
                transfer.go_on()
        before = [(transfer, transfer.pieces) for transfer in self._running]
        deadline = time.monotonic() + _STALLED_S
        while time.monotonic() < deadline and any(one.pieces <= was and not one.broken for one, was in before):
            time.sleep(_PAUSE_S)

    def end(self) -> list[str]:
        """Say which go on, of connections that were ended while they rested; others begin when all is to go on."""
        self.over = True
        return [f"goes on: {transfer.what}" for transfer in self._running if transfer.is_carried()]

    def _renew(self) -> None:
        self._before = self.volume()
        self.close()
        self._at_end = ExitStack()
        self._running = self._begin(self._at_end)
        self.resting = self.over = False

    def close(self) -> None:
        """End all of them."""
        for transfer in self._running:
            transfer.close()
        self._at_end.close()

    def losses(self) -> list[str]:
        """What was lost or changed so far."""
        return [transfer.broken for transfer in self._running if transfer.broken is not None]

    def volume(self) -> tuple[int, int]:
        """How many bytes went through the streams, and how many datagrams through the others."""
        streams, others = self._running[:-1], self._running[-1:]
        sent, pieces = self._before
        return sent + sum(transfer.bytes for transfer in streams), pieces + sum(transfer.pieces for transfer in others)
