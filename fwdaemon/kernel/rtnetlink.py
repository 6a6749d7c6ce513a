"""Routes and rules of the kernel, and the one client that asks for them by pyroute2."""

import errno
import secrets
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import islice
from types import TracebackType
from typing import Final, Self

from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.errors import KernelError
from fwdaemon.kernel.netlink import Message, NetlinkSocket, RefusalError, attribute, attributes, number

# One short-lived rtnetlink socket: lists what the kernel picks, and has it change one thing.
#
# Each call blocks until the kernel has answered, which it does at once.
FAMILIES: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

# What is said of an entry, or of its interface, that is not there.
_GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)

# The kernel repeats a request's sequence number in what it tells everybody about the change.
_SEQUENCE: Final = secrets.randbits(32)


class RefusedError(KernelError):
    """The kernel refused a request; `number` is the errno."""

    def __init__(self, number: int, reason: str) -> None:
        self.number = number
        super().__init__(reason)


def is_ours(message: Message) -> bool:
    """Whether what the kernel tells everybody follows from a request of this process."""
    return message.sequence == _SEQUENCE


def interface_index(name: str) -> int | None:
    """Give the number of an interface, or `None` if there is none of this name."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: what no interface can be called
        return None


def interface_names() -> frozenset[str]:
    """Name all interfaces there are."""
    return frozenset(name for _, name in socket.if_nameindex())


def interface_name(index: int) -> str:
    """Give the name of an interface, for people."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"an interface that has gone ({index})"


class Rtnetlink:
    """A context manager; what is asked concerns this thread's network namespace.

    Raises:
        KernelError: the kernel does not answer. `RefusedError` is one that says why.

    """

    def __enter__(self) -> Self:
        try:
            self._asking = NetlinkSocket(socket.NETLINK_ROUTE, _SEQUENCE)
        except OSError as error:
            raise KernelError(f"the kernel does not let us ask about routes and addresses: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asking.__exit__(kind, error, trace)

    def entries(self, kind: int, body: bytes) -> list[bytes]:
        """Give the bodies of all entries that the kernel picks by the fields of `body`."""
        try:
            with _explained():
                # Where they change without end, as on a router of the Internet, those that were seen have to do.
                return [message.body for message in self._asking.listing(kind, body).messages]
        except RefusedError as error:
            if error.number != errno.ENOENT:  # the table is made with its first entry
                raise
            return []

    def first_entries(self, kind: int, body: bytes, most: int) -> list[bytes]:
        """Give the bodies of the first entries that the kernel picks; with the rest unread, ask nothing else then."""
        try:
            with _explained():
                return [message.body for message in islice(self._asking.stream(kind, body), most)]
        except RefusedError as error:
            if error.number != errno.ENOENT:
                raise
            return []

    def entry(self, kind: int, body: bytes) -> bytes | None:
        """Give the body of the one entry that is asked for, or `None` if there is no such thing."""
        try:
            with _explained():
                answers = self._asking.ask(kind, body)
        except RefusedError:
            return None
        return answers[0].body if answers else None

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Make or remove an entry."""
        with _explained():
            self._asking.ask(kind, body, flags)

    def remove(self, kind: int, body: bytes) -> None:
        """Remove an entry; that it has gone meanwhile is fine."""
        try:
            self.change(kind, 0, body)
        except RefusedError as error:
            if error.number not in _GONE:
                raise


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RefusalError as error:
        raise RefusedError(error.errno or 0, error.strerror or "") from error
    except OSError as error:
        raise KernelError(f"the kernel does not answer about routes and addresses: {error}") from error


# Routes of our own protocol number in the main table, and whoever else routes the same (rtnetlink(7)).

# What marks a route as ours: none of linux/rtnetlink.h or iproute2's rt_protos.
PROTOCOL: Final = 107

_NEW, _DELETE, _GET = 24, 25, 26  # RTM_NEWROUTE, …
_CREATE, _EXCLUSIVE = 0x400, 0x200  # NLM_F_CREATE, NLM_F_EXCL: never replace anybody's
# rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
ROUTE = struct.Struct("=BBBBBBBBI")
_MAIN_TABLE = 254
_UNICAST, _LOCAL = 1, 2  # RTN_UNICAST, RTN_LOCAL
_SCOPE_LINK, _ANY_SCOPE = 253, 255  # RT_SCOPE_LINK, RT_SCOPE_NOWHERE
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the entry of the table, and not what follows from it for one address
_PARTS = 4
# linux/rtnetlink.h: RTA_DST, …
_DST, _OIF, _PRIORITY, _CACHEINFO, _TABLE, _PREFERENCE = 1, 4, 6, 12, 15, 20
# What a route of ours has and no more: no gateway, source address, metrics, encapsulation, second way.
_PLAIN: Final = frozenset({_DST, _OIF, _PRIORITY, _CACHEINFO, _TABLE, _PREFERENCE})
_PRIORITIES: Final = (None, 1024)  # IP6_RT_PRIO_USER: the kernel's own choice for IPv6
_EXPIRES_AT: Final = 8  # in rta_cacheinfo, two numbers before it
_GATEWAY, _VIA = 5, 18
_NUMBER = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route the kernel holds; `index` is the interface's, `None` where there is none or more than one.

    `is_local` says that it leads to the host itself, `is_plain` that it has nothing which we do not give to ours.
    """

    subnet: Subnet
    index: int | None
    protocol: int
    is_local: bool
    tos: int = 0
    priority: int | None = None
    is_plain: bool = True

    def leads_to(self, index: int) -> bool:
        """Whether it leads to what is plugged into the interface with this number."""
        return self.index == index and not self.is_local


def our_routes(kernel: Rtnetlink, family: Family) -> list[KernelRoute]:
    """Give the routes with our protocol number; the kernel picks them, as there may be a million others."""
    listed = kernel.entries(_GET, _fixed(FAMILIES[family], 0, PROTOCOL))
    return [route for route in map(_read, listed) if Family.of(route.subnet) is family]


def route_of(kernel: Rtnetlink, subnet: Subnet) -> KernelRoute | None:
    """Give the route for exactly this subnet that counts, whoever made it.

    The kernel tells by which entry an address is routed. Some addresses of a subnet may have entries of their own, as
    those of the host have, and the first of IPv6 (RFC 4291, section 2.6.1); so several are tried.
    """
    last = subnet.num_addresses - 1
    for part in range(_PARTS + 1):
        route = _matching(kernel, subnet[last * part // _PARTS])
        if route is not None and route.subnet == subnet:
            return route
    return None


def on_link_routes(kernel: Rtnetlink, index: int) -> list[Subnet]:
    """Give the subnets that the main table routes straight to what is plugged into an interface, without a gateway."""
    asked = attribute(_OIF, _NUMBER.pack(index))
    listed = [body for family in Family for body in kernel.entries(_GET, _fixed(FAMILIES[family], 0, 0) + asked)]
    found = [_read(body).subnet for body in listed if _is_on_link(body, index)]
    return [subnet for subnet in found if subnet.prefixlen and not subnet.is_link_local and not subnet.is_multicast]


def add_route(kernel: Rtnetlink, subnet: Subnet, index: int) -> None:
    """Route a subnet to what is plugged into an interface.

    Raises:
        RefusedError: among others with EEXIST, if somebody has a route for it.

    """
    fixed = _fixed(FAMILIES[Family.of(subnet)], subnet.prefixlen, PROTOCOL, _SCOPE_LINK, _UNICAST)
    kernel.change(_NEW, _CREATE | _EXCLUSIVE, fixed + _destination(subnet, index))


def delete_route(kernel: Rtnetlink, route: KernelRoute) -> None:
    """Remove a route of ours."""
    family, length = FAMILIES[Family.of(route.subnet)], route.subnet.prefixlen
    fixed = ROUTE.pack(family, length, 0, route.tos, _MAIN_TABLE, PROTOCOL, _ANY_SCOPE, 0, 0)
    priority = b"" if route.priority is None else attribute(_PRIORITY, _NUMBER.pack(route.priority))
    kernel.remove(_DELETE, fixed + _destination(route.subnet, route.index) + priority)


def _matching(kernel: Rtnetlink, address: Address) -> KernelRoute | None:
    """Give the entry by which an address is routed."""
    fixed = ROUTE.pack(FAMILIES[Family.of(address)], address.max_prefixlen, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    found = kernel.entry(_GET, fixed + attribute(_DST, address.packed))
    return None if found is None else _read(found)


def _is_on_link(body: bytes, index: int) -> bool:
    """Whether a route has no gateway, and leads to this interface alone."""
    found = attributes(body[ROUTE.size :])
    *_, kind, _flags = ROUTE.unpack_from(body)
    return kind == _UNICAST and not {_GATEWAY, _VIA} & found.keys() and number(found.get(_OIF)) == index


def _destination(subnet: Subnet, index: int | None) -> bytes:
    interface = b"" if index is None else attribute(_OIF, _NUMBER.pack(index))
    return attribute(_DST, subnet.network_address.packed) + interface


def _fixed(family: int, length: int, protocol: int, scope: int = 0, kind: int = 0) -> bytes:
    return ROUTE.pack(family, length, 0, 0, _MAIN_TABLE, protocol, scope, kind, 0)


def _read(body: bytes) -> KernelRoute:
    family, length, _, tos, _, protocol, scope, kind, _ = ROUTE.unpack_from(body)
    found = attributes(body[ROUTE.size :])
    address = found.get(_DST) or bytes(4 if family == socket.AF_INET else 16)
    usual = kind == _UNICAST and scope == (_SCOPE_LINK if family == socket.AF_INET else 0) and tos == 0
    return KernelRoute(
        subnet=ip_network((address, length)),
        index=number(found.get(_OIF)),
        protocol=protocol,
        is_local=kind == _LOCAL,
        tos=tos,
        priority=number(found.get(_PRIORITY)),
        is_plain=usual and _is_plain(found),
    )


def _is_plain(found: Mapping[int, bytes]) -> bool:
    """Whether a route has no attributes but those that the kernel gives to ours."""
    return (
        found.keys() <= _PLAIN
        and number(found.get(_PRIORITY)) in _PRIORITIES
        and not any(found.get(_PREFERENCE, b""))
        and not any(found.get(_CACHEINFO, b"")[_EXPIRES_AT : _EXPIRES_AT + _NUMBER.size])
    )


# Rules that say which routing tables are asked (rtnetlink(7), linux/fib_rules.h).
_RULE_GET = 34  # RTM_GETRULE
# fib_rule_hdr: family, lengths of destination and source, TOS, table, two that are unused, action, flags.
_RULE = struct.Struct("=BBBBBBBBI")
_RULE_TABLE = 15  # FRA_TABLE
_MAIN: Final = 254
_UNUSED: Final = {0, 255}  # no table at all, RT_TABLE_LOCAL


def tables(kernel: Rtnetlink, family: Family) -> set[int]:
    """Give the tables that some rule asks, the main one among them; the host's own addresses are in another."""
    listed = kernel.entries(_RULE_GET, _RULE.pack(FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0))
    return {_MAIN, *map(_table, listed)} - _UNUSED


def _table(body: bytes) -> int:
    in_header: int = _RULE.unpack_from(body)[4]
    return number(attributes(body[_RULE.size :]).get(_RULE_TABLE)) or in_header


# Where the routes of a table lead, whoever made them (rtnetlink(7)).
_WAY_GET = 26  # RTM_GETROUTE
_WAY_UNICAST = 1  # RTN_UNICAST
# linux/rtnetlink.h: RTA_DST, …
_WAY_DST, _WAY_OIF, _WAY_GATEWAY, _MULTIPATH, _WAY_TABLE, _WAY_VIA = 1, 4, 5, 9, 15, 18
_HOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, weight less one, interface


@dataclass(frozen=True, slots=True)
class Way:
    """Routes leave by the interface with this number; `leads_on` says that one leads beyond its own link."""

    index: int
    leads_on: bool


def ways(kernel: Rtnetlink, family: Family, table: int, most: int) -> set[Way]:
    """Give the ways of a table's first routes, `most` of them; nothing else may be asked on that socket then.

    Routes of ours lead to guests. Those to single addresses and link-local ones say nothing of an interface.
    """
    fixed = ROUTE.pack(FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0) + attribute(_WAY_TABLE, _NUMBER.pack(table))
    return {way for body in kernel.first_entries(_WAY_GET, fixed, most) for way in ways_of(body)}


def ways_of(body: bytes) -> Iterator[Way]:
    """Give the ways of one route."""
    _, length, _, _, _, protocol, _, kind, _ = ROUTE.unpack_from(body)
    found = attributes(body[ROUTE.size :])
    if kind != _WAY_UNICAST or protocol == PROTOCOL or not _is_telling(length, found.get(_WAY_DST)):
        return
    for index, hop in _hops(found):
        yield Way(index, leads_on=length == 0 or _WAY_GATEWAY in hop or _WAY_VIA in hop)


def _is_telling(length: int, destination: bytes | None) -> bool:
    if destination is None:
        return True
    address = ip_address(destination)
    return not (address.is_link_local or address.is_multicast) and length < address.max_prefixlen


def _hops(found: dict[int, bytes]) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Give the interface of each hop, with its attributes."""
    if (index := number(found.get(_WAY_OIF))) is not None:
        yield index, found
    rest = found.get(_MULTIPATH, b"")
    offset = 0
    while offset + _HOP.size <= len(rest):
        length, _flags, _weight, index = _HOP.unpack_from(rest, offset)
        if length < _HOP.size:
            return
        yield index, attributes(rest[offset + _HOP.size : offset + length])
        offset += (length + 3) & ~3
