"""Has the host answer ARP and neighbour discovery for routed addresses, where they are not routed to it.

The kernel does so for single addresses; its entries are made for each address of a small subnet, and are known as ours
by their protocol number. For a wide prefix of IPv6 a responder of our own answers.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv6Address, IPv6Network, ip_network
from typing import Final, TypeAlias

from fwdaemon.desired import Opening, Route
from fwdaemon.errors import KernelError
from fwdaemon.ledger import Ledger
from fwdaemon.model import Family, collapse
from fwdaemon.naming import shown
from fwdaemon.nd_responder import Duty, Responder
from fwdaemon.outcome import Outcome, joined
from fwdaemon.rtnetlink.address import addresses
from fwdaemon.rtnetlink.client import Rtnetlink, interface_index, interface_name
from fwdaemon.rtnetlink.proxy import ProxyEntry, add_proxy_entry, delete_proxy_entry, proxy_entries
from fwdaemon.rtnetlink.route import route_of
from fwdaemon.switches import Switches

# The widest subnet whose addresses get an entry each.
_MOST_ENTRIES: Final = 1024

# Each interface that is to answer, with its number and the routes it is to answer for.
_Places: TypeAlias = Mapping[tuple[str, int], set[Route]]


class NeighbourProxies:
    """Keeps entries and responders for routes that have a `proxy`."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._entries = _Entries(ledger or Ledger("proxy-ndp"))
        self._responders = _Responders()
        self._held: frozenset[Opening] = frozenset()
        self._asked: frozenset[Route] | None = None

    def keep(self, routes: frozenset[Route]) -> Outcome:
        """Answer for these routes and no others; `mended` are those that were not answered for. Blocks.

        Raises:
            KernelError: the kernel does not tell its entries.

        """
        proxied = frozenset(route for route in routes if route.proxy is not None)
        if not proxied and self._asked == proxied:
            return Outcome()
        with Rtnetlink() as kernel:
            narrow, wide, faults = _placed(kernel, proxied)
            entries = self._entries.keep(kernel, narrow, first=self._asked is None)
            outcome = joined(entries, self._responders.keep(kernel, wide))
        damaged, self._held = outcome.mended & self._held, (self._held & proxied) | outcome.mended
        self._asked = proxied
        return joined(outcome, Outcome(damaged=damaged, faults=tuple(faults)))

    def close(self) -> None:
        """End the responders; what the kernel holds stays."""
        self._responders.close()


class _Entries:
    """The kernel's own entries, and the setting that has it heed those of IPv6."""

    def __init__(self, ledger: Ledger) -> None:
        self._heeding = Switches(ledger, Family.IPV6, "proxy_ndp", "1")

    def keep(self, kernel: Rtnetlink, places: _Places, *, first: bool) -> Outcome:
        """Make the entries that are missing, and remove those of ours that nobody needs."""
        wanted = {
            ProxyEntry(address, index): route
            for (_, index), routes in places.items()
            for route in routes
            for address in route.subnet
        }
        known = {entry: ours for family in Family for entry, ours in proxy_entries(kernel, family).items()}
        superfluous = [entry for entry, ours in known.items() if ours and entry not in wanted]
        for entry in superfluous:
            delete_proxy_entry(kernel, entry)
        answering = {
            name for (name, _), routes in places.items() if any(route.family is Family.IPV6 for route in routes)
        }
        switched = self._heeding.keep(answering)
        added, faults = _added(kernel, {entry: route for entry, route in wanted.items() if entry not in known})
        return Outcome(
            mended=added,
            stale=frozenset(_told(superfluous) if first else ()),
            faults=(*switched.faults.values(), *faults),
            changed=bool(added or superfluous or switched.changed),
        )


class _Responders:
    """One for each interface that is to answer for wide prefixes."""

    def __init__(self) -> None:
        self._running: dict[str, Responder] = {}
        self._served: frozenset[Route] = frozenset()

    def keep(self, kernel: Rtnetlink, places: _Places) -> Outcome:
        """Have one at work wherever it is needed, and nowhere else."""
        superfluous = self._running.keys() - {name for name, _ in places}
        for name in superfluous:
            self._end(name)
        served: set[Route] = set()
        mended: set[Route] = set()
        faults = []
        for (name, index), routes in places.items():
            try:
                is_new = self._serve(kernel, name, index, routes)
            except (KernelError, OSError) as error:
                self._end(name)
                faults.append(f"nobody answers for {_listed(routes)} on {shown(name)}: {error}")
            else:
                served |= routes
                mended |= routes if is_new else routes - self._served
        self._served = frozenset(served)
        return Outcome(frozenset(mended), faults=tuple(faults), changed=bool(mended or superfluous))

    def close(self) -> None:
        """End all."""
        for name in list(self._running):
            self._end(name)

    def _end(self, name: str) -> None:
        if (running := self._running.pop(name, None)) is not None:
            running.close()

    def _serve(self, kernel: Rtnetlink, name: str, index: int, routes: Iterable[Route]) -> bool:
        """Answer for routes on an interface; whether that took a new responder."""
        duty = _duty(kernel, index, routes)
        running = self._running.get(name)
        if running is not None and running.serves(index):
            running.assign(duty)
            return False
        self._end(name)
        self._running[name] = Responder(name, index, duty)
        return True


def _placed(kernel: Rtnetlink, routes: Iterable[Route]) -> tuple[_Places, _Places, list[str]]:
    """Sort narrow routes and wide ones by the interface that is to answer for them, and tell what is wrong."""
    narrow: dict[tuple[str, int], set[Route]] = defaultdict(set)
    wide: dict[tuple[str, int], set[Route]] = defaultdict(set)
    faults = []
    for route in sorted(routes, key=Route.listens_at):
        try:
            places = narrow if route.subnet.num_addresses <= _MOST_ENTRIES else wide
            places[_place(kernel, route)].add(route)
        except KernelError as error:
            faults.append(f"nobody answers for {route.subnet} on {shown(str(route.proxy))}: {error}")
    return narrow, wide, faults


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


def _added(kernel: Rtnetlink, missing: Mapping[ProxyEntry, Route]) -> tuple[frozenset[Route], list[str]]:
    """Add entries; give the routes they are for, and what is wrong with those that were refused, once for each."""
    added, refused = set(), {}
    for entry, route in missing.items():
        if route not in refused:
            try:
                add_proxy_entry(kernel, entry)
                added.add(route)
            except KernelError as error:
                refused[route] = f"the kernel does not answer for {route.subnet} on {shown(str(route.proxy))}: {error}"
    return frozenset(added - refused.keys()), list(refused.values())


def _duty(kernel: Rtnetlink, index: int, routes: Iterable[Route]) -> Duty:
    """Tell a responder its duty.

    Raises:
        KernelError: the interface has no address from which to answer.

    """
    known = [entry.address for entry in addresses(kernel, Family.IPV6, index)]
    own = [address for address in known if isinstance(address, IPv6Address)]
    if not own:
        raise KernelError("it has no IPv6 address")
    source = next((address for address in own if address.is_link_local), own[0])
    subnets = (route.subnet for route in routes)
    return Duty(frozenset(item for item in subnets if isinstance(item, IPv6Network)), frozenset(own), source)


def _told(entries: Iterable[ProxyEntry]) -> Iterator[str]:
    """Name entries for people, with as few words as possible."""
    by_interface = defaultdict(list)
    for entry in entries:
        by_interface[entry.index, Family.of(entry.address)].append(entry.address)
    for (index, _), some in by_interface.items():
        yield f"proxy entries on {shown(interface_name(index))} for {', '.join(collapse(map(ip_network, some)))}"


def _listed(routes: Iterable[Route]) -> str:
    return ", ".join(sorted(str(route.subnet) for route in routes))
