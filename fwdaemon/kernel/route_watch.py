"""Hears when somebody changes routes of ours, or takes a link up or down.

The kernel says nothing of IPv4 routes that go with their link, so links are listened to as well. A filter keeps the
rest from us: a router of the Internet changes thousands of routes a minute.
"""

import asyncio
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Final

from fwdaemon.core.pace import Budget
from fwdaemon.core.report import Actor, ActorKind, Reason, ReasonKind, RulesChanged, Trigger
from fwdaemon.core.types import Family, Subnet
from fwdaemon.errors import KernelError
from fwdaemon.kernel.netlink import Message, RouteNews, attribute, attributes, number
from fwdaemon.kernel.packets import Field, native
from fwdaemon.kernel.rtnetlink import FAMILIES, PROTOCOL, first_listed, interface_name, is_ours

_GROUPS: Final = 0x1 | 0x40 | 0x400  # RTMGRP_LINK, _IPV4_ROUTE, _IPV6_ROUTE
_NEW_LINK, _NEW_ROUTE, _DELETED_ROUTE = 16, 24, 25  # RTM_NEWLINK, …
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, which of them changed
_NAME, _MASTER = 3, 10  # IFLA_IFNAME, IFLA_MASTER
_UP = 0x1  # IFF_UP
# Offsets in a message: its type, and of what follows the header, a route's protocol and a link's changes.
_TYPE_AT, _PROTOCOL_AT, _CHANGES_AT = 4, 16 + 5, 16 + 12

_OURS: Final = Field(1, _PROTOCOL_AT, PROTOCOL)
_FILTER: Final = (
    (native(2, _TYPE_AT, _NEW_ROUTE), _OURS),
    (native(2, _TYPE_AT, _DELETED_ROUTE), _OURS),
    (native(2, _TYPE_AT, _NEW_LINK), native(4, _CHANGES_AT, _UP, mask=_UP)),
)


class RouteWatch:
    """Calls `rules_changed` on the asyncio loop's thread with what changed, unless we did it ourselves."""

    def __init__(self, rules_changed: RulesChanged) -> None:
        self._rules_changed = rules_changed
        self._news = RouteNews(_GROUPS, self._receive, self._lost, _FILTER)

    def start(self) -> None:
        """Begin to listen, in the network namespace of this thread.

        Raises:
            KernelError: the kernel refused.

        """
        self._news.start()

    def close(self) -> None:
        """Stop listening; does nothing if not listening."""
        self._news.close()

    def _receive(self, message: Message) -> None:
        if not is_ours(message) and (actor := _actor(message)) is not None:
            self._rules_changed(actor, full=False)

    def _lost(self) -> None:
        self._rules_changed(Actor(ActorKind.ROUTES_LOST), full=True)


def _actor(message: Message) -> Actor | None:
    """Give who did what; the number of a netlink port is, as a rule, that of the process."""
    if message.kind == _NEW_LINK:
        return who_took_link(message.body)
    did = ActorKind.ROUTE_ADDED if message.kind == _NEW_ROUTE else ActorKind.ROUTE_REMOVED
    return Actor(did, pid=message.port) if message.port else Actor(ActorKind.KERNEL)


def who_took_link(body: bytes) -> Actor | None:
    """Give who took a link up or down, unless it is the port of a bridge, as guests are, where there are no routes."""
    *_rest, flags, _changes = _LINK.unpack_from(body)
    found = attributes(body[_LINK.size :])
    if _MASTER in found:
        return None
    name = found.get(_NAME, b"").rstrip(b"\0").decode(errors="replace")
    return Actor(ActorKind.LINK_UP if flags & _UP else ActorKind.LINK_DOWN, link=name)


# Where the routes of a table lead, whoever made them (rtnetlink(7)); by hand, as there may be 10,000 to list.
_WAY_GET = 26  # RTM_GETROUTE
_UNICAST: Final = 1  # RTN_UNICAST
_ADVERTISED: Final = 9  # RTPROT_RA of linux/rtnetlink.h: from a router advertisement
# rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
_ROUTE = struct.Struct("=BBBBBBBBI")
# linux/rtnetlink.h: RTA_DST, …
_WAY_DST, _WAY_OIF, _WAY_GATEWAY, _MULTIPATH, _WAY_TABLE, _WAY_VIA = 1, 4, 5, 9, 15, 18
_HOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, weight less one, interface
_NUMBER = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Way:
    """Routes leave by the interface with this number; `leads_on` says that one leads beyond its own link.

    `is_advertised` says that only a router advertisement says so: any machine on the link can send one.
    """

    index: int
    leads_on: bool
    is_advertised: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A route to packed addresses that begin with so many bits; none are a default route's."""

    destination: bytes
    length: int
    ways: tuple[Way, ...]

    @property
    def subnet(self) -> Subnet:
        """Where it leads."""
        return ip_network((self.destination, self.length), strict=False)


def routes(family: Family, table: int, most: int) -> list[Listed]:
    """Give a table's first routes for packets, `most` of them, but none of ours, which lead to guests."""
    fixed = _ROUTE.pack(FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0) + attribute(_WAY_TABLE, _NUMBER.pack(table))
    found = map(_listed, first_listed(_WAY_GET, fixed, most))
    return [route for route in found if route is not None]


def ways_of(body: bytes) -> tuple[Way, ...]:
    """Give the ways of one route, where it says something of its interfaces."""
    route = _listed(body)
    return route.ways if route is not None and is_telling(route) else ()


def _listed(body: bytes) -> Listed | None:
    _, length, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    if kind != _UNICAST or protocol == PROTOCOL:
        return None
    found = attributes(body[_ROUTE.size :])
    leading = ((index, length == 0 or _WAY_GATEWAY in hop or _WAY_VIA in hop) for index, hop in _hops(found))
    ways = tuple(Way(index, leads_on, protocol == _ADVERTISED) for index, leads_on in leading)
    return Listed(found.get(_WAY_DST, b""), length, ways)


def is_telling(route: Listed) -> bool:
    """Whether it says something of its interfaces: one to a single address, or a link-local one, does not."""
    if not route.destination:
        return True
    address = ip_address(route.destination)
    return not (address.is_link_local or address.is_multicast) and route.length < address.max_prefixlen


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


# Hears of routes that change where the host leads out: a default route that comes or goes, a first one elsewhere.
#
# A filter keeps what is no route for packets from us, and of a router of the Internet, which changes thousands a
# minute, most is no news: a further route through an interface that is known to have one. What this misses is found at
# the next full comparison.
_UPLINK_GROUPS: Final = 0x40 | 0x400  # RTMGRP_IPV4_ROUTE, _IPV6_ROUTE
_NEW, _DELETED = 24, 25  # RTM_NEWROUTE, …
_HEADER: Final = 16
_LENGTH_AT: Final = 1  # in rtmsg, the length of the destination
# Routes that any machine on the link can make come and go: by an advertisement, or with the subnet of one. The kernel
# makes such a subnet's route as it does for an address that somebody gives, which is heard of by itself.
_BY_KERNEL: Final = 2  # RTPROT_KERNEL
_OF_ADVERTISEMENTS: Final = (
    (Field(1, _PROTOCOL_AT, _ADVERTISED),),
    (Field(1, _HEADER, FAMILIES[Family.IPV6]), Field(1, _PROTOCOL_AT, _BY_KERNEL)),
)
_OF_OTHERS: Final = (
    (Field(1, _PROTOCOL_AT, _ADVERTISED, differs=True), Field(1, _PROTOCOL_AT, _BY_KERNEL, differs=True)),
    (Field(1, _HEADER, FAMILIES[Family.IPV4]), Field(1, _PROTOCOL_AT, _BY_KERNEL)),
)


def _for_packets(routes: Iterable[tuple[Field, ...]]) -> tuple[tuple[Field, ...], ...]:
    """Pick what comes and goes of these."""
    kinds = [native(2, _TYPE_AT, kind) for kind in (_NEW, _DELETED)]
    return tuple((kind, native(1, _HEADER + 7, _UNICAST), *fields) for kind in kinds for fields in routes)


# How often routes that are withdrawn make us look: a router of the Internet withdraws some all the time.
_PAUSE_S: Final = 5.0


class UplinkChanges:
    """Tells news from repetition, purely; `now` is a monotonic time in seconds. Guests may cause it, if `by_guest`."""

    def __init__(self, *, by_guest: bool = False) -> None:
        self._by_guest = by_guest
        self._known: set[Way] = set()
        self._withdrawn_at = float("-inf")

    def news(self, message: Message, now: float) -> Iterator[Reason]:
        """Give a reason for each interface of which a route says something new."""
        for way in ways_of(message.body):
            if message.kind == _NEW and way not in self._known:
                self._known.add(way)
                yield self._reason(way, "has a route now")
            elif message.kind == _DELETED and self._is_worth_a_pass(message, now):
                self._known.discard(way)
                yield self._reason(way, "lost a route")

    def _reason(self, way: Way, detail: str) -> Reason:
        return Reason(ReasonKind.ROUTE, interface_name(way.index), detail, self._by_guest)

    def _is_worth_a_pass(self, message: Message, now: float) -> bool:
        is_default = message.body[_LENGTH_AT] == 0
        if not is_default and now - self._withdrawn_at < _PAUSE_S:
            return False
        self._withdrawn_at = now
        return True


class UplinkWatch:
    """Calls `trigger` with a reason, on the loop's thread, when routes say that uplinks may have changed.

    What advertisements change is heard by a socket of its own, of which reading takes from `guests`.
    """

    def __init__(self, trigger: Trigger, guests: Budget) -> None:
        self._trigger = trigger
        self._news = self._heard(_OF_OTHERS, None), self._heard(_OF_ADVERTISEMENTS, guests)

    def start(self) -> None:
        """Subscribe, in the network namespace of this thread.

        Raises:
            KernelError: the kernel refused.

        """
        try:
            for news in self._news:
                news.start()
        except KernelError:
            self.close()
            raise

    def close(self) -> None:
        """Unsubscribe; does nothing if not subscribed."""
        for news in self._news:
            news.close()

    def _heard(self, of: Iterable[tuple[Field, ...]], guests: Budget | None) -> RouteNews:
        by_guest = guests is not None
        changes, lost = UplinkChanges(by_guest=by_guest), Reason(ReasonKind.ROUTES_LOST, by_guest=by_guest)
        receive, only = partial(self._receive, changes), _for_packets(of)
        return RouteNews(_UPLINK_GROUPS, receive, lambda: self._trigger(lost), only, guests)

    def _receive(self, changes: UplinkChanges, message: Message) -> None:
        for reason in changes.news(message, asyncio.get_running_loop().time()):
            self._trigger(reason)
