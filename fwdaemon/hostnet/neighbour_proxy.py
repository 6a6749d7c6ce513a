"""Has the host answer ARP and neighbour discovery for routed addresses, where they are not routed to it.

The kernel answers, by an entry for each address; ours are known by their protocol number. There is one for each address
that a guest behind the route's bridge has now (`fwdaemon.resolve.neighbours`), and none for the rest of its subnet: a
second host with the same route answers for its own guests. Each new one is announced, since neighbours may know it at
that other host. Who is asked for outside, and has no entry, is asked for on the bridge
(`fwdaemon.hostnet.neighbour_listener`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import TypeAlias

from fwdaemon.core.exposures import Route
from fwdaemon.core.pace import Budget
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, joined
from fwdaemon.core.state import Proxied
from fwdaemon.core.text import shown
from fwdaemon.core.types import Family, collapse
from fwdaemon.errors import KernelError, shortage
from fwdaemon.hostnet.neighbour_listener import Duty, Listener
from fwdaemon.hostnet.owned_state import OwnedStateFile, SysctlOverrides
from fwdaemon.hostnet.public_addresses import announce
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.kernel.rtnetlink import Rtnetlink, interface_index, interface_name
from fwdaemon.kernel.rtnl_links import ProxyEntry, add_proxy_entry, delete_proxy_entry, proxy_entries, route_of

# Each interface that is to answer, with its number and the routes it is to answer for.
_Places: TypeAlias = Mapping[tuple[str, int], set[Route]]


class NeighbourProxies:
    """Keeps entries and listeners for routes that have a `proxy`; what is heard takes from `guests`."""

    def __init__(self, state_file: OwnedStateFile | None = None, guests: Budget | None = None) -> None:
        self._entries = _Entries(state_file or OwnedStateFile("proxy-ndp"))
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

    def __init__(self, state_file: OwnedStateFile) -> None:
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
        """Make the entries that are missing or were changed, and remove those of ours that nobody needs."""
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
        _announce(added - self._held.keys())
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
            them away from whoever has them.

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


def _announce(entries: Iterable[ProxyEntry]) -> None:
    for entry in entries:
        announce(interface_name(entry.index), entry.address)


def _format_entries(entries: Iterable[ProxyEntry]) -> Iterator[str]:
    """Name entries for people, with as few words as possible."""
    by_interface = defaultdict(list)
    for entry in entries:
        by_interface[entry.index, Family.of(entry.address)].append(entry.address)
    for (index, _), some in by_interface.items():
        yield f"proxy entries on {shown(interface_name(index))} for {', '.join(collapse(map(ip_network, some)))}"


def _subnets(routes: Iterable[Route]) -> list[str]:
    return sorted(str(route.subnet) for route in routes)
