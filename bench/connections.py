"""Connections through the first guest's forward, written into the kernel's table by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.forwards import FIRST_PORT, GREETING, PUBLIC, guest_address
from bench.scene import Scene
from tests.lab.connections import Connection, Tuple, track
from tests.lab.place import wait_until

_LABEL: Final = 25
_FEW: Final = 1000


@contextmanager
def tracked(scene: Scene, count: int, *, six: bool = False) -> Iterator[None]:
    """Have the host track so many, of IPv6 too, and forget every connection in the end."""
    track(map(_connection6 if six else _connection, range(count)), scene.host.place.namespace)
    try:
        yield
    finally:
        _forget_all(scene)


def _forget_all(scene: Scene) -> None:
    """Have the host forget them, and wait until they are gone."""
    scene.host.run("conntrack", "--flush")
    wait_until(lambda: int(scene.host.run("conntrack", "--count").stdout) < _FEW, "connections are gone")


def without_entry(text: str, number: int) -> str:
    """Leave one of the entries out of a configuration; each is the forwards of one guest."""
    head, *entries = text.split("\n[[forward]]")
    del entries[number]
    return "\n[[forward]]".join([head, *entries])


def _connection(number: int) -> Connection:
    client = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    sent = Tuple(client, PUBLIC, 40000, FIRST_PORT)
    return Connection("tcp", sent, Tuple(guest_address(0), client, GREETING, 40000), _LABEL)


def _connection6(number: int) -> Connection:
    """One to a guest that nothing here knows."""
    client, guest = f"2001:db8:c::{number >> 16:x}:{number & 0xFFFF:x}", "2001:db8:c:1::10"
    sent = Tuple(client, "2001:db8:c:2::1", 40000, FIRST_PORT)
    return Connection("tcp", sent, Tuple(guest, client, GREETING, 40000), _LABEL)
