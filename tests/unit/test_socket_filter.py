"""Filters, run by the real kernel on a pair of sockets."""

import socket
import sys
from collections.abc import Iterator

import pytest

from fwdaemon.kernel.packets import Field, attach, native

FIRST = Field(1, 0, 0x61)
PREFIX = Field(4, 1, 0x20010DB8)
HALF = Field(2, 1, 0x2000, mask=0xF000)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    sending, filtered = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    filtered.setblocking(False)  # noqa: FBT003  the standard library's way
    with sending, filtered:
        yield sending, filtered


def passes(pair: tuple[socket.socket, socket.socket], data: bytes) -> bool:
    sending, filtered = pair
    sending.send(data)
    try:
        return filtered.recv(100) == data
    except BlockingIOError:
        return False


def test_all_fields_of_one_alternative_are_needed(pair: tuple[socket.socket, socket.socket]) -> None:
    attach(pair[1], [(FIRST, PREFIX), (Field(1, 0, 0x62), HALF)])
    assert passes(pair, b"a\x20\x01\x0d\xb8 and so on")
    assert passes(pair, b"b\x2f\xff")
    assert not passes(pair, b"a\x20\x01\x0d\xb9")
    assert not passes(pair, b"b\x3f\xff")
    assert not passes(pair, b"c\x20\x01\x0d\xb8")
    assert not passes(pair, b"a")


def test_a_field_that_is_anything_else(pair: tuple[socket.socket, socket.socket]) -> None:
    attach(pair[1], [(Field(1, 0, 0x61, differs=True), Field(1, 1, 0x62)), (Field(1, 0, 0x61), Field(1, 1, 0x63))])
    assert [passes(pair, data) for data in (b"bb", b"ac", b"ab", b"bc")] == [True, True, False, False]


def test_a_filter_takes_the_place_of_another(pair: tuple[socket.socket, socket.socket]) -> None:
    attach(pair[1], [(FIRST,)])
    attach(pair[1], [(Field(1, 0, 0x62),)])
    assert passes(pair, b"b")
    assert not passes(pair, b"a")


def test_nothing_passes_without_an_alternative(pair: tuple[socket.socket, socket.socket]) -> None:
    attach(pair[1], [])
    assert not passes(pair, b"a")


def test_fields_in_the_order_of_the_machine(pair: tuple[socket.socket, socket.socket]) -> None:
    attach(pair[1], [(native(2, 0, 24), native(4, 2, 1, mask=1))])
    assert passes(pair, (24).to_bytes(2, sys.byteorder) + (0x10001).to_bytes(4, sys.byteorder))
    assert not passes(pair, (25).to_bytes(2, sys.byteorder) + (0x10001).to_bytes(4, sys.byteorder))
    assert not passes(pair, (24).to_bytes(2, sys.byteorder) + (0x10000).to_bytes(4, sys.byteorder))


def test_a_filter_may_be_too_long(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        attach(pair[1], [(FIRST, PREFIX)] * 1000)
