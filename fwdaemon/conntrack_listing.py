"""The kernel's messages about tracked connections: listings, read as they come, and requests. Pure.

A busy host tracks tens of thousands. A netlink library makes an object of each attribute of each of them, which takes
ten times as long as reading only what is needed. Sources: linux/netlink.h, linux/netfilter/nfnetlink.h and
nfnetlink_conntrack.h.
"""

import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, TypeVar

from fwdaemon.flows import Flow
from fwdaemon.model import Address, Protocol
from fwdaemon.netlink import attribute, attributes, messages, packed

_GENERIC: Final = struct.Struct("!BBH")
_NUMBER: Final = struct.Struct("!I")
_PORT: Final = struct.Struct("!H")
_COUNT: Final = struct.Struct("!Q")
_CODE: Final = struct.Struct("=i")

# Types of messages: errors, the end of a listing, and NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_GET and _NEW.
_ERROR, _DONE, _GET, _NEW = 2, 3, 0x101, 0x100
_DELETE: Final = 0x102
_REQUEST_DUMP, _REQUEST_ACK = 0x301, 0x5
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

_Attributes = dict[int, bytes]
_T = TypeVar("_T")


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
    marked = (attribute(kind, _NUMBER.pack(mark)) for kind in (_MARK, _MARK_MASK))
    return _request(_GET, _REQUEST_DUMP, _EVERY_FAMILY, *marked)


def protocol_request(family: int, protocol: int) -> bytes:
    """Write the request for those of one protocol (IPPROTO_UDP…); before Linux 5.8 the kernel lists all the same."""
    picked = _nested(_ORIGINAL, _nested(_PROTO, attribute(_PROTO_NUMBER, bytes([protocol]))))
    return _request(_GET, _REQUEST_DUMP, family, picked, _nested(_FILTER, attribute(_FILTER_ORIGINAL, _BY_PROTOCOL)))


def ending_request(family: int, entry: Entry) -> bytes:
    """Write the request to forget a connection, which the kernel answers with an errno."""
    return _request(_DELETE, _REQUEST_ACK, family, entry.key)


def read_listing(datagram: bytes) -> tuple[list[OpenFlow], int | None]:
    """Read the open connections in one datagram of the answer, and the errno it ends with.

    That is 0 for the end of the listing, and `None` where more is to come. A connection of a protocol that has no end
    is open as long as the kernel tracks it.
    """
    return _read_all(datagram, _open_flow)


def read_entries(datagram: bytes) -> tuple[list[Entry], int | None]:
    """Read all connections in one datagram, open or not, and the errno it ends with."""
    return _read_all(datagram, _entry)


def _read_all(datagram: bytes, read: Callable[[_Attributes], _T | None]) -> tuple[list[_T], int | None]:
    found: list[_T] = []
    for message in messages(datagram):
        kind, body = message.kind, message.body
        if kind in (_ERROR, _DONE):
            return found, -_CODE.unpack_from(body)[0] if len(body) >= _CODE.size else 0
        if kind == _NEW and (item := read(attributes(body[_GENERIC.size :]))) is not None:
            found.append(item)
    return found, None


def _entry(entry: Mapping[int, bytes]) -> Entry | None:
    try:
        flow = _flow(entry)
    except (LookupError, StopIteration, ValueError, struct.error):
        return None
    return Entry(flow, b"".join(attribute(kind, entry[kind]) for kind in (_ORIGINAL, _ZONE, _ID) if kind in entry))


def _open_flow(entry: Mapping[int, bytes]) -> OpenFlow | None:
    """Read a connection; `None` is one that is not open, or is written in no form that is known here."""
    try:
        return _read(entry) if _is_open(entry) else None
    except (LookupError, StopIteration, ValueError, struct.error):
        return None


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


def _request(kind: int, flags: int, family: int, *found: bytes) -> bytes:
    return packed(kind, flags, 1, _GENERIC.pack(family, 0, 0) + b"".join(found))


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, value)
