"""Listens to the kernel: addresses, neighbours and routes that came, went or changed, and links up or down.

Only says that it is worth looking again; the facts are read by `fwdaemon.kernel.observe`. Of new links libvirt reports
at a better moment, when the guest is really there. Most of what the kernel sends here is no news (a neighbour that goes
from reachable to stale, an IPv6 address whose lifetime was renewed, what a bridge learns), so each message is compared
with the last one on the same thing.

Messages are taken apart here and not by pyroute2: we need two attributes each of two fixed structures (rtnetlink(7)),
and decoding the whole of a message costs a hundred times as much.
"""

import asyncio
import errno
import logging
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from ipaddress import ip_address
from typing import Final

from fwdaemon.core.report import Actor, ActorKind, Reason, ReasonKind, RulesChanged, Trigger
from fwdaemon.core.types import Address, Family
from fwdaemon.errors import KernelError
from fwdaemon.kernel import netlink
from fwdaemon.kernel.netlink import Listed, Message, RouteNews, Way, attributes, hops, is_telling
from fwdaemon.kernel.packets import Field, native
from fwdaemon.kernel.rtnetlink import FAMILIES, PROTOCOL, interface_name, is_ours
from fwdaemon.kernel.rtnl_links import ROUTE, USABLE_STATES
from fwdaemon.triggers import Budget

_log = logging.getLogger(__name__)

_GROUPS: Final = 0x4 | 0x10 | 0x100  # RTMGRP_NEIGH, _IPV4_IFADDR, _IPV6_IFADDR
_DATAGRAM_SIZE: Final = 65536
# Datagrams of one turn of the loop, each of which costs as much as reading some.
_AT_ONCE: Final = 64

_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type

_ADDRESS_CAME, _ADDRESS_WENT = 20, 21  # RTM_NEWADDR, RTM_DELADDR
_NEIGHBOUR_CAME, _NEIGHBOUR_WENT = 28, 29
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2

_PERMANENT: Final = 0x80  # IFA_F_PERMANENT
_NUD_PROBE: Final = 0x10
_NUD_FAILED: Final = 0x20
_SCOPE_LINK: Final = 253  # RT_SCOPE_LINK
_AF_BRIDGE: Final = 7  # what a bridge says of its ports and of the MAC addresses behind them


class KernelChanges:
    """Distinguishes news from repetition, purely; neighbour entries are news for the MAC addresses of guests only."""

    def __init__(self) -> None:
        self._macs: AbstractSet[str] = frozenset()
        self._configured: AbstractSet[bytes] = frozenset()
        # Configured addresses, each with the guest's MAC address that was asked and did not answer. The set is replaced
        # and never changed, as it is read on another thread.
        self._silent: frozenset[tuple[bytes, bytes]] = frozenset()
        self._addresses: set[tuple[int, bytes]] = set()
        self._neighbours: dict[tuple[int, bytes], bytes] = {}

    def watch_macs(self, macs: AbstractSet[str]) -> None:
        """Say which MAC addresses guests have."""
        self._macs = macs
        self._silent = frozenset(item for item in self._silent if item[1].hex(":") in macs)

    def watch_addresses(self, configured: Iterable[Address]) -> None:
        """Say which addresses the configuration gives to guests."""
        self._configured = {address.packed for address in configured}
        self._silent = frozenset()

    def answers(self, address: Address, mac: str) -> bool:
        """Whether a guest may be at its configured address: it has not failed to answer. From any thread."""
        return (address.packed, bytes.fromhex(mac.replace(":", ""))) not in self._silent

    def forget(self) -> None:
        """Messages were lost: anything may be news again."""
        self._addresses.clear()
        self._neighbours.clear()
        self._silent = frozenset()

    def news(self, datagram: bytes) -> Iterator[Reason]:
        """Give a reason for each message of a datagram that is news."""
        for message in netlink.messages(datagram):
            kind, body = message.kind, message.body
            if body[:1] == bytes([_AF_BRIDGE]):
                continue
            # What is too short to be either is no news.
            if kind in (_ADDRESS_CAME, _ADDRESS_WENT) and len(body) >= _ADDRESS.size:
                yield from self._address(body, came=kind == _ADDRESS_CAME)
            elif kind in (_NEIGHBOUR_CAME, _NEIGHBOUR_WENT) and len(body) >= _NEIGHBOUR.size:
                yield from self._neighbour(body, came=kind == _NEIGHBOUR_CAME)

    def _address(self, body: bytes, *, came: bool) -> Iterator[Reason]:
        """Link-local addresses are no news: every interface gets one, and nothing is ever forwarded to it.

        One with a lifetime is from a router advertisement or a DHCP server, which any machine on the link can be.
        """
        *_rest, flags, scope, index = _ADDRESS.unpack_from(body)
        found = attributes(body[_ADDRESS.size :])
        address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
        if scope == _SCOPE_LINK or (came and (index, address) in self._addresses):
            return
        if came:
            self._addresses.add((index, address))
        else:
            self._addresses.discard((index, address))
        detail = "appeared" if came else "disappeared"
        yield Reason(ReasonKind.HOST_ADDRESS, _written(address), detail, by_guest=not flags & _PERMANENT)

    def _neighbour(self, body: bytes, *, came: bool) -> Iterator[Reason]:
        """A vanished entry is no news: no answer for a while does not mean that the guest moved.

        One that failed, because there was no answer to a question, is: the guest may have another address by now.
        """
        _family, index, state, _flags, _type = _NEIGHBOUR.unpack_from(body)
        found = attributes(body[_NEIGHBOUR.size :])
        address, mac = found.get(_NDA_DST, b""), found.get(_NDA_LLADDR, b"")
        before = self._neighbours.pop((index, address), b"")
        if came and state & USABLE_STATES:
            self._neighbours[index, address] = mac
            if state != _NUD_PROBE and (address, mac) in self._silent:  # while it is asked, it has not answered
                self._silent -= {(address, mac)}
            if mac != before and not self._macs.isdisjoint((mac.hex(":"), before.hex(":"))):
                yield Reason(ReasonKind.NEIGHBOUR, _written(address), mac.hex(":"))
        elif came and state & _NUD_FAILED and before.hex(":") in self._macs:
            if address in self._configured:
                self._silent |= {(address, before)}
            yield Reason(ReasonKind.NEIGHBOUR, _written(address))


class NetlinkWatch:
    """Calls `trigger` with a reason, on the loop's thread, when the kernel has news.

    Guests can have it send as many as they like, so reading them takes from `guests`.
    """

    def __init__(self, trigger: Trigger, guests: Budget) -> None:
        self._trigger = trigger
        self._changes = KernelChanges()
        self._subscription = netlink.Subscription(lambda: netlink.rtnetlink_socket(_GROUPS), self._read)
        self._guests = guests

    def start(self) -> None:
        """Subscribe, in the network namespace of this thread.

        Raises:
            KernelError: the kernel refused.

        """
        try:
            self._subscription.start()
        except OSError as error:
            raise KernelError(f"the kernel does not report changes to addresses: {error}") from error

    def watch_macs(self, macs: AbstractSet[str]) -> None:
        """Say which MAC addresses guests have; all others are of no interest."""
        self._changes.watch_macs(macs)

    def watch_addresses(self, configured: Iterable[Address]) -> None:
        """Say which addresses the configuration gives to guests, so that `answers` can report them."""
        self._changes.watch_addresses(configured)

    def answers(self, address: Address, mac: str) -> bool:
        """Whether a guest may be at its configured address: it has not failed to answer. From any thread."""
        return self._changes.answers(address, mac)

    def close(self) -> None:
        """Unsubscribe; does nothing if not subscribed."""
        self._subscription.close()

    def _read(self, source: socket.socket) -> None:
        with self._guests.charged(time.thread_time):
            for _ in range(_AT_ONCE):
                if not self._take(source):
                    break
        if rest := self._guests.rest():
            self._subscription.pause(rest)

    def _take(self, source: socket.socket) -> bool:
        """Take one datagram, and return whether there may be another."""
        try:
            datagram = source.recv(_DATAGRAM_SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            _log.debug("netlink messages were lost, so everything is compared")
            self._changes.forget()
            self._trigger(Reason(ReasonKind.ADDRESSES_LOST))
            return True
        for reason in self._changes.news(datagram):
            self._trigger(reason)
        return True


def _written(packed: bytes) -> str:
    """Write an address of 4 or 16 bytes; of any other number, these."""
    try:
        return str(ip_address(packed))
    except ValueError:
        return packed.hex()


# Routes of ours that others change, and links that they take up or down: the kernel says nothing of IPv4 routes that go
# with their link. A filter keeps the rest from us: a router of the Internet changes thousands of routes a minute.

_ROUTE_GROUPS: Final = 0x1 | 0x40 | 0x400  # RTMGRP_LINK, _IPV4_ROUTE, _IPV6_ROUTE
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
        self._news = RouteNews(_ROUTE_GROUPS, self._receive, self._lost, _FILTER)

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


# Where a route leads, ours or not (rtnetlink(7)).
_UNICAST: Final = 1  # RTN_UNICAST
_ADVERTISED: Final = 9  # RTPROT_RA of linux/rtnetlink.h: from a router advertisement
# linux/rtnetlink.h: RTA_DST, …
_WAY_DST, _WAY_GATEWAY, _WAY_VIA = 1, 5, 18


def ways_of(body: bytes) -> tuple[Way, ...]:
    """Give the ways of one route, where it says something of its interfaces."""
    route = read_route(body)
    return route.ways if route is not None and is_telling(route) else ()


def read_route(body: bytes) -> Listed | None:
    """Read a route for packets, but none of ours, which lead to guests."""
    _, length, _, _, _, protocol, _, kind, _ = ROUTE.unpack_from(body)
    if kind != _UNICAST or protocol == PROTOCOL:
        return None
    found = attributes(body[ROUTE.size :])
    leading = ((index, length == 0 or _WAY_GATEWAY in hop or _WAY_VIA in hop) for index, hop in hops(found))
    ways = tuple(Way(index, leads_on, protocol == _ADVERTISED) for index, leads_on in leading)
    return Listed(found.get(_WAY_DST, b""), length, ways)


# Hears of routes that change where the host leads out: a default route that comes or goes, a first one elsewhere.
#
# A filter keeps what is no route for packets from us, and of a router of the Internet, which changes thousands a
# minute, most is no news: a further route through an interface that is known to have one. What this misses is found at
# the next full comparison.
_UPLINK_GROUPS: Final = 0x40 | 0x400  # RTMGRP_IPV4_ROUTE, _IPV6_ROUTE
_HEADER: Final = 16
_LENGTH_AT: Final = 1  # in rtmsg, the length of the destination
# Routes that any machine on the link can make come and go: by an advertisement, or with the subnet of one. The kernel
# makes such a subnet's route as it does for an address that is added by hand, which is reported by itself.
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
    kinds = [native(2, _TYPE_AT, kind) for kind in (_NEW_ROUTE, _DELETED_ROUTE)]
    return tuple((kind, native(1, _HEADER + 7, _UNICAST), *fields) for kind in kinds for fields in routes)


# How often routes that are withdrawn make us look: a router of the Internet withdraws some all the time.
_PAUSE_S: Final = 5.0


class UplinkChanges:
    """Distinguishes news from repetition, purely; `now` is in monotonic seconds. Guests may cause it, if `by_guest`."""

    def __init__(self, *, by_guest: bool = False) -> None:
        self._by_guest = by_guest
        self._known: set[Way] = set()
        self._withdrawn_at = float("-inf")

    def news(self, message: Message, now: float) -> Iterator[Reason]:
        """Give a reason for each interface of which a route says something new."""
        for way in ways_of(message.body):
            if message.kind == _NEW_ROUTE and way not in self._known:
                self._known.add(way)
                yield self._reason(way, "gained")
            elif message.kind == _DELETED_ROUTE and self._is_worth_a_pass(message, now):
                self._known.discard(way)
                yield self._reason(way, "lost")

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
