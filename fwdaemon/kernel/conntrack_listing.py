"""The kernel's messages about tracked connections: what is listed, and the bodies of requests. Pure.

A busy host tracks hundreds of thousands. A netlink library makes an object of each attribute of each of them, which
takes ten times as long as reading only what is needed; `fwdaemon.kernel.conntrack_listing` reads most of them faster
still. Sources: linux/netlink.h, linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
"""

import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from typing import Final, NamedTuple

from fwdaemon.core.types import PROTOCOLS, Address, Protocol
from fwdaemon.kernel.netlink import Message, attribute, attributes
from fwdaemon.resolve.flows import Flow

# Messages as most of them are laid out are each read by one pattern: attribute by attribute takes ten times as long.
# What is laid out in another way matches none. Source of the order: ctnetlink_dump_tuples of nf_conntrack_netlink.c.
_NESTED: Final = 0x8000
_HEADER: Final = 4  # nfgenmsg
_FIRST_ADDRESS: Final = {4: 1, 16: 3}  # CTA_IP_V4_SRC and CTA_IP_V6_SRC, by the size of an address
_TCP, _UDP = Protocol.TCP.number, Protocol.UDP.number
# From SYN_RECV to CLOSE_WAIT of nf_conntrack_tcp.h.
_OPEN: Final = range(2, 6)
_CLOSED: Final = (7, 8)  # TIME_WAIT and CLOSE
_CREATED: Final = 0x400  # NLM_F_CREATE, of a connection that is new


class Lane(NamedTuple):
    """Where a connection goes, as the kernel writes it."""

    protocol: int
    source: bytes
    destination: bytes
    destination_port: bytes
    server: bytes
    server_port: bytes
    client: bytes
    client_port: bytes

    @property
    def translated(self) -> bool:
        """Whether a DNAT rule of others leads it elsewhere than its client thinks."""
        return (self.destination, self.destination_port) != (self.server, self.server_port)

    def way(self, octets: int) -> tuple[int | bytes, ...]:
        """Give what it has in common with the connections of other clients whose addresses begin with the same."""
        return (*self[2:6], self.protocol, self.source[:octets])


def _begins(kind: int, size: int) -> bytes:
    """Write how an attribute begins whose value has this size."""
    return re.escape(attribute(kind, bytes(size))[:4])


def _kind(kind: int) -> bytes:
    """Write the type of a nested attribute."""
    return re.escape(attribute(kind | _NESTED, b"")[2:])


def _tuple(kind: int, size: int) -> bytes:
    """Write the pattern of one direction between two addresses of this size: addresses, protocol, ports."""
    first = _FIRST_ADDRESS[size]
    addresses = b"".join(_begins(number, size) + b"(.{%d})" % size for number in (first, first + 1))
    protocol = _begins(1, 1) + b"(.).{3}"
    ports = b"".join(_begins(number, 2) + b"(..).." for number in (2, 3))
    inner = 2 * (4 + size), 24
    return b"".join(
        (
            _begins(kind | _NESTED, 8 + sum(inner)),
            _begins(1 | _NESTED, inner[0]) + addresses,
            _begins(2 | _NESTED, inner[1]) + protocol + ports,
        )
    )


_WAYS: Final = tuple(re.compile(b".{%d}" % _HEADER + _tuple(1, size) + _tuple(2, size), re.DOTALL) for size in (4, 16))
# The state of a TCP connection (CTA_PROTOINFO, _TCP, _TCP_STATE), and the bytes that each direction has carried.
_STATE: Final = re.compile(_kind(4) + b".." + _kind(1) + _begins(1, 1) + b"(.)", re.DOTALL)
_CARRIED: Final = re.compile(
    b"(?:%b|%b)" % (_kind(9), _kind(10)) + _begins(1, 8) + b".{8}" + _begins(2, 8) + b"(.{8})", re.DOTALL
)


def lane_of(body: bytes) -> Lane | None:
    """Read where a connection goes."""
    found = _WAYS[0].match(body) or _WAYS[1].match(body)
    if found is None:
        return None
    source, destination, protocol, _, port, server, client, _, server_port, client_port = found.groups()
    return Lane(protocol[0], source, destination, port, server, server_port, client, client_port)


def open_lane(body: bytes) -> Lane | None:
    """Read where a connection goes that is open, if it is one of TCP or UDP; `None` says nothing of any other."""
    lane = lane_of(body)
    if lane is None or lane.protocol not in (_TCP, _UDP):
        return None
    state = _STATE.search(body) if lane.protocol == _TCP else None
    return lane if lane.protocol == _UDP or (state is not None and state[1][0] in _OPEN) else None


def size_of(body: bytes) -> int | None:
    """Read how many bytes a connection has carried both ways; `None` where the kernel does not count."""
    carried = _CARRIED.findall(body)
    return sum(int.from_bytes(number) for number in carried) if carried else None


_GENERIC: Final = struct.Struct("!BBH")
_NUMBER: Final = struct.Struct("!I")
_PORT: Final = struct.Struct("!H")
_COUNT: Final = struct.Struct("!Q")

# Types of messages: NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_NEW, _GET and _DELETE.
_NEW, GET, DELETE = 0x100, 0x101, 0x102
_EVERY_FAMILY, _IPV4 = 0, 2  # AF_UNSPEC, AF_INET
# enum ctattr_type, and inside of a tuple, an address pair, a protocol, and counters.
_ORIGINAL, _REPLY, _LISTED_STATE, _COUNTED_ORIGINAL, _COUNTED_REPLY, _LABELS = 1, 2, 4, 9, 10, 22
_HELPER, _ID, _MASTER, _ZONE, _FILTER = 5, 12, 14, 18, 25
# Which parts of a tuple a listing is filtered by: bits of nf_internals.h in the machine's order.
_FILTER_ORIGINAL, _FILTER_REPLY = 1, 2
_BY_SOURCE, _BY_PROTOCOL = ((1 << bit).to_bytes(4, sys.byteorder) for bit in (0, 3))
# Labels are bits of the kernel's own words (struct nf_conn_labels).
_WORD, _LABELS_SIZE = struct.calcsize("@L"), 16
# How the attribute begins, after its length, that only an expected connection has: it never has a label of its own.
# Addresses, ports and numbers of others hold these two bytes too.
_EXPECTED: Final = attribute(_MASTER | _NESTED, b"")[2:]
EXPECTED: Final = re.compile(re.escape(_EXPECTED))
_IP, _PROTO = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
_IPV4_SIZE: Final = 4
_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_BYTES = 2
# The states in which a connection is open, by protocol: each has its attribute, and that an attribute 1. They are from
# SYN_RECV to CLOSE_WAIT of nf_conntrack_tcp.h, and from ESTABLISHED to SHUTDOWN_RECD of nf_conntrack_sctp.h.
_LISTED_OPEN: Final = {1: range(2, 6), 3: range(4, 7)}


@dataclass(frozen=True, slots=True)
class OpenFlow:
    """Open connections that go the same way, of which `flow` is one.

    `size` is the bytes they have carried both ways, `None` where the kernel does not count.
    """

    flow: Flow
    size: int | None
    number: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A tracked connection, open or not; `key` is what names it to the kernel.

    `expecting` is how the kernel writes the way of one that may expect others, as one of FTP does, and `master` that of
    the connection that expected this one. For all others they are empty. `labels` are its labels, if it can have any.
    """

    flow: Flow
    key: bytes
    expecting: bytes = b""
    master: bytes = b""
    labels: bytes = b""

    def has(self, label: int) -> bool:
        """Say for certain whether it has a label."""
        return _holds(self.labels, label)


class EventKind(StrEnum):
    """What became of a connection: `CLOSED` is one of TCP, which the kernel goes on to track for a while."""

    BEGAN = "began"
    CLOSED = "closed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Event:
    """What the kernel reports of a connection: its own `number` for it, and from where its first packet came."""

    kind: EventKind
    flow: Flow
    source_port: int
    number: int
    labels: bytes = b""
    size: int | None = None

    def has(self, label: int) -> bool:
        """Whether it has a label; the kernel says so when it begins."""
        return _holds(self.labels, label)


def read_event(message: Message) -> Event | None:
    """Read an event; `None` is another change, or is written in no form that is known here."""
    if (kind := _kind_of(message)) is None:
        return None
    found = attributes(message.body[_GENERIC.size :])
    try:
        number, source_port = int.from_bytes(found[_ID]), _listed_tuple(found[_ORIGINAL]).source_port
        return Event(kind, _flow(found), source_port, number, found.get(_LABELS, b""), size_of(message.body))
    except (LookupError, StopIteration, ValueError, struct.error):
        return None


def _kind_of(message: Message) -> EventKind | None:
    if message.kind == DELETE:
        return EventKind.ENDED
    if message.flags & _CREATED:
        return EventKind.BEGAN
    state = _STATE.search(message.body)
    return EventKind.CLOSED if state is not None and state[1][0] in _CLOSED else None


def listing_request(family: int = _EVERY_FAMILY) -> bytes:
    """Write the request for all connections, of one address family (AF_INET6…) or any."""
    return _request(family)


def source_request(address: IPv4Address, *, begun: bool = False) -> bytes:
    """Write the request for what is answered by an address, or `begun` by it; see `protocol_request`.

    There is none like it for IPv6: of that, Linux 6.18 still lists what has any other address.
    """
    way, flags = (_ORIGINAL, _FILTER_ORIGINAL) if begun else (_REPLY, _FILTER_REPLY)
    picked = _nested(way, _nested(_IP, attribute(_SOURCES[0], address.packed)))
    return _request(_IPV4, picked, _nested(_FILTER, attribute(flags, _BY_SOURCE)))


@lru_cache(maxsize=2)
def labelled(bit: int) -> re.Pattern[bytes]:
    """Give what is found in the message of each connection with this label, and in few others; see `Entry.has`."""
    holding = b"".join(re.escape(bytes([value])) for value in range(256) if value & 1 << bit % 8)
    header = re.escape(attribute(_LABELS, bytes(_LABELS_SIZE))[:-_LABELS_SIZE])
    return re.compile(header + b".{%d}[%b]" % (_octet(bit), holding), re.DOTALL)


@lru_cache(maxsize=1024)
def sent_to(address: bytes) -> re.Pattern[bytes]:
    """Give what is found in the message of each connection of which either end sends to this address."""
    return re.compile(re.escape(attribute(_DESTINATIONS[len(address) > _IPV4_SIZE], address)))


def has_label(message: Message, label: int) -> bool:
    """Say for certain whether a connection has a label, without reading the rest of it."""
    return labelled(label).search(message.body) is not None and _holds(_found(message).get(_LABELS, b""), label)


def _holds(labels: bytes, label: int) -> bool:
    octet = _octet(label)
    return octet < len(labels) and bool(labels[octet] & 1 << label % 8)


def _octet(bit: int) -> int:
    """Say in which octet of a connection's labels a bit is."""
    word, at = divmod(bit, 8 * _WORD)
    return word * _WORD + (at // 8 if sys.byteorder == "little" else _WORD - 1 - at // 8)


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


def read_entry(message: Message, flow: Flow | None = None) -> Entry | None:
    """Read a connection, open or not; `None` is one that is written in no form that is known here.

    Where it goes is not read again where that is given as `flow`.
    """
    if (flow := flow or read_flow(message)) is None:
        return None
    found = _found(message)
    key = b"".join(attribute(kind, found[kind]) for kind in (_ORIGINAL, _ZONE, _ID) if kind in found)
    expecting = found[_ORIGINAL] if _HELPER in found else b""
    return Entry(flow, key, expecting, found.get(_MASTER, b""), found.get(_LABELS, b""))


def read_flow(message: Message) -> Flow | None:
    """Read where a connection goes; `None` as in `read_entry`."""
    if message.kind == _NEW and (lane := lane_of(message.body)) is not None:
        return flow_of(lane)
    try:
        return _flow(_found(message))
    except (LookupError, StopIteration, ValueError, struct.error):
        return None


def may_be_expected(message: Message) -> bool:
    """Say quickly whether a connection may be one that another expected; `Entry.master` says for certain."""
    return _EXPECTED in message.body


def flow_of(lane: Lane) -> Flow:
    """Read a lane."""
    return Flow(
        PROTOCOLS.get(lane.protocol),
        _address(lane.source),
        _address(lane.destination),
        int.from_bytes(lane.destination_port),
        _address(lane.server),
        int.from_bytes(lane.server_port),
        _address(lane.client),
        int.from_bytes(lane.client_port),
    )


def _found(message: Message) -> dict[int, bytes]:
    return attributes(message.body[_GENERIC.size :]) if message.kind == _NEW else {}


def _is_open(entry: Mapping[int, bytes]) -> bool:
    states = attributes(entry[_LISTED_STATE]) if _LISTED_STATE in entry else {}
    return all(attributes(states[kind])[1][0] in _LISTED_OPEN[kind] for kind in states.keys() & _LISTED_OPEN.keys())


def _read(entry: Mapping[int, bytes]) -> OpenFlow:
    counted = [entry[kind] for kind in (_COUNTED_ORIGINAL, _COUNTED_REPLY) if kind in entry]
    sizes = [_COUNT.unpack(attributes(counters)[_BYTES])[0] for counters in counted]
    return OpenFlow(_flow(entry), sum(sizes) if sizes else None)


def _flow(entry: Mapping[int, bytes]) -> Flow:
    sent, answered = _listed_tuple(entry[_ORIGINAL]), _listed_tuple(entry[_REPLY])
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


def _listed_tuple(nested: bytes) -> _Tuple:
    parts = attributes(nested)
    addresses, proto = attributes(parts[_IP]), attributes(parts[_PROTO])
    protocol = PROTOCOLS.get(proto[_PROTO_NUMBER][0])
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
