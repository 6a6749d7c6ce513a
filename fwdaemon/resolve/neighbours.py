"""The neighbour table: which guests it may name, and to answer for outside, and to search for on a bridge. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice, permutations
from typing import Final

from fwdaemon.core.exposures import Route
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HijackedAddress,
    HostAddress,
    Inventory,
    Neighbour,
    Network,
)
from fwdaemon.core.state import Proxied, Silent
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Address, Family, GuestPath, Subnet
from fwdaemon.resolve.addresses import ConfiguredAddress

# What the kernel's neighbour table is worth: it forgets guests that are there, keeps old addresses, believes anyone.
#
# Pure. An entry changes with any packet that claims an address (RFC 826), and a guest may claim what it likes. So
# entries are remembered while their guest runs, and those that seem wrong are to be asked again, which is up to the
# kernel.
_GIVEN = (AddressSource.LEASE, AddressSource.RESERVATION)


def remembered(before: Iterable[Neighbour], now: Sequence[Neighbour], macs: AbstractSet[str]) -> tuple[Neighbour, ...]:
    """Add to the neighbour table what it knew before of guests that still run; what was known first comes first.

    The kernel drops entries of those it has not talked to for long, and no packet reaches a guest whose forward went
    with its entry, so it would never come back. An old entry counts no more once the guest has another address of that
    family, or a machine that is no guest has the address. Where another guest has it, both claim it: the table has room
    for one only, and who spoke last need not be right.
    """
    holders = {(neighbour.device, neighbour.address): neighbour.mac for neighbour in now}
    moved = {_spot(neighbour) for neighbour in now}

    def stays(old: Neighbour) -> bool:
        holder = holders.get((old.device, old.address))
        if holder == old.mac:
            return True
        return old.mac in macs and _spot(old) not in moved and (holder is None or holder in macs)

    return tuple(dict.fromkeys([*filter(stays, before), *now]))


def outdated_neighbours(
    before: Iterable[Neighbour], now: Sequence[Neighbour], macs: AbstractSet[str]
) -> tuple[Neighbour, ...]:
    """Give the entries of guests for which there are several of one family, one of them new: the guest may have moved.

    The kernel would find out by itself, but only with packets on their way to the old address, and half a minute later.
    """
    count = Counter(_spot(neighbour) for neighbour in now)
    renewed = {_spot(neighbour) for neighbour in set(now).difference(before)}
    return tuple(item for item in now if item.mac in macs and count[_spot(item)] > 1 and _spot(item) in renewed)


def changed_hands(before: Iterable[Neighbour], now: Iterable[Neighbour]) -> bool:
    """Whether an address that was seen is seen elsewhere now, so that it could be hijacked."""
    holders = {(neighbour.device, neighbour.address): neighbour.mac for neighbour in now}
    return any(holders.get((old.device, old.address), old.mac) != old.mac for old in before)


def hijacked_addresses(
    inventory: Inventory,
    before: Iterable[Neighbour],
    now: Iterable[Neighbour],
    configured: Iterable[ConfiguredAddress] = (),
) -> tuple[HijackedAddress, ...]:
    """Give the addresses that were seen at the guest they were given to, and are now seen elsewhere.

    `configured` are those that the configuration gives.
    """
    owners, guests = _owners(inventory, configured), _guests(inventory)
    known = set(before)
    found = []
    for neighbour in now:
        mac = owners.get((neighbour.device, neighbour.address), neighbour.mac)
        rightful, taker = Neighbour(neighbour.device, mac, neighbour.address), guests.get(neighbour.mac)
        # A guest with two interfaces on one bridge answers on both, as Linux does, and takes nothing from itself.
        if rightful != neighbour and rightful in known and taker is not guests[mac]:
            found.append(HijackedAddress(rightful, guests[mac].name, taker.name if taker is not None else None))
    return tuple(found)


def _owners(inventory: Inventory, configured: Iterable[ConfiguredAddress]) -> Mapping[tuple[str | None, Address], str]:
    """Give the MAC address that each address was given to.

    The configuration counts more than a reservation, and that more than a lease not yet ended.
    """
    claims = [
        (claim.source, (interface.bridge, claim.address), interface.mac)
        for domain in inventory.domains
        for interface in domain.interfaces
        for claim in interface.learned
        if claim.source in _GIVEN
    ]
    owners = {place: mac for _source, place, mac in sorted(claims, key=lambda claim: -claim[0])}
    return owners | {(item.interface.bridge, item.address): item.interface.mac for item in configured}


def _guests(inventory: Inventory) -> Mapping[str, Domain]:
    return {interface.mac: domain for domain in inventory.domains for interface in domain.interfaces}


def _spot(neighbour: Neighbour) -> tuple[str, str, Family]:
    return neighbour.device, neighbour.mac, Family.of(neighbour.address)


# For which addresses of proxied routes the host answers outside: those that guests behind its own bridge have. Pure.
#
# Of two hosts between which guests move, each has the whole subnet in its configuration. So an address counts only
# while a guest that runs here shows it, from its own MAC address, on the bridge that the route leads to; as long as
# none does, no one is answered. Which guests those are follows from an inventory like everything else: a guest that was
# handed over runs here no more.

# Of one route; a guest that shows one address after the other gets no further than this.
_MOST: Final = 1024


def proxied(routes: Iterable[Route], inventory: Inventory) -> frozenset[Proxied]:
    """Give each address to answer for, with its route."""
    answering = [route for route in routes if route.proxy is not None]
    if not answering:
        return frozenset()
    own = {host.address for host in inventory.host_addresses}
    return frozenset(
        Proxied(route, address)
        for route in answering
        for address in islice(sorted(_shown(route, inventory) - own, key=int), _MOST)
    )


def unseen(routes: Iterable[Route], inventory: Inventory) -> frozenset[Silent]:
    """Give the guests behind proxied routes that have shown no address of them: they may have one and never say so."""
    return frozenset(
        Silent(route.bridge, interface.mac, route.family, route.subnet)
        for route in routes
        if route.proxy is not None
        for interface in _behind(route, inventory)
        if not any(_lies_in(claim.address, route) for claim in interface.learned)
    )


def _shown(route: Route, inventory: Inventory) -> set[Address]:
    claims = (claim.address for interface in _behind(route, inventory) for claim in interface.learned)
    return {address for address in claims if _lies_in(address, route)}


def _behind(route: Route, inventory: Inventory) -> Iterator[GuestInterface]:
    for domain in inventory.domains:
        if domain.running:
            yield from (interface for interface in domain.interfaces if interface.bridge == route.bridge)


def _lies_in(address: Address, route: Route) -> bool:
    return address.version == route.subnet.version and address in route.subnet


# What the networks of libvirt are to exposures. Pure.


def homes(networks: Iterable[Network]) -> Iterator[tuple[Subnet, str]]:
    """Give the subnets that lie behind libvirt's own bridges, and nowhere else."""
    for network in networks:
        if network.active and network.own_bridge and network.bridge is not None:
            yield from ((subnet, network.bridge) for subnet in network.subnets if not subnet.is_link_local)


def inside(networks: Iterable[Network]) -> Iterator[str]:
    """Give the bridges that libvirt made for networks whose guests it lets out."""
    for network in networks:
        if network.active and network.own_bridge and network.forwards and network.bridge is not None:
            yield network.bridge


def closed(networks: Iterable[Network]) -> Iterator[tuple[Family, str]]:
    """Give those into which it lets no one, by family."""
    for network in networks:
        if network.active and network.own_bridge and network.bridge is not None:
            yield from ((family, network.bridge) for family in network.closed)


def forwarded(networks: Iterable[Network]) -> Iterator[tuple[Family, str]]:
    """Give the networks that need forwarding without us, by family."""
    for network in networks:
        if network.active and network.forwards:
            yield from ((Family.of(subnet), network.name) for subnet in network.subnets if not subnet.is_link_local)


def paths(networks: Iterable[Network], uplinks: Collection[str]) -> Iterator[GuestPath]:
    """Give the paths of guests on which libvirt's own rules decide: none by a bridge or network that it leaves alone.

    Guests of one network reach each other, and what libvirt forwards goes between networks and uplinks. So nothing here
    leads to or from bridges of others, such as those of containers.
    """
    filtered = [item for item in networks if item.active and item.own_bridge and not item.unfiltered]
    for family in Family:
        inner = {
            item.bridge: item
            for item in filtered
            if item.bridge is not None and item.bridge not in uplinks and is_interface_name(item.bridge)
            if any(Family.of(subnet) is family for subnet in item.subnets)
        }
        yield from (GuestPath(family, bridge, bridge) for bridge in inner)
        closed = {bridge: family in item.closed for bridge, item in inner.items() if item.forwards}
        ways = dict.fromkeys(filter(is_interface_name, uplinks), False) | closed
        for came_in, goes_out in permutations(ways, 2):
            # Of two networks that let no one in, neither reaches the other; what goes between uplinks is not theirs.
            both_closed = closed.get(came_in, False) and closed.get(goes_out, False)
            if not both_closed and not closed.keys().isdisjoint((came_in, goes_out)):
                yield GuestPath(family, came_in, goes_out, answers=ways[goes_out])


def lies_in(address: Address, subnets: Iterable[Subnet]) -> bool:
    """Whether an address is in any of them."""
    return any(address.version == subnet.version and address in subnet for subnet in subnets)


def lets_out(network: Network, subnet: Subnet) -> bool:
    """Whether libvirt's own rules let out what these addresses open: they do so for a network's own subnets."""
    own = (other for other in network.subnets if other.version == subnet.version)
    is_own = any(subnet.subnet_of(other) for other in own)  # type: ignore[arg-type]  # the family is one
    return network.unfiltered or (network.forwards and is_own)


def elsewhere(
    listens: Iterable[Address | None], public: Iterable[Address], routed: Collection[Subnet], inventory: Inventory
) -> Iterator[Address]:
    """Give the listening addresses that would be on a link of the host that leads away, if any machine there has them.

    One that is routed to the host from farther off needs not be held by it, and those of guests are their own.
    """
    own = {host.address for host in inventory.host_addresses}.union(public)
    inside = {network.bridge for network in inventory.every_network if network.own_bridge}
    links = [host.subnet for host in inventory.host_addresses if host.device not in inside]
    for address in set(listens) - own:
        if address is not None and lies_in(address, links) and not lies_in(address, routed):
            yield address


# Which guests are to be searched for on their bridge, and what is asked there.
#
# A guest with a fixed address that never speaks to the host is named by no lease, agent or neighbour entry. So its own
# subnet is asked, while an entry waits for it: by ARP for each address, or in IPv6, where there are too many, for the
# one made of its MAC address, and all at once. An answer counts if it comes from the guest's own MAC address.

# A /22: larger subnets are not asked, as it would take too long and too many packets.
_LARGEST: Final = 1 << 10
_INTERFACE_IDENTIFIER_BITS: Final = 64
_MOST_OF_ONE_GUEST: Final = 8


@dataclass(frozen=True, slots=True)
class Question:
    """Whether one of `macs` on `bridge` has one of `targets`; the host asks from `source`.

    With `everybody`, all nodes on the bridge are asked together as well.
    """

    bridge: str
    source: Address
    subnet: Subnet
    macs: frozenset[str]
    targets: tuple[Address, ...]
    everybody: bool = False


def questions(silent: Collection[Silent], inventory: Inventory) -> Iterator[Question]:
    """Give what to ask: one question for each subnet that the host has an address in on a bridge of silent guests.

    One that is routed to the bridge is asked whole, from another address of the host.
    """
    wanted: defaultdict[tuple[str, Family, Subnet | None], set[str]] = defaultdict(set)
    for item in silent:
        wanted[item.bridge, item.family, item.subnet].add(item.mac)
    known = inventory.guest_addresses.union(host.address for host in inventory.host_addresses)
    for host in inventory.host_addresses:
        macs = wanted.get((host.device, Family.of(host.address), None))
        if macs and not host.address.is_link_local:
            yield from _of_subnet(host, frozenset(macs), known)
    for (bridge, family, subnet), macs in wanted.items():
        if subnet is not None and (source := _source(bridge, family, inventory)) is not None:
            yield _of_route(HostAddress(source, subnet, bridge), frozenset(macs), known)


def _source(bridge: str, family: Family, inventory: Inventory) -> Address | None:
    """Give an address from which a guest is asked for one that the host has no neighbour of.

    What asks all of IPv6 has to be of the guest's scope, wherever the host has it. ARP needs none.
    """
    usable = [
        host
        for host in inventory.host_addresses
        if Family.of(host.address) is family and not host.address.is_link_local and not host.address.is_loopback
    ]
    here = next((host.address for host in usable if host.device == bridge), None)
    if family is Family.IPV4:
        return here or IPv4Address(0)
    return here or next((host.address for host in usable), None)


def _of_route(place: HostAddress, macs: frozenset[str], known: Collection[Address]) -> Question:
    """Ask for every address of a subnet; of one that is too wide, as on any."""
    if place.subnet.num_addresses <= _LARGEST:
        targets = tuple(address for address in place.subnet if address not in known)
        return Question(place.device, place.address, place.subnet, macs, targets)
    return next(_of_subnet(place, macs, known), Question(place.device, place.address, place.subnet, macs, ()))


def _of_subnet(host: HostAddress, macs: frozenset[str], known: Collection[Address]) -> Iterator[Question]:
    match host.subnet:
        case IPv4Network() as subnet if subnet.num_addresses <= _LARGEST:
            targets = tuple(address for address in subnet.hosts() if address not in known)
            yield Question(host.device, host.address, subnet, macs, targets)
        case IPv6Network() as subnet if subnet.prefixlen <= _INTERFACE_IDENTIFIER_BITS:
            made = tuple(item for mac in sorted(macs) if (item := _made_of(mac, subnet)) not in known)
            yield Question(host.device, host.address, subnet, macs, made, everybody=True)
        case IPv6Network() as subnet:
            yield Question(host.device, host.address, subnet, macs, (), everybody=True)


def interface_identifier(mac: str) -> bytes:
    """Give the second half of the IPv6 addresses that are made of a MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])


def _made_of(mac: str, subnet: IPv6Network) -> IPv6Address:
    return IPv6Address(subnet.network_address.packed[:8] + interface_identifier(mac))


@dataclass(frozen=True, slots=True)
class Answer:
    """`mac` answered from `address`."""

    mac: str
    address: Address


def credible(question: Question, answers: Collection[Answer]) -> Iterator[Answer]:
    """Give those answers that could be where a guest is.

    One that answers for nearly everything that is asked is a router, or lies; it is not believed at all.
    """
    found: defaultdict[str, dict[Answer, None]] = defaultdict(dict)
    for answer in answers:
        if answer.mac in question.macs and answer.address in question.subnet and answer.address != question.source:
            found[answer.mac][answer] = None
    for own in found.values():
        if len(own) <= _MOST_OF_ONE_GUEST:
            yield from own
