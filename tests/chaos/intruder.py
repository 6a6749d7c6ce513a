"""Packets that must get nowhere, after every fault, whatever state that left: those of who is banned, too.

A guest asks for the host's 127.0.0.1 through its bridge, and sends as the 1:1 guest beside it; a client outside sends
with addresses of guests; both try ports that nothing publishes. A packet that is let through follows each try, so that
silence means that the try was refused and not that it is still under way.
"""

import itertools
import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from tests.chaos.admission import BANNABLE
from tests.chaos.model import HOSTILE, STEADY, World
from tests.chaos.packets import HEAD_BYTES, datagram, frames_socket, raw_socket
from tests.chaos.server import TCP_PORT, UDP_PORT
from tests.chaos.stage import HOSTILE4, HOSTILE6, SECRET_PORT, Stage
from tests.lab.host import CLIENT4, CLIENT6, OTHER_LINK4, PUBLIC4, PUBLIC4_SECOND, PUBLIC6
from tests.lab.netns import open_socket
from tests.lab.probe import Prober

_UNPUBLISHED = (22, 81, 9002)
_SERVED = (443, 8080)
# Nothing listens there, and a refusal comes from the kernel at once.
_CLOSED = 1
_FENCES = 3
_LATE_S = 0.1
_PATIENT_S = 10.0
_INTERVAL_S = 0.01
LOOPBACK = IPv4Address("127.0.0.1")
_STEADY_PUBLIC = "198.51.100.9"
_PRIVATE, _GATEWAY4, _GATEWAY6 = "192.168.121.50", "192.168.121.1", "2001:db8:121::1"
_FIRST_PORT, _PORTS = 20_000, 40_000


@dataclass(frozen=True, slots=True)
class Knock:
    """A connection that must not be accepted, or a datagram that must not be answered."""

    origin: str
    source: str
    protocol: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.protocol} {self.address} port {self.port} from {self.origin} {self.source}"


@dataclass(frozen=True, slots=True)
class Forgery:
    """A datagram with an address that is not its sender's."""

    origin: str
    source: str
    address: str

    def __str__(self) -> str:
        return f"a datagram to {self.address} that {self.origin} sent as {self.source}"


FORGERIES = (
    *(Forgery("outside", source, PUBLIC4) for source in (HOSTILE4, _PRIVATE)),
    *(Forgery("outside", HOSTILE4, address) for address in (_STEADY_PUBLIC, _PRIVATE)),
)
# Without our rules, libvirt translates what its own guests send, as it does for every guest.
OF_NEIGHBOUR = Forgery(HOSTILE, _PRIVATE, CLIENT4)


def knocks(world: World, *, denies: bool = True) -> Iterator[Knock]:
    """Everything to try; of those who are denied only where what `denies` them is in force."""
    loopback = (("tcp", SECRET_PORT), ("tcp", TCP_PORT), ("udp", UDP_PORT))
    yield from (Knock(HOSTILE, HOSTILE4, protocol, str(LOOPBACK), port) for protocol, port in loopback)
    for port in _UNPUBLISHED:
        yield from (Knock("outside", CLIENT4, "tcp", address, port) for address in (PUBLIC4, PUBLIC4_SECOND))
        yield Knock("outside", CLIENT6, "tcp", PUBLIC6, port)
        yield from (Knock(HOSTILE, HOSTILE4, "tcp", address, port) for address in (_GATEWAY4, OTHER_LINK4))
        yield Knock(HOSTILE, HOSTILE6, "tcp", _GATEWAY6, port)
    for source in world.denied.intersection(BANNABLE) if denies else ():
        yield from (Knock("outside", source, "tcp", address, TCP_PORT) for address in (PUBLIC4, _STEADY_PUBLIC))
        yield Knock("outside", source, "udp", PUBLIC4, UDP_PORT)
    for domain in world.domains.values():
        for port in _SERVED:
            yield Knock("outside", CLIENT4, "tcp", domain.address4, port)
            yield Knock("outside", CLIENT6, "tcp", domain.address6, port)
            if domain.key != STEADY:
                yield Knock(HOSTILE, HOSTILE4, "tcp", domain.address4, port)


class Intruder:
    """Tries all of it; `tries` counts what was sent."""

    def __init__(self, stage: Stage, at_end: ExitStack) -> None:
        self._world = stage.world
        self._origins: dict[str, Prober] = {"outside": stage.host.outside, HOSTILE: stage.hostile.place}
        self.tries = 0
        self._numbers = itertools.count()
        spaces = {name: prober.namespace for name, prober in self._origins.items()}
        self._senders = {
            name: at_end.enter_context(raw_socket(space, socket.IPPROTO_RAW)) for name, space in spaces.items()
        }
        listening = (stage.guests[STEADY].place.namespace, spaces["outside"])
        self._receivers = [at_end.enter_context(raw_socket(space, socket.IPPROTO_UDP)) for space in listening]
        self._seen = at_end.enter_context(frames_socket(spaces[HOSTILE]))

    def answered(self, wanted: Iterable[Knock]) -> list[str]:
        """Say what was answered of what must not be."""
        self._from_loopback()
        with ExitStack() as at_end:
            tried = [(knock, self._tried(at_end, knock)) for knock in wanted]
            self.tries += len(tried)
            for name, address in (("outside", PUBLIC4), (HOSTILE, _GATEWAY4)):
                for _ in range(_FENCES):
                    self._origins[name].tcp(address, _CLOSED)
            _wait([connection for _, connection in tried])
            found = [f"answered: {knock}" for knock, connection in tried if _is_answered(connection)]
        return found + self._from_loopback()

    def _from_loopback(self) -> list[str]:
        """Say whether anything came to the guest from 127.0.0.1 since the last call, whatever its kernel made of that.

        A refusal shows as much as an answer: that the host took what was sent to its own address.
        """
        came = sum(packet[12:16] == LOOPBACK.packed for packet in _read(self._seen))
        return [f"{came} packets came to the guest from {LOOPBACK}"] if came else []

    def _tried(self, at_end: ExitStack, knock: Knock) -> socket.socket:
        family = socket.AF_INET6 if ":" in knock.address else socket.AF_INET
        kind = socket.SOCK_DGRAM if knock.protocol == "udp" else socket.SOCK_STREAM
        connection = at_end.enter_context(open_socket(self._origins[knock.origin].namespace, family, kind))
        connection.settimeout(0)
        with suppress(OSError):
            connection.bind((knock.source, 0))
            connection.connect((knock.address, knock.port))
            connection.send(b"?")
        return connection

    def arrived(self, forgeries: Iterable[Forgery], *, open_way: bool) -> list[str]:
        """Say which forged datagrams arrived; over an `open_way`, what follows them and is not forged has to."""
        self._received()
        sent = [(forgery, self._send(forgery.origin, forgery.source, forgery.address)) for forgery in forgeries]
        self.tries += len(sent)
        came, missing = self._followed() if open_way else (self._late(), False)
        lost = ["a datagram that is not forged does not arrive"] * missing
        return lost + [f"arrived: {forgery}" for forgery, mark in sent if mark in came]

    def _followed(self) -> tuple[set[bytes], bool]:
        """Send honest datagrams until one of each way arrives: all that came, and whether one of them did not."""
        honest = {("outside", CLIENT4, PUBLIC4): set[bytes](), (HOSTILE, HOSTILE4, CLIENT4): set[bytes]()}
        came, deadline = set[bytes](), time.monotonic() + _PATIENT_S
        while not all(came & marks for marks in honest.values()):
            if time.monotonic() > deadline:
                return came, True
            for way, marks in honest.items():
                marks.add(self._send(*way))
            time.sleep(_INTERVAL_S)
            came |= self._received()
        return came, False

    def _late(self) -> set[bytes]:
        """Where nothing is let through that could follow them, give forged ones a moment."""
        time.sleep(_LATE_S)
        return self._received()

    def _send(self, origin: str, source: str, address: str) -> bytes:
        """Send a datagram as `source`, and give what it says."""
        number = next(self._numbers)
        mark = b"intruder %08d" % number
        own_port, port = _FIRST_PORT + number % _PORTS, UDP_PORT if address != CLIENT4 else _CLOSED
        with suppress(OSError):
            self._senders[origin].sendto(datagram(source, address, own_port, port, mark), (address, 0))
        return mark

    def _received(self) -> set[bytes]:
        """What arrived at the guest and outside since the last call."""
        return {packet[HEAD_BYTES:] for receiver in self._receivers for packet in _read(receiver)}


def _read(receiver: socket.socket) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            yield receiver.recv(2048)


def _wait(connections: Iterable[socket.socket]) -> None:
    """Wait until each has its answer or refusal, or the time is over."""
    waiting, deadline = select.poll(), time.monotonic() + _LATE_S
    for connection in connections:
        datagrams = connection.type == socket.SOCK_DGRAM
        waiting.register(connection, select.POLLIN if datagrams else select.POLLOUT)
    while (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in waiting.poll(1000 * left):
            waiting.unregister(descriptor)


def _is_answered(connection: socket.socket) -> bool:
    try:
        if connection.type == socket.SOCK_DGRAM:
            return bool(connection.recv(1))
        connection.getpeername()
    except OSError:
        return False
    return True
