"""Decides which claimed address of a guest is believed, and which of its interfaces an entry means.

Pure. A guest may say anything of itself: in its lease, through its agent, by ARP. It is believed only inside its own
network's subnets, never for an address of the host, and never against a guest with evidence as good: otherwise one
guest could have another's traffic, or the host's, sent to itself.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from uuid import UUID

from fwdaemon.core.inventory import (
    AddressSource,
    Attachment,
    Domain,
    GuestInterface,
    Hindrance,
    HindranceKind,
    Inventory,
    LearnedAddress,
    Place,
)
from fwdaemon.core.types import Address, Family, Subnet

# Whether the host reaches a guest's interface at all, and what the kernel routes there besides its own subnets. Pure.
#
# Traffic of macvtap and of user-mode networks passes by the host's routing, so a forward there would be live and dead.


class Reach:
    """The routes of one inventory to guests' links."""

    def __init__(self, inventory: Inventory) -> None:
        self._routed: defaultdict[str, list[Subnet]] = defaultdict(list)
        for device, subnet in sorted(inventory.routed, key=str):
            self._routed[device].append(subnet)
        # What is on a link because the host has an address there that is more than one of its own.
        self._on_link = [(host.device, host.subnet) for host in inventory.host_addresses if _is_wide(host.subnet)]

    def subnet_of(self, interface: GuestInterface, address: Address) -> Subnet | None:
        """Give the subnet by which the kernel routes an address to the interface's bridge."""
        return _narrowest(self._routed.get(interface.bridge, ()) if interface.bridge is not None else (), address)

    def hindrance(self, interface: GuestInterface, configured: Address | None) -> Hindrance | None:
        """Say why the host does not reach an interface; `None` where it may."""
        match interface.attachment:
            case Attachment.PORT:
                return None
            case Attachment.USER_MODE:
                return Hindrance(HindranceKind.USER_MODE)
        if configured is not None and self._is_beside(interface, configured):
            return None
        return Hindrance(HindranceKind.MACVTAP, names=() if interface.parent is None else (interface.parent,))

    def _is_beside(self, interface: GuestInterface, address: Address) -> bool:
        """Whether the host reaches an address other than through the parent, as by a macvlan of its own."""
        routed = ((device, subnet) for device, subnets in self._routed.items() for subnet in subnets)
        beside = [subnet for device, subnet in (*routed, *self._on_link) if device != interface.parent]
        return _narrowest(beside, address) is not None


def _narrowest(subnets: Iterable[Subnet], address: Address) -> Subnet | None:
    found = (subnet for subnet in subnets if subnet.version == address.version and address in subnet)
    return max(found, key=lambda subnet: subnet.prefixlen, default=None)


def _is_wide(subnet: Subnet) -> bool:
    return subnet.num_addresses > 1


@dataclass(frozen=True, slots=True)
class ConfiguredAddress:
    """The configuration says where this interface of a running domain is."""

    domain: Domain
    interface: GuestInterface
    address: Address


class SubnetIndex:
    """The subnets each interface of an inventory may have addresses in."""

    def __init__(self, inventory: Inventory) -> None:
        self._networks = {network.name: network.subnets for network in inventory.networks}
        self._namesakes = {network.bridge: network for network in inventory.namesakes if network.active}
        self._bridges: defaultdict[str, dict[Subnet, None]] = defaultdict(dict)
        for host in inventory.host_addresses:
            if not host.address.is_link_local:
                self._bridges[host.device][host.subnet] = None

    def of(self, interface: GuestInterface) -> tuple[Subnet, ...]:
        """Give the libvirt network's subnets; for a bridge without such, those of the host's addresses on it."""
        subnets = self._of_network(interface)
        if subnets or interface.bridge is None:
            return subnets
        return tuple(self._bridges.get(interface.bridge, ()))

    def _of_network(self, interface: GuestInterface) -> tuple[Subnet, ...]:
        """Give the subnets of its network; of two of one name, its bridge decides."""
        namesake = self._namesakes.get(interface.bridge)
        if namesake is not None and namesake.name == interface.network:
            return namesake.subnets
        return self._networks.get(interface.network, ()) if interface.network is not None else ()


@dataclass(frozen=True, slots=True, order=True)
class _Holder:
    """A domain's best evidence for one address."""

    source: AddressSource
    name: str
    domain: UUID


class AddressBook:
    """All claims of one inventory and configuration, indexed once; every question then costs the same."""

    def __init__(self, inventory: Inventory, configured: Iterable[ConfiguredAddress] = ()) -> None:
        self._subnets = SubnetIndex(inventory)
        self._reach = Reach(inventory)
        active = {network.name for network in inventory.every_network if network.active}
        self._active = {network.name: network.name in active for network in inventory.networks}
        gateways = {gateway for network in inventory.every_network if network.active for gateway in network.gateways}
        self._host = gateways | {host.address for host in inventory.host_addresses if not host.address.is_link_local}
        self._claimed: dict[UUID, dict[Address, _Holder]] = {}
        self._holders: defaultdict[Address, dict[UUID, _Holder]] = defaultdict(dict)
        self._strongest: dict[Address, list[_Holder]] = {}
        written: defaultdict[UUID, list[ConfiguredAddress]] = defaultdict(list)
        for item in configured:
            written[item.domain.uuid].append(item)
        for domain in inventory.domains:
            self._note(domain.uuid, self._credible(domain, written.get(domain.uuid, ())))

    def change(self, uuid: UUID, domain: Domain | None, configured: Iterable[ConfiguredAddress] = ()) -> set[UUID]:
        """Replace all that is claimed for a domain, and give those about whose addresses the answer may be another."""
        before, after = self._claimed.pop(uuid, {}), self._credible(domain, configured) if domain is not None else {}
        differing = [item for item in before.keys() | after.keys() if before.get(item) != after.get(item)]
        for address in before:
            self._forget(address, uuid)
        self._note(uuid, after)
        for address in differing:
            self._strongest.pop(address, None)
        return {other for address in differing for other in self._holders.get(address, ())}

    def families(self, interface: GuestInterface) -> frozenset[Family]:
        """Give the families in which the interface's subnets are known; none for a bridge that was not described."""
        return frozenset(Family.of(subnet) for subnet in self._subnets.of(interface))

    def believed(
        self, domain: Domain, interface: GuestInterface, family: Family, configured: Address | None = None
    ) -> LearnedAddress | Hindrance:
        """Give the address to use; `configured`, of that family, goes before everything learned."""
        if (absent := self._absent_network(interface) or self._reach.hindrance(interface, configured)) is not None:
            return absent
        if configured is not None:
            return self._judged(domain, interface, LearnedAddress(configured, AddressSource.CONFIGURATION))
        hindrances = []
        for claim in interface.learned:
            if Family.of(claim.address) is family:
                verdict = self._judged(domain, interface, claim)
                if isinstance(verdict, LearnedAddress):
                    return verdict
                hindrances.append(verdict)
        return hindrances[0] if hindrances else self._silence(interface, family)

    def select_interface(
        self,
        domain: Domain,
        family: Family,
        *,
        network: str | None = None,
        mac: str | None = None,
        configured: Address | None = None,
    ) -> GuestInterface | Hindrance:
        """Give the interface an entry means: as it says, or the only one that can have an address of that family."""
        named = [item for item in domain.interfaces if network in (None, item.network) and mac in (None, item.mac)]
        if not named:
            return Hindrance(HindranceKind.NO_INTERFACE, places=(Place(mac, network),))
        possible = [item for item in named if self._can_have(item, family, configured)] if len(named) > 1 else named
        match possible:
            case [interface]:
                return interface
            case [] if all(item.attachment is not Attachment.PORT for item in named):
                return self._reach.hindrance(named[0], configured) or named[0]
            case []:
                wanted = family if configured is None else None
                return Hindrance(HindranceKind.NO_FITTING_INTERFACE, configured, family=wanted, places=_places(named))
            case _:
                return Hindrance(HindranceKind.SEVERAL_INTERFACES, places=_places(possible))

    def _credible(self, domain: Domain, configured: Iterable[ConfiguredAddress]) -> dict[Address, _Holder]:
        """Give credible claims only, or a guest could spoil any other's address by claiming it from elsewhere."""
        best: dict[Address, _Holder] = {}
        for interface, claim in _claims(domain, configured):
            if self._incredible(interface, claim) is None:
                holder = _Holder(claim.source, domain.name, domain.uuid)
                best[claim.address] = min(best.get(claim.address, holder), holder)
        return best

    def _note(self, uuid: UUID, claimed: dict[Address, _Holder]) -> None:
        if claimed:
            self._claimed[uuid] = claimed
        for address, holder in claimed.items():
            self._holders[address][uuid] = holder

    def _forget(self, address: Address, uuid: UUID) -> None:
        del self._holders[address][uuid]
        if not self._holders[address]:
            del self._holders[address]

    def _two_strongest(self, address: Address) -> list[_Holder]:
        """Give those with the best evidence. Two are enough: the one that asks is at most one of them."""
        if address not in self._strongest:
            self._strongest[address] = nsmallest(2, self._holders.get(address, {}).values())
        return self._strongest[address]

    def _judged(self, domain: Domain, interface: GuestInterface, claim: LearnedAddress) -> LearnedAddress | Hindrance:
        return self._incredible(interface, claim) or self._contested(domain, claim) or claim

    def _incredible(self, interface: GuestInterface, claim: LearnedAddress) -> Hindrance | None:
        """Give why no machine on this interface could have the address, whatever claims it."""
        address = claim.address
        if address in self._host:
            return Hindrance(HindranceKind.ADDRESS_OF_HOST, address)
        if _is_special(address):
            return Hindrance(HindranceKind.ADDRESS_SPECIAL, address, claim.source)
        subnets = [subnet for subnet in self._subnets.of(interface) if subnet.version == address.version]
        if not subnets:
            return self._without_subnet(interface, claim)
        inside = next((subnet for subnet in subnets if address in subnet), None)
        if inside is None and claim.source is AddressSource.CONFIGURATION:
            inside = self._reach.subnet_of(interface, address)
        if inside is None:
            return Hindrance(HindranceKind.ADDRESS_OUTSIDE, address, claim.source, subnets=tuple(subnets))
        if _names(inside, address):
            return Hindrance(HindranceKind.ADDRESS_OF_SUBNET, address, subnets=(inside,))
        return None

    def _without_subnet(self, interface: GuestInterface, claim: LearnedAddress) -> Hindrance | None:
        """Believe only the configuration where the subnets are unknown, no one where only the family is missing."""
        known = self._subnets.of(interface)
        if not known and claim.source is AddressSource.CONFIGURATION:
            return None
        return self._silence(interface, Family.of(claim.address))

    def _contested(self, domain: Domain, claim: LearnedAddress) -> Hindrance | None:
        conflicting = next((item for item in self._two_strongest(claim.address) if item.domain != domain.uuid), None)
        if conflicting is None or conflicting.source > claim.source:
            return None
        if conflicting.source < claim.source:
            return Hindrance(
                HindranceKind.ADDRESS_OF_ANOTHER, claim.address, conflicting.source, names=(conflicting.name,)
            )
        names = tuple(sorted((domain.name, conflicting.name)))
        return Hindrance(HindranceKind.ADDRESS_CONTESTED, claim.address, claim.source, names=names)

    def _absent_network(self, interface: GuestInterface) -> Hindrance | None:
        if interface.network is None or self._active.get(interface.network, False):
            return None
        is_known = interface.network in self._active
        kind = HindranceKind.NETWORK_NOT_ACTIVE if is_known else HindranceKind.NO_SUCH_NETWORK
        return Hindrance(kind, names=(interface.network,))

    def _silence(self, interface: GuestInterface, family: Family) -> Hindrance:
        """Say why no claim of that family is there, or could count."""
        known = self._subnets.of(interface)
        if any(Family.of(subnet) is family for subnet in known):
            return Hindrance(HindranceKind.NO_ADDRESS)
        if known:
            return Hindrance(HindranceKind.NO_SUBNET, family=family, places=(interface.place,))
        return Hindrance(HindranceKind.SUBNETS_UNKNOWN, places=(interface.place,))

    def _can_have(self, interface: GuestInterface, family: Family, configured: Address | None) -> bool:
        """Whether an address could be on that interface; on an absent network, or an unknown bridge, it might."""
        if interface.attachment is not Attachment.PORT:
            return configured is not None and self._reach.hindrance(interface, configured) is None
        subnets = self._subnets.of(interface)
        if not subnets:
            absent = interface.network is not None and interface.network not in self._active
            return absent or (configured is not None and interface.bridge is not None)
        if configured is not None:
            routed = self._reach.subnet_of(interface, configured)
            return routed is not None or any(configured in subnet for subnet in subnets)
        return any(Family.of(subnet) is family for subnet in subnets)


def _claims(domain: Domain, configured: Iterable[ConfiguredAddress]) -> Iterator[tuple[GuestInterface, LearnedAddress]]:
    for interface in domain.interfaces if domain.running else ():
        for claim in interface.learned:
            yield interface, claim
    for item in configured:
        yield item.interface, LearnedAddress(item.address, AddressSource.CONFIGURATION)


def _is_special(address: Address) -> bool:
    return address.is_link_local or address.is_multicast or address.is_loopback or address.is_unspecified


def _names(subnet: Subnet, address: Address) -> bool:
    """Whether it is the network's or the broadcast address; IPv6 gives the former to routers (RFC 4291, 2.6.1)."""
    if subnet.max_prefixlen - subnet.prefixlen <= 1:
        return False
    return address == subnet.network_address or (
        Family.of(address) is Family.IPV4 and address == subnet.broadcast_address
    )


def _places(interfaces: Iterable[GuestInterface]) -> tuple[Place, ...]:
    return tuple(interface.place for interface in interfaces)
