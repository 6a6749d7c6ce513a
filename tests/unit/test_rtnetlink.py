"""Messages of rtnetlink, taken apart and put together."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.kernel.netlink import Message, attribute, attributes, messages, number, packed


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=40))))
def test_what_is_put_together_comes_apart(parts: list[tuple[int, int, bytes]]) -> None:
    datagram = b""
    for kind, sequence, body in parts:
        datagram += packed(kind, 5, sequence, body) + bytes(-len(body) % 4)
    assert list(messages(datagram)) == [Message(kind, 5, sequence, 0, body) for kind, sequence, body in parts]


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40)))
def test_attributes_come_apart(parts: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(kind, value) for kind, value in parts.items())) == parts


def test_how_a_value_is_written_is_no_part_of_its_type() -> None:
    assert attributes(attribute(0x8000 | 12, b"nested")) == {12: b"nested"}


@given(st.binary(max_size=200))
def test_no_datagram_is_too_odd(datagram: bytes) -> None:
    for message in messages(datagram):
        attributes(message.body)
    attributes(datagram)


def test_a_number_that_is_not_there() -> None:
    assert number(None) is None
    assert number((7).to_bytes(4, sys.byteorder)) == 7
