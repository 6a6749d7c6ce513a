"""Which guests are to be searched for on their bridge, and what is asked there. Pure.

A guest with a fixed address that never speaks to the host is named by no lease, agent or neighbour entry. So its own
subnet is asked, while an entry waits for it: by ARP for each address, or in IPv6, where there are too many, for the one
made of its MAC address, and all at once. An answer counts if it comes from the guest's own MAC address.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from fwdaemon.core.inventory import HostAddress, Inventory
from fwdaemon.core.types import Address, Family, Subnet

# A /22: larger subnets are not asked, as it would take too long and too many packets.
_LARGEST: Final = 1 << 10
_INTERFACE_IDENTIFIER_BITS: Final = 64
_MOST_OF_ONE_GUEST: Final = 8


@dataclass(frozen=True, slots=True)
class Silent:
    """An entry waits for a guest: nothing names an address of that family for `mac` on `bridge`.

    With `subnet` it is one that is routed to the bridge, in which the host has no address itself.
    """

    bridge: str
    mac: str
    family: Family
    subnet: Subnet | None = None


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
