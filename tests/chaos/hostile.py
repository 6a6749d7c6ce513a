"""Senders that mean harm, at a bounded rate and all the time.

The hostile guest claims one address of its network after the other by ARP and neighbour discovery, a client outside
sends with addresses of guests, and junk goes to the daemon's control socket and to the port of its metrics.
"""

import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from fwdaemon.kernel.packets import multicast_mac, solicitation
from tests.chaos.packets import datagram, raw_socket
from tests.chaos.server import UDP_PORT
from tests.chaos.stage import Stage
from tests.lab.host import PUBLIC4
from tests.lab.netns import open_socket

# So many of each kind in a turn; that makes some hundred packets a second.
_PACKETS, _PAUSE_S = 10, 0.1
_ARP, _IP, _IPV6 = 0x0806, 0x0800, 0x86DD
_EVERYBODY = b"\xff" * 6
_GATEWAY4, _GATEWAY6 = IPv4Address("192.168.121.1"), IPv6Address("2001:db8:121::1")
# None of them is the address of another guest: which of two has an address, no host can know.
_FIRST4, _FIRST6, _CLAIMED = IPv4Address("192.168.121.100"), IPv6Address("2001:db8:121::1000"), 100
_METRICS = ("127.0.0.1", 9750)
_JUNK = (
    b"\0",
    b"GET /" + b"a" * 4000,
    b'{"method": "\xff"}\0',
    b'{"method": ' + b"[" * 2000 + b"\0",
    bytes(range(256)) * 8,
    b"\x16\x03\x01\x02\0\x01",
)
_Send = Callable[[int], None]


@contextmanager
def hostile_senders(stage: Stage) -> Iterator[None]:
    """Have all of them send until the block ends."""
    over = threading.Event()
    with ExitStack() as at_end:
        senders = [*_of_guest(stage, at_end), _forging(stage, at_end), *_junk(stage)]
        thread = threading.Thread(target=_send, args=(senders, over), name="hostile", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _send(senders: list[_Send], over: threading.Event) -> None:
    for number in itertools.count():
        if over.wait(_PAUSE_S):
            return
        for send in senders:
            # What is sent to may be away for the moment, or have no room for more.
            with suppress(OSError):
                send(number)


def _of_guest(stage: Stage, at_end: ExitStack) -> Iterator[_Send]:
    space, mac = stage.hostile.place.namespace, bytes.fromhex(stage.hostile.mac().replace(":", ""))
    link = at_end.enter_context(open_socket(space, socket.AF_PACKET, socket.SOCK_DGRAM))

    def claim4(number: int) -> None:
        for one in _turn(number):
            asked = struct.pack("!HHBBH", 1, _IP, 6, 4, 1) + mac + (_FIRST4 + one).packed + bytes(6) + _GATEWAY4.packed
            link.sendto(asked, ("eth0", _ARP, 0, 0, _EVERYBODY))

    def claim6(number: int) -> None:
        for one in _turn(number):
            group, asked = solicitation(_FIRST6 + one, mac, _GATEWAY6)
            link.sendto(asked, ("eth0", _IPV6, 0, 0, multicast_mac(group)))

    yield from (claim4, claim6)


def _turn(number: int) -> Iterator[int]:
    """Which of the claimed addresses are next."""
    return (one % _CLAIMED for one in range(number * _PACKETS, (number + 1) * _PACKETS))


def _forging(stage: Stage, at_end: ExitStack) -> _Send:
    link = at_end.enter_context(raw_socket(stage.host.outside.namespace, socket.IPPROTO_RAW))

    def forge(number: int) -> None:
        for one in _turn(number):
            packet = datagram(str(_FIRST4 + one), PUBLIC4, 1024 + number % 60_000, UDP_PORT, b"forged")
            link.sendto(packet, (PUBLIC4, 0))

    return forge


def _junk(stage: Stage) -> Iterator[_Send]:
    control = Path(f"/proc/{stage.host.init}/root/run/kvm-portfwd/control.sock")

    def to_control(number: int) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(0)
            connection.connect(str(control))
            connection.send(_JUNK[number % len(_JUNK)])

    def to_metrics(number: int) -> None:
        with open_socket(stage.host.place.namespace, socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PAUSE_S)
            connection.connect(_METRICS)
            connection.send(_JUNK[number % len(_JUNK)])

    yield from (to_control, to_metrics)
