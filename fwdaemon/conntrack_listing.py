"""The kernel's listing of tracked connections, read as it comes. Pure.

A busy host tracks tens of thousands. A netlink library makes an object of each attribute of each of them, which takes
ten times as long as reading only what is needed. Sources: linux/netlink.h, linux/netfilter/nfnetlink.h and
nfnetlink_conntrack.h.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from fwdaemon.flows import Flow
from fwdaemon.model import Address, Protocol

_HEADER: Final = struct.Struct("=IHHII")
_GENERIC: Final = struct.Struct("!BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("!I")
_PORT: Final = struct.Struct("!H")
_COUNT: Final = struct.Struct("!Q")
_TYPE_MASK: Final = 0x3FFF

# Types of messages: errors, the end of a listing, and NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_GET and _NEW.
_ERROR, _DONE, _GET, _NEW = 2, 3, 0x101, 0x100
_REQUEST_DUMP: Final = 0x301
# enum ctattr_type, and inside of a tuple, an address pair, a protocol, and counters.
_ORIGINAL, _REPLY, _STATE, _MARK, _COUNTED_ORIGINAL, _COUNTED_REPLY, _MARK_MASK = 1, 2, 4, 8, 9, 10, 21
_IP, _PROTO = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_BYTES = 2
# The states in which a connection is open, by protocol: each has its attribute, and that an attribute 1. They are from
# SYN_RECV to CLOSE_WAIT of nf_conntrack_tcp.h, and from ESTABLISHED to SHUTDOWN_RECD of nf_conntrack_sctp.h.
_OPEN: Final = {1: range(2, 6), 3: range(4, 7)}

_PROTOCOLS: Final = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}

_Attributes = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class OpenFlow:
    """An open connection; `size` is the bytes it has carried both ways, `None` where the kernel does not count."""

    flow: Flow
    size: int | None


def listing_request(family: int, mark: int) -> bytes:
    """Write the request for all connections of an address family (AF_INET…) that have the bit `mark`."""
    attributes = b"".join(
        _ATTRIBUTE.pack(_ATTRIBUTE.size + _NUMBER.size, kind) + _NUMBER.pack(mark) for kind in (_MARK, _MARK_MASK)
    )
    body = _GENERIC.pack(family, 0, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST_DUMP, 1, 0) + body


def read_listing(datagram: bytes) -> tuple[list[OpenFlow], int | None]:
    """Read the open connections in one datagram of the answer, and the errno it ends with.

    That is 0 for the end of the listing, and `None` where more is to come. A connection of a protocol that has no end
    is open as long as the kernel tracks it.
    """
    flows: list[OpenFlow] = []
    for kind, body in _messages(datagram):
        if kind in (_ERROR, _DONE):
            code = struct.unpack_from("=i", body)[0] if body else 0
            return flows, -code
        if kind == _NEW and _is_open(entry := _attributes(body[_GENERIC.size :])):
            flows.append(_read(entry))
    return flows, None


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + _HEADER.size <= len(datagram):
        size, kind, *_ = _HEADER.unpack_from(datagram, start)
        yield kind, datagram[start + _HEADER.size : start + size]
        start += _aligned(max(size, _HEADER.size))


def _is_open(entry: Mapping[int, bytes]) -> bool:
    states = _attributes(entry[_STATE]) if _STATE in entry else {}
    return all(_attributes(states[kind])[1][0] in _OPEN[kind] for kind in states.keys() & _OPEN.keys())


def _read(entry: Mapping[int, bytes]) -> OpenFlow:
    sent, answered = _tuple(entry[_ORIGINAL]), _tuple(entry[_REPLY])
    flow = Flow(
        sent.protocol,
        sent.source,
        sent.destination,
        sent.destination_port,
        answered.source,
        answered.source_port,
        answered.destination,
        answered.destination_port,
    )
    counted = [entry[kind] for kind in (_COUNTED_ORIGINAL, _COUNTED_REPLY) if kind in entry]
    sizes = [_COUNT.unpack(_attributes(counters)[_BYTES])[0] for counters in counted]
    return OpenFlow(flow, sum(sizes) if sizes else None)


@dataclass(frozen=True, slots=True)
class _Tuple:
    """One direction of a connection; ports are 0 where its protocol has none."""

    protocol: Protocol | None
    source: Address
    destination: Address
    source_port: int
    destination_port: int


def _tuple(nested: bytes) -> _Tuple:
    parts = _attributes(nested)
    addresses, proto = _attributes(parts[_IP]), _attributes(parts[_PROTO])
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
def _address(packed: bytes) -> Address:
    return ip_address(packed)


def _attributes(body: bytes) -> _Attributes:
    found, start = {}, 0
    while start + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, start)
        found[kind & _TYPE_MASK] = body[start + _ATTRIBUTE.size : start + size]
        start += _aligned(max(size, _ATTRIBUTE.size))
    return found


def _aligned(size: int) -> int:
    return (size + 3) & ~3
