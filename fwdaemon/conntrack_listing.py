"""The kernel's messages about tracked connections: what is listed, and the bodies of requests. Pure.

A busy host tracks tens of thousands. A netlink library makes an object of each attribute of each of them, which takes
ten times as long as reading only what is needed. Sources: linux/netlink.h, linux/netfilter/nfnetlink.h and
nfnetlink_conntrack.h.
"""

import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from fwdaemon.flows import Flow
from fwdaemon.model import Address, Protocol
from fwdaemon.netlink import Message, attribute, attributes

_GENERIC: Final = struct.Struct("!BBH")
_NUMBER: Final = struct.Struct("!I")
_PORT: Final = struct.Struct("!H")
_COUNT: Final = struct.Struct("!Q")

# Types of messages: NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_NEW, _GET and _DELETE.
_NEW, GET, DELETE = 0x100, 0x101, 0x102
_EVERY_FAMILY: Final = 0  # AF_UNSPEC
# enum ctattr_type, and inside of a tuple, an address pair, a protocol, and counters.
_ORIGINAL, _REPLY, _STATE, _MARK, _COUNTED_ORIGINAL, _COUNTED_REPLY, _MARK_MASK = 1, 2, 4, 8, 9, 10, 21
_ID, _ZONE, _FILTER = 12, 18, 25
# Which parts of a tuple a listing is filtered by: bits of nf_internals.h in the machine's order.
_FILTER_ORIGINAL, _BY_PROTOCOL = 1, (1 << 3).to_bytes(4, sys.byteorder)
_NESTED: Final = 0x8000
_IP, _PROTO = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_BYTES = 2
# The states in which a connection is open, by protocol: each has its attribute, and that an attribute 1. They are from
# SYN_RECV to CLOSE_WAIT of nf_conntrack_tcp.h, and from ESTABLISHED to SHUTDOWN_RECD of nf_conntrack_sctp.h.
_OPEN: Final = {1: range(2, 6), 3: range(4, 7)}

_PROTOCOLS: Final = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}


@dataclass(frozen=True, slots=True)
class OpenFlow:
    """An open connection; `size` is the bytes it has carried both ways, `None` where the kernel does not count."""

    flow: Flow
    size: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A tracked connection, open or not; `key` is what names it to the kernel."""

    flow: Flow
    key: bytes


def listing_request(mark: int) -> bytes:
    """Write the request for all connections, of any address family, that have the bit `mark`.

    The kernel walks through its whole table for each listing, which takes ten milliseconds where that is large.
    """
    return _request(_EVERY_FAMILY, *(attribute(kind, _NUMBER.pack(mark)) for kind in (_MARK, _MARK_MASK)))


def protocol_request(family: int, protocol: int) -> bytes:
    """Write the request for those of one protocol (IPPROTO_UDP…); before Linux 5.8 the kernel lists all the same."""
    picked = _nested(_ORIGINAL, _nested(_PROTO, attribute(_PROTO_NUMBER, bytes([protocol]))))
    return _request(family, picked, _nested(_FILTER, attribute(_FILTER_ORIGINAL, _BY_PROTOCOL)))


def ending_request(family: int, entry: Entry) -> bytes:
    """Write the request to forget a connection."""
    return _request(family, entry.key)


def read_open_flow(message: Message) -> OpenFlow | None:
    """Read a connection; `None` is one that is not open, or is written in no form that is known here.

    A connection of a protocol that has no end is open as long as the kernel tracks it.
    """
    found = _found(message)
    try:
        return _read(found) if _is_open(found) else None
    except (LookupError, StopIteration, ValueError, struct.error):
        return None


def read_entry(message: Message) -> Entry | None:
    """Read a connection, open or not; `None` is one that is written in no form that is known here."""
    found = _found(message)
    try:
        flow = _flow(found)
    except (LookupError, StopIteration, ValueError, struct.error):
        return None
    return Entry(flow, b"".join(attribute(kind, found[kind]) for kind in (_ORIGINAL, _ZONE, _ID) if kind in found))


def _found(message: Message) -> dict[int, bytes]:
    return attributes(message.body[_GENERIC.size :]) if message.kind == _NEW else {}


def _is_open(entry: Mapping[int, bytes]) -> bool:
    states = attributes(entry[_STATE]) if _STATE in entry else {}
    return all(attributes(states[kind])[1][0] in _OPEN[kind] for kind in states.keys() & _OPEN.keys())


def _read(entry: Mapping[int, bytes]) -> OpenFlow:
    counted = [entry[kind] for kind in (_COUNTED_ORIGINAL, _COUNTED_REPLY) if kind in entry]
    sizes = [_COUNT.unpack(attributes(counters)[_BYTES])[0] for counters in counted]
    return OpenFlow(_flow(entry), sum(sizes) if sizes else None)


def _flow(entry: Mapping[int, bytes]) -> Flow:
    sent, answered = _tuple(entry[_ORIGINAL]), _tuple(entry[_REPLY])
    return Flow(
        sent.protocol,
        sent.source,
        sent.destination,
        sent.destination_port,
        answered.source,
        answered.source_port,
        answered.destination,
        answered.destination_port,
    )


@dataclass(frozen=True, slots=True)
class _Tuple:
    """One direction of a connection; ports are 0 where its protocol has none."""

    protocol: Protocol | None
    source: Address
    destination: Address
    source_port: int
    destination_port: int


def _tuple(nested: bytes) -> _Tuple:
    parts = attributes(nested)
    addresses, proto = attributes(parts[_IP]), attributes(parts[_PROTO])
    protocol = _PROTOCOLS.get(proto[_PROTO_NUMBER][0])
    return _Tuple(
        protocol,
        next(_address(addresses[kind]) for kind in _SOURCES if kind in addresses),
        next(_address(addresses[kind]) for kind in _DESTINATIONS if kind in addresses),
        _port(proto, _SOURCE_PORT),
        _port(proto, _DESTINATION_PORT),
    )


def _port(proto: Mapping[int, bytes], kind: int) -> int:
    port: int = _PORT.unpack(proto[kind])[0] if kind in proto else 0
    return port


@lru_cache(maxsize=4096)
def _address(written: bytes) -> Address:
    return ip_address(written)


def _request(family: int, *found: bytes) -> bytes:
    return _GENERIC.pack(family, 0, 0) + b"".join(found)


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, value)
