"""What the host is: its links, addresses, uplinks, and who else has its addresses."""

import os
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from fwdaemon.core.inventory import HostAddress, HostObservation, Neighbour
from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.errors import KernelError
from fwdaemon.kernel.host_watch import read_route
from fwdaemon.kernel.netlink import Listed, Way, attribute, attributes, is_telling, number
from fwdaemon.kernel.rtnetlink import FAMILIES, Kind, RefusedError, Rtnetlink, first_listed, interface_index
from fwdaemon.kernel.rtnl_links import (
    CONFIRMED_STATES,
    KNOWN_STATES,
    ROUTE,
    USABLE_STATES,
    KernelNeighbour,
    neighbours,
    on_link_routes,
    probe,
    resolve,
    subnets,
)

# Which address a host is reached at when none is named: the first IPv4 address of the default route's interface.
_MAIN_TABLE: Final = 254  # RT_TABLE_MAIN of linux/rtnetlink.h


def default_address() -> IPv4Address | None:
    """Ask the kernel; `None` without a default route, or where its interface has no IPv4 address.

    Raises:
        KernelError: the kernel did not answer.

    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - 150 ms
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - the same

    try:
        with IPRoute() as rtnetlink:
            routes = rtnetlink.get_default_routes(family=socket.AF_INET, table=_MAIN_TABLE)
            device = _device(routes)
            return None if device is None else _first_address(rtnetlink.get_addr(family=socket.AF_INET, index=device))
    except (NetlinkError, OSError) as error:
        raise KernelError(f"the kernel did not report its default route: {error}") from error


def _device(routes: Iterable[Any]) -> int | None:
    """Give the interface of the best route: the lowest metric, and of several the first, as `ip route` lists them."""
    best = min(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0, default=None)
    return None if best is None else best.get_attr("RTA_OIF")


def _first_address(messages: Iterable[Any]) -> IPv4Address | None:
    return next((IPv4Address(message.get_attr("IFA_LOCAL")) for message in messages), None)


# Which machines on the host's links have listening addresses that the host does not hold now, as on a standby.
#
# The kernel's neighbour table shows it; it is asked to ask once in a while, and only while clients look at the status.
_PAUSE_S: Final = 30.0
_MOST: Final = 64
# How long who is asked may take to answer, and how often the table is read meanwhile.
_PATIENCE_S: Final = 0.5
_INTERVAL_S: Final = 0.05


class Elsewhere:
    """Its methods block; call them from one thread at a time."""

    def __init__(self) -> None:
        self._asked: dict[Address, float] = {}

    def holders(self, addresses: Collection[Address]) -> dict[Address, str]:
        """Give the MAC address of the machine that has each of these, as far as one answers."""
        if not addresses:
            return {}
        try:
            with Rtnetlink() as kernel:
                return self._holders(kernel, addresses)
        except KernelError:
            return {}

    def _holders(self, kernel: Rtnetlink, addresses: Collection[Address]) -> dict[Address, str]:
        found, asked = _known(addresses), self._ask(kernel, addresses)
        until = time.monotonic() + _PATIENCE_S
        while asked - found.keys() and time.monotonic() < until:
            time.sleep(_INTERVAL_S)
            found = _known(addresses)
        return found

    def _ask(self, kernel: Rtnetlink, addresses: Iterable[Address]) -> set[Address]:
        """Ask for those that were not asked for lately; gives them."""
        now = time.monotonic()
        self._asked = {address: at for address, at in self._asked.items() if now < at + _PAUSE_S}
        due = [address for address in sorted(addresses, key=str) if address not in self._asked][:_MOST]
        links = subnets() if due else []
        for address in due:
            self._asked[address] = now
            index = next(
                (own.index for own, subnet in links if address.version == subnet.version and address in subnet), None
            )
            if index is not None:
                with suppress(RefusedError):  # the interface went meanwhile
                    resolve(kernel, address, index)
        return set(due)


def _known(addresses: Collection[Address]) -> dict[Address, str]:
    return {entry.address: entry.mac for entry in neighbours() if entry.address in addresses}


# Which interfaces lead away from the host, and not to guests or containers on it: those that routes say so of.
#
# An interface is an uplink where a default route or one through a gateway leaves by it, in any table that a rule asks.
# A route without a gateway says less: the host's end of a pod's link has one too. It counts where the interface is a
# device, or is built on one, or is a tunnel. Nor does a route from a router advertisement say more, as any machine on
# the link can send one, a pod as well. What is uncertain is no uplink; the configuration may name it.
LINKS: Final = Path("/sys/class/net")
_BUILT_ON = "lower_"
_ETHERNET, _LOOPBACK = "1", "772"  # linux/if_arp.h
# Of a router that knows the whole Internet, the first routes have to do: default routes come first.
_MOST_ROUTES: Final = 10_000
_GET_ROUTE, _TABLE = 26, 15  # RTM_GETROUTE and RTA_TABLE of linux/rtnetlink.h
_NUMBER: Final = struct.Struct("=I")


def uplinks(names: Mapping[int, str], links: Path = LINKS) -> frozenset[str]:
    """Name them; `names` are those of the interfaces, by number. One that comes or goes meanwhile is named or not.

    Raises:
        KernelError: the kernel does not give its routes.

    """
    return _uplinks(_listed_routes(), names, links)


def _listed_routes() -> list[Listed]:
    asked = [(family, table) for family in Family for table in _tables(family)]
    return [route for family, table in asked for route in _routes(family, table)]


def _routes(family: Family, table: int) -> Iterator[Listed]:
    """Give a table's first routes for packets, but none of ours; by hand, as there may be 10,000 to list."""
    fixed = ROUTE.pack(FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0) + attribute(_TABLE, _NUMBER.pack(table))
    return filter(None, map(read_route, first_listed(_GET_ROUTE, fixed, _MOST_ROUTES)))


def _uplinks(listed: Iterable[Listed], names: Mapping[int, str], links: Path = LINKS) -> frozenset[str]:
    found = {way for route in listed if is_telling(route) for way in route.ways if way.index in names}
    leading = {names[way.index] for way in found if _leads_out(way) or _is_away(names, way, links)}
    return frozenset(leading - {"lo"})


_UNUSED: Final = {0, 255}  # no table at all, RT_TABLE_LOCAL
_GET_RULE: Final = 34  # RTM_GETRULE
_RULE: Final = struct.Struct("=B3xB3xI")  # fib_rule_hdr (linux/fib_rules.h): family, table, flags
_RULE_TABLE: Final = 15  # FRA_TABLE


def _tables(family: Family) -> set[int]:
    """Give the tables that some rule asks, the main one among them; the host's own addresses are in another."""
    listed = first_listed(_GET_RULE, _RULE.pack(FAMILIES[family], 0, 0))
    return {_MAIN_TABLE, *map(_table_of, listed)} - _UNUSED


def _table_of(rule: bytes) -> int:
    _family, table, _flags = _RULE.unpack_from(rule)
    return number(attributes(rule[_RULE.size :]).get(_RULE_TABLE)) or table


def _leads_out(way: Way) -> bool:
    """Whether the host's own routes say so, and not only the machines on a link."""
    return way.leads_on and not way.is_advertised


def _is_away(names: Mapping[int, str], way: Way, links: Path) -> bool:
    return leads_away(links / names[way.index])


def leads_away(link: Path) -> bool:
    """Whether what is on the link of an interface is away from the host."""
    if (link / "device").exists():
        return True
    if _kind(link) not in (_ETHERNET, _LOOPBACK, ""):
        return True
    return any(map(leads_away, _built_on(link)))


def _kind(link: Path) -> str:
    try:
        return (link / "type").read_text().strip()
    except OSError:  # it has gone
        return ""


def _built_on(link: Path) -> Iterator[Path]:
    """Give the interfaces below another one; of a bridge, its ports."""
    try:
        with os.scandir(link) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(_BUILT_ON)]
    except OSError:
        return iter(())
    return (link.parent / name.removeprefix(_BUILT_ON) for name in names)


# Which subnets are directly on a link of the host, so that a packet from there has to come in by it.
#
# They are those of the host's addresses, and those that routes without a gateway say so of: tunnels and links to a
# provider have such routes to anywhere, so these count on Ethernet and where they are no wider than a network may be.
# What lies within one and has a route of its own is behind that, and by any interface if a gateway leads there: the way
# back need not be the way in. Where the same subnet is on several links, it may come in by each.
_WIDEST: Final = {4: 8, 6: 16}


def on_links(
    own: Collection[HostAddress], listed: Collection[Listed], names: Mapping[int, str], links: Path = LINKS
) -> frozenset[tuple[Subnet, str]]:
    """Give these subnets, each with an interface; one behind a gateway with an empty name."""
    bound = {(item.subnet, item.device) for item in own if _is_bound(item.subnet) and item.device != "lo"}
    bound.update(_on_ethernet(listed, names, links))
    subnets = frozenset(subnet for subnet, _ in bound)
    # The kernel has a route to each address of IPv6 that the host itself has.
    held = {item.address.packed for item in own}
    others = (route for route in listed if route.length < 8 * len(route.destination) or route.destination not in held)
    for route in _within(others, subnets):
        behind = (way for way in route.ways if way.index in names)
        is_part = route.subnet not in subnets
        bound.update((route.subnet, "" if way.leads_on and is_part else names[way.index]) for way in behind)
    return frozenset(bound.union((subnet, master) for subnet, name in bound if (master := _master_of(links / name))))


def _is_bound(subnet: Subnet) -> bool:
    return 0 < subnet.prefixlen < subnet.max_prefixlen and not (subnet.is_link_local or subnet.is_multicast)


def _on_ethernet(listed: Iterable[Listed], names: Mapping[int, str], links: Path) -> Iterator[tuple[Subnet, str]]:
    for route in listed:
        near = [names[way.index] for way in route.ways if not way.leads_on and way.index in names]
        if near and _is_bound(route.subnet) and route.length >= _WIDEST[route.subnet.version]:
            yield from ((route.subnet, name) for name in near if name != "lo" and _kind(links / name) == _ETHERNET)


def _within(listed: Iterable[Listed], subnets: Collection[Subnet]) -> Iterator[Listed]:
    """Give the routes into these; of thousands most are not, so addresses are compared as numbers."""
    known = {
        (subnet.max_prefixlen // 8, subnet.prefixlen, _first_bits(subnet.network_address.packed, subnet.prefixlen))
        for subnet in subnets
    }
    lengths = {(size, length) for size, length, _ in known}
    for route in listed:
        size = len(route.destination)
        if any(
            of == size and length <= route.length and (of, length, _first_bits(route.destination, length)) in known
            for of, length in lengths
        ):
            yield route


def _first_bits(packed: bytes, length: int) -> int:
    return int.from_bytes(packed) >> (8 * len(packed) - length)


def _master_of(link: Path) -> str:
    """Give what an interface is a port of, by which its packets may seem to come in, as with a VRF."""
    try:
        return (link / "master").readlink().name
    except OSError:
        return ""


# What the kernel knows of this host: its own addresses, its neighbour table, which bridge a tap is plugged into.
#
# Everything is read afresh, by hand what each inventory asks for: with pyroute2, it took 2.5 ms of
# CPU more. The only change made here is to have the kernel ask a neighbour again.
_LINKS: Final = Path("/sys/class/net")


def observe_host(devices_without_bridge: Collection[str] = (), links: Collection[str] = ()) -> HostObservation:
    """Read this network namespace's addresses and neighbours, the bridges of these devices, and these links' routes.

    Blocks.

    Raises:
        KernelError: the kernel did not answer.

    """
    names = dict(socket.if_nameindex())
    bridges = dict(_bridges(devices_without_bridge, names))
    addresses, listed = tuple(_addresses(names)), _listed_routes()
    return HostObservation(
        addresses=addresses,
        neighbours=tuple(_neighbours(names)),
        bridges=bridges,
        uplinks=_uplinks(listed, names),
        routed=frozenset(_routed({*links, *bridges.values()})),
        links=on_links(addresses, listed, names),
    )


def ask_again(outdated: Collection[Neighbour]) -> None:
    """Have the kernel ask these whether they are there, and hold that they are until they fail to answer, in 3 s.

    Raises:
        KernelError: the kernel did not answer.

    """
    if not outdated:
        return
    with Rtnetlink() as kernel:
        for neighbour in outdated:
            index = interface_index(neighbour.device)
            with suppress(RefusedError):  # the entry, or its interface, went meanwhile
                if index is not None:
                    probe(kernel, KernelNeighbour(neighbour.address, neighbour.mac, index))


# The kernel gives up on a neighbour that it knew after it has asked three times, a second apart.
_UNTIL_GIVEN_UP_S: Final = 4.0
_UNTIL_HEARD_S: Final = 2.0


def answers_now(address: Address) -> bool:
    """Whether a machine on a link of the host answers for an address that the kernel has just been led to ask for.

    What the kernel knows already counts for nothing, as it was answered earlier: it is asked to ask again. Blocks.

    Raises:
        KernelError: the kernel did not answer.

    """
    with Rtnetlink() as kernel:
        known = [entry for entry in neighbours(KNOWN_STATES) if entry.address == address]
        for entry in known:
            with suppress(RefusedError):  # it went meanwhile, or this process may not ask
                probe(kernel, entry)
        until = time.monotonic() + (_UNTIL_GIVEN_UP_S if known else _UNTIL_HEARD_S)
        while not _has(address, CONFIRMED_STATES) and time.monotonic() < until:
            if known and not _has(address, USABLE_STATES):
                return False
            time.sleep(_INTERVAL_S)
        return _has(address, USABLE_STATES)


def _has(address: Address, states: int) -> bool:
    return any(entry.address == address for entry in neighbours(states))


def _addresses(names: Mapping[int, str]) -> Iterator[HostAddress]:
    for own, subnet in subnets():
        if own.index in names:
            yield HostAddress(own.address, subnet, names[own.index])


def _neighbours(names: Mapping[int, str]) -> Iterator[Neighbour]:
    for entry in neighbours():
        if entry.index in names and not (entry.address.is_multicast or entry.address.is_link_local):
            yield Neighbour(names[entry.index], entry.mac, entry.address)


def _bridges(devices: Collection[str], names: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    with Rtnetlink() as kernel:
        for device in devices:
            index = interface_index(device)
            bridge = None if index is None else _master(kernel, index)
            if bridge is not None and bridge in names:  # it may be unplugged meanwhile, or in no bridge
                yield device, names[bridge]


def _master(kernel: Rtnetlink, index: int) -> int | None:
    """Give the number of the bridge, or what else, an interface is a port of."""
    found = kernel.entry(Kind.LINK, {"index": index}, {})
    return None if found is None else found.attributes.get("IFLA_MASTER")


def _routed(links: Collection[str]) -> Iterator[tuple[str, Subnet]]:
    """Give what is routed to these links, and to what is built on them, as a macvlan beside a guest's macvtap is."""
    with Rtnetlink() as kernel:
        for device in sorted({*links, *(above for link in links for above in _links_built_on(link))}):
            index = interface_index(device)
            if index is not None:
                yield from ((device, subnet) for subnet in on_link_routes(kernel, index))


def _links_built_on(name: str) -> list[str]:
    """Name the interfaces that are built on one, as macvlans are, but not the bridge it is a port of."""
    with suppress(OSError):
        others = [link for link in _LINKS.iterdir() if os.path.lexists(link / f"lower_{name}")]
        return [link.name for link in others if not (link / "bridge").exists()]
    return []
