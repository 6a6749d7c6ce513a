"""Messages and attributes of netlink(7), taken apart and put together. Pure."""

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
# linux/netlink.h: the two upper bits of a type say how its value is written.
_TYPE_MASK = 0x3FFF


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `sequence` is repeated in all that follows from a request, `port` is who sent it."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


def packed(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Put a request together."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(datagram: bytes) -> Iterator[Message]:
    """Take a datagram apart; what is cut short is left out."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            return
        yield Message(kind, flags, sequence, port, datagram[offset + _HEADER.size : offset + length])
        offset += _aligned(length)


def attribute(kind: int, value: bytes) -> bytes:
    """Put an attribute together."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def attributes(data: bytes) -> dict[int, bytes]:
    """Take apart what follows a message's fixed part, or what is inside a nested attribute."""
    found, offset = {}, 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def number(value: bytes | None) -> int | None:
    """Read an attribute that is a number in the machine's own byte order, as all of rtnetlink's are."""
    return int.from_bytes(value, sys.byteorder) if value else None


def _aligned(length: int) -> int:
    return (length + 3) & ~3
