"""Has the host answer ARP and neighbour discovery for routed addresses, where they are not routed to it.

The kernel answers, by an entry for each address; ours are known by their protocol number. There is one for each address
that a guest behind the route's bridge has now (`fwdaemon.resolve.neighbours`), and none for the rest of its subnet: a
second host with the same route answers for its own guests. Each new one is announced, since neighbours may know it at
that other host.

Who is asked for outside is asked for on the bridge too, by the kernel. A guest that answers there becomes an entry of
the neighbour table, of which the daemon hears as of any other, and from which it follows that the host answers outside.
One that is known is asked too: the kernel finds out so that it has gone.
"""

import logging
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from threading import Thread
from typing import Final, TypeAlias

from fwdaemon.core.exposures import Route
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, joined
from fwdaemon.core.state import Proxied
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family, Subnet, collapse
from fwdaemon.errors import KernelError, shortage
from fwdaemon.hostnet.owned_state import OwnedStateFile, SysctlOverrides
from fwdaemon.hostnet.public_addresses import Announcer
from fwdaemon.kernel import packets
from fwdaemon.kernel.packets import ETHERNET
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.kernel.rtnetlink import Rtnetlink, interface_index, interface_name
from fwdaemon.kernel.rtnl_links import ProxyEntry, add_proxy_entry, delete_proxy_entry, proxy_entries, resolve, route_of
from fwdaemon.triggers import Budget

_log = logging.getLogger(__name__)

_PROTOCOLS: Final = {Family.IPV4: 0x0806, Family.IPV6: 0x86DD}  # ETH_P_ARP, ETH_P_IPV6
_SOL_PACKET = 263
# linux/if_packet.h. The membership lets in groups that no socket of ours has joined; it ends with the socket.
_ADD_MEMBERSHIP, _ALLMULTI = 1, 2
_MEMBERSHIP = struct.Struct("=iHH8s")
# How a packet came that was meant for us, be it as one of many. Others are the host's own, which may probe for an
# address that it is about to take, and those of VLANs that are no links of the host.
_MEANT = (socket.PACKET_HOST, socket.PACKET_BROADCAST, socket.PACKET_MULTICAST)
_LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Duty:
    """What to listen for: each subnet, with the number of the bridge that its guests are on."""

    bridges: frozenset[tuple[Subnet, int]]

    def bridge(self, target: Address) -> int | None:
        """Give where to ask for an address."""
        for subnet, index in self.bridges:
            if target.version == subnet.version and target in subnet:
                return index
        return None

    @property
    def subnets(self) -> list[Subnet]:
        """All subnets, in an order of their own."""
        return sorted((subnet for subnet, _ in self.bridges), key=str)


class Turns:
    """Who may be asked for now. Pure; holds no more addresses than are asked for in one turn.

    Each is asked for once in so many `seconds`, and at `most` so many: the kernel's table has room for a thousand.
    """

    def __init__(self, seconds: float = 1.0, most: int = 50) -> None:
        self._seconds, self._most = seconds, most
        self._asked: set[Address] = set()
        self._until = 0.0

    def grants(self, target: Address, now: float) -> bool:
        """Whether to ask for an address, and hold that this is done."""
        if now >= self._until:
            self._asked.clear()
            self._until = now + self._seconds
        if target in self._asked or len(self._asked) >= self._most:
            return False
        self._asked.add(target)
        return True


class Listener:
    """Listens on one interface, in a thread of its own; what that costs is taken from `guests`.

    Raises:
        KernelError: the interface has no MAC addresses, or no thread is available.
        OSError: there is no such interface, no descriptor is left, or the kernel refuses the filter: too many subnets.

    """

    def __init__(self, interface: str, index: int, duty: Duty, guests: Budget, turns: Turns | None = None) -> None:
        self._interface = interface
        self._at = index, duty
        self._duty, self._guests = duty, guests
        self._turns = turns or Turns()
        with ExitStack() as undo:
            families = sorted({Family.of(subnet) for subnet in duty.subnets})
            self._links = [undo.enter_context(_opened(interface, index, duty, family)) for family in families]
            self._waker, self._woken = map(undo.enter_context, socket.socketpair())
            self._thread = Thread(target=self._run, name=f"neighbours of {shown(interface)}", daemon=True)
            self._begin()
            undo.pop_all()

    def _begin(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise KernelError(f"no thread is available: {error}") from error

    def serves(self, index: int, duty: Duty) -> bool:
        """Whether it is still at work, with this duty, and on the interface that has this number now."""
        return self._at == (index, duty) and self._thread.is_alive()

    def close(self) -> None:
        """End the thread; the interface is then as it was before."""
        self._waker.close()
        self._thread.join()
        self._woken.close()
        for link in self._links:
            link.close()

    def _run(self) -> None:
        while (ready := self._ready(*self._links)) is not None:
            with self._guests.charged(time.thread_time):
                for link in ready:
                    self._receive(link)
            while rest := self._guests.rest():  # others may spend meanwhile
                if self._ready(timeout=rest) is None:
                    return

    def _ready(self, *links: socket.socket, timeout: float | None = None) -> list[socket.socket] | None:
        """Wait for packets, or for the time given; `None` when it is time to end."""
        waiting = select.poll()
        for source in (self._woken, *links):
            waiting.register(source, select.POLLIN)
        ready = dict(waiting.poll(None if timeout is None else timeout * 1000))
        return None if self._woken.fileno() in ready else [link for link in links if link.fileno() in ready]

    def _receive(self, link: socket.socket) -> None:
        """Read one packet, and ask on the bridge if it is worth it."""
        try:
            packet, (_name, protocol, kind, *_rest) = link.recvfrom(_LONGEST)
            target = _target(packet, protocol) if kind in _MEANT else None
            bridge = None if target is None else self._duty.bridge(target)
            if target is not None and bridge is not None and self._turns.grants(target, time.monotonic()):
                with Rtnetlink() as kernel:
                    resolve(kernel, target, bridge)
        except (OSError, KernelError) as error:  # the link went down, or the bridge has gone
            _log.debug("what %s asks for is not asked for: %s", shown(self._interface), error)


def _target(packet: bytes, protocol: int) -> Address | None:
    """Give the address that is asked for."""
    if protocol == _PROTOCOLS[Family.IPV4]:
        return packets.read_request(packet)
    asked = packets.read_solicitation(packet)
    return None if asked is None else asked.target


def _opened(interface: str, index: int, duty: Duty, family: Family) -> socket.socket:
    """Open a socket that gets what is asked in one family, and nothing before it is filtered."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        packets.attach(link, packets.questions(index, duty.subnets, family))
        if family is Family.IPV6:
            link.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, _MEMBERSHIP.pack(index, _ALLMULTI, 0, bytes(8)))
        link.bind((interface, _PROTOCOLS[family]))
        _require_macs(link)
    except (OSError, KernelError):
        with suppress(OSError):
            link.close()
        raise
    return link


def _require_macs(link: socket.socket) -> None:
    *_rest, hardware, _mac = link.getsockname()
    if hardware != ETHERNET:
        raise KernelError("the link has no MAC addresses")


# The entries, and who listens where.

# Each interface that is to answer, with its number and the routes it is to answer for.
_Places: TypeAlias = Mapping[tuple[str, int], set[Route]]


class NeighbourProxies:
    """Keeps entries and listeners for routes that have a `proxy`; what is heard takes from `guests`."""

    def __init__(
        self,
        state_file: OwnedStateFile | None = None,
        guests: Budget | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self._entries = _Entries(state_file or OwnedStateFile("proxy-ndp"), announcer or Announcer())
        self._listeners = _Listeners(guests or budget_of_guests())
        self._asked: frozenset[Route] | None = None

    def release(self, wanted: frozenset[Proxied]) -> None:
        """Answer no more for what is not among these. Blocks.

        Raises:
            KernelError: the kernel does not take its entries back.

        """
        self._entries.release(wanted)

    def apply(self, routes: frozenset[Route], wanted: frozenset[Proxied], *, full: bool = False) -> ApplyResult:
        """Answer for these addresses and no others; `mended` are routes of which one was, and then was not. Blocks.

        At first, those count of which one was not: an earlier run may have answered for it.
        Where no route is to be answered for, and none was, the kernel's are listed only if this is to be `full`.

        Raises:
            KernelError: the kernel does not list its entries.

        """
        proxied = frozenset(route for route in routes if route.proxy is not None)
        if not proxied and self._asked == proxied and not full:
            return ApplyResult()
        with Rtnetlink() as kernel:
            places, faults = _placed(kernel, proxied)
            result = self._entries.apply(kernel, places, wanted, first=self._asked is None)
        result = joined(result, self._listeners.apply(places))
        self._asked = proxied
        return joined(result, ApplyResult(faults=tuple(faults)))

    def close(self) -> None:
        """End the listeners; what the kernel holds stays."""
        self._listeners.close()


class _Entries:
    """The kernel's own entries, and the setting that has it heed those of IPv6."""

    def __init__(self, state_file: OwnedStateFile, announcer: Announcer) -> None:
        self._announcer = announcer
        self._heeding = SysctlOverrides(state_file, Family.IPV6, "proxy_ndp", "1")
        self._held: dict[ProxyEntry, Proxied] = {}

    def release(self, wanted: frozenset[Proxied]) -> None:
        """Remove those that we held for an address that is not among these."""
        left = [entry for entry, item in self._held.items() if item not in wanted]
        if left:
            with Rtnetlink() as kernel:
                for entry in left:
                    delete_proxy_entry(kernel, entry)
                    del self._held[entry]

    def apply(self, kernel: Rtnetlink, places: _Places, wanted: frozenset[Proxied], *, first: bool) -> ApplyResult:
        """Make the entries that are missing or were changed, and remove those of ours that are not needed."""
        at = {route: place for place, routes in places.items() for route in routes}
        needed = {ProxyEntry(item.address, at[item.route][1]): item for item in wanted if item.route in at}
        known = {entry: held for family in Family for entry, held in proxy_entries(kernel, family).items()}
        superfluous = [entry for entry, held in known.items() if held.is_ours and entry not in needed]
        right = {entry for entry, held in known.items() if held.is_plain or not held.is_ours}
        for entry in superfluous:
            delete_proxy_entry(kernel, entry)
        switched = self._heeding.apply({name for name, _ in _of_family(places, Family.IPV6)})
        added, faults = _added(kernel, {entry: item for entry, item in needed.items() if entry not in right})
        damaged = _routes(needed, added & self._held.keys())
        for entry in added - self._held.keys():
            self._announcer.announce(interface_name(entry.index), entry.address)
        self._held = {entry: item for entry, item in needed.items() if entry in right or entry in added}
        return ApplyResult(
            mended=_routes(needed, added) if first else damaged,
            damaged=damaged,
            stale=frozenset(_format_entries(superfluous) if first else ()),
            faults=(*(Fault(FaultKind.ERROR, detail=reason) for reason in switched.faults.values()), *faults),
            changed=bool(added or superfluous or switched.changed),
            settings=tuple(switched.settings),
        )


class _Listeners:
    """One for each interface that is to answer."""

    def __init__(self, guests: Budget) -> None:
        self._guests = guests
        self._running: dict[str, Listener] = {}

    def apply(self, places: _Places) -> ApplyResult:
        """Have one at work wherever it is needed, and nowhere else."""
        for name in self._running.keys() - {name for name, _ in places}:
            self._end(name)
        faults, short = [], False
        for (name, index), routes in places.items():
            try:
                self._listen(name, index, routes)
            except (KernelError, OSError) as error:
                self._end(name)
                short |= shortage(error) is not None
                faults.append(Fault(FaultKind.PROXY_LISTENER, (name, *_subnets(routes)), str(error)))
        return ApplyResult(faults=tuple(faults), short=short)

    def close(self) -> None:
        """End all."""
        for name in list(self._running):
            self._end(name)

    def _end(self, name: str) -> None:
        if (running := self._running.pop(name, None)) is not None:
            running.close()

    def _listen(self, name: str, index: int, routes: Iterable[Route]) -> None:
        """Listen on an interface for what routes are for."""
        bridges = ((route.subnet, interface_index(route.bridge)) for route in routes)
        duty = Duty(frozenset((subnet, bridge) for subnet, bridge in bridges if bridge is not None))
        running = self._running.get(name)
        if running is None or not running.serves(index, duty):
            self._end(name)
            self._running[name] = Listener(name, index, duty, self._guests)


def _routes(needed: Mapping[ProxyEntry, Proxied], entries: Iterable[ProxyEntry]) -> frozenset[Route]:
    return frozenset(needed[entry].route for entry in entries)


def _of_family(places: _Places, family: Family) -> Iterator[tuple[str, int]]:
    return (place for place, routes in places.items() if any(route.family is family for route in routes))


def _placed(kernel: Rtnetlink, routes: Iterable[Route]) -> tuple[_Places, list[Fault]]:
    """Sort routes by the interface that is to answer for them, and return what is wrong."""
    places: dict[tuple[str, int], set[Route]] = defaultdict(set)
    faults = []
    for route in sorted(routes, key=Route.listens_at):
        try:
            places[_place(kernel, route)].add(route)
        except KernelError as error:
            faults.append(Fault(FaultKind.PROXY, (str(route.subnet), str(route.proxy)), str(error)))
    return places, faults


def _place(kernel: Rtnetlink, route: Route) -> tuple[str, int]:
    """Give the interface that is to answer.

    Raises:
        KernelError: there is none, or the addresses are not routed to the network. To answer for them would then take
            them away from the machine that has them.

    """
    name = route.proxy or ""
    index, bridge = interface_index(name), interface_index(route.bridge)
    if index is None:
        raise KernelError("there is no such interface")
    found = route_of(kernel, route.subnet)
    if bridge is None or found is None or not found.leads_to(bridge):
        raise KernelError(f"its addresses are not routed to {shown(route.bridge)}")
    return name, index


def _added(kernel: Rtnetlink, missing: Mapping[ProxyEntry, Proxied]) -> tuple[set[ProxyEntry], list[Fault]]:
    """Add entries; give those that were, and what is wrong with others, once for each route."""
    added: set[ProxyEntry] = set()
    refused: dict[Route, Fault] = {}
    for entry, (route, _) in missing.items():
        try:
            add_proxy_entry(kernel, entry)
            added.add(entry)
        except KernelError as error:
            refused[route] = Fault(FaultKind.PROXY_ENTRY, (str(route.subnet), str(route.proxy)), str(error))
    return added, list(refused.values())


def _format_entries(entries: Iterable[ProxyEntry]) -> Iterator[str]:
    """Name entries for people, with as few words as possible."""
    by_interface = defaultdict(list)
    for entry in entries:
        by_interface[entry.index, Family.of(entry.address)].append(entry.address)
    for (index, _), some in by_interface.items():
        yield f"proxy entries on {shown(interface_name(index))} for {', '.join(collapse(map(ip_network, some)))}"


def _subnets(routes: Iterable[Route]) -> list[str]:
    return sorted(str(route.subnet) for route in routes)
