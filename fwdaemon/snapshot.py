"""Puts together what libvirt, the guests' agents and the kernel said into one `Inventory`.

Pure. A claim counts only where it was made: a lease for interfaces on that network, a neighbour for those on that
bridge, an agent's word for its own domain; and always only for that MAC address. Which of the claims is believed is
decided in `fwdaemon.addresses`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias
from uuid import UUID

from fwdaemon.addresses import SubnetIndex
from fwdaemon.inventory import AddressSource, Domain, GuestInterface, Inventory, LearnedAddress, Network
from fwdaemon.model import Address, Family
from fwdaemon.observation import HostObservation, LibvirtObservation, MacClaim, ObservedDomain

AgentAnswers: TypeAlias = Mapping[UUID, tuple[MacClaim, ...]]
Place: TypeAlias = tuple[str, str]
"""A network or a bridge, and a MAC address on it."""


def merge(observations: Iterable[LibvirtObservation], host: HostObservation, agents: AgentAnswers) -> Inventory:
    """Make one inventory of several connections' observations; what two of them both see is in it once."""
    observations = tuple(observations)
    neighbours = _by_place((n.device, MacClaim(n.mac, _neighbour(n.address))) for n in host.neighbours)
    domains = {
        seen.domain.uuid: seen.domain
        for observation in observations
        for seen in _domains(observation, _Witnesses(_network_claims(observation), neighbours, agents, host.bridges))
    }
    networks = [seen.network for observation in observations for seen in observation.networks]
    # libvirt lists in no order at all, and two inventories that say the same are to be equal.
    in_order = tuple(sorted(domains.values(), key=lambda domain: (domain.name, domain.uuid)))
    return Inventory(in_order, _distinct(networks), host.addresses, host.outer - _guest_devices(observations))


def _guest_devices(observations: Iterable[LibvirtObservation]) -> frozenset[str]:
    """Give the host's side of every guest's interface: when its bridge goes, a container's stands alone like a card."""
    return frozenset(
        interface.device
        for observation in observations
        for seen in observation.domains
        for interface in seen.domain.interfaces
        if interface.device is not None
    )


def devices_without_bridge(observations: Iterable[LibvirtObservation]) -> frozenset[str]:
    """Give the host's side of those interfaces whose bridge libvirt does not know; the kernel may."""
    return frozenset(
        interface.device
        for observation in observations
        for seen in observation.domains
        for interface in seen.domain.interfaces
        if interface.device is not None and interface.bridge is None and interface.network is None
    )


def guest_macs(observations: Iterable[LibvirtObservation]) -> frozenset[str]:
    """Give the MAC addresses of all running domains."""
    return frozenset(
        interface.mac
        for observation in observations
        for seen in observation.domains
        for interface in seen.domain.interfaces
    )


def wants_agent(inventory: Inventory, observation: LibvirtObservation) -> tuple[ObservedDomain, ...]:
    """Give the domains worth asking their agent: it is there, and no better source names an address in each subnet."""
    connected = {seen.domain.uuid: seen for seen in observation.domains if seen.agent_connected}
    if not connected:
        return ()
    subnets = SubnetIndex(inventory)
    lacking = (domain for domain in inventory.domains if domain.uuid in connected and _lacks_address(domain, subnets))
    return tuple(connected[domain.uuid] for domain in lacking)


@dataclass(frozen=True, slots=True)
class _Witnesses:
    """Whom to ask about an interface."""

    networks: Mapping[Place, list[LearnedAddress]]
    neighbours: Mapping[Place, list[LearnedAddress]]
    agents: AgentAnswers
    bridges: Mapping[str, str]

    def learned(self, domain: Domain, interface: GuestInterface) -> tuple[LearnedAddress, ...]:
        """Give every claim for an interface once, by precedence; link-local addresses never count.

        A lease is what the guest was given, a reservation what it will be given when it asks next. So the lease goes
        first here, while between two domains the reservation is the better evidence.
        """
        claims = [
            *self.networks.get((interface.network or "", interface.mac), ()),
            *(claim.learned for claim in self.agents.get(domain.uuid, ()) if claim.mac == interface.mac),
            *self.neighbours.get((interface.bridge or "", interface.mac), ()),
        ]
        routable = dict.fromkeys(claim for claim in claims if not claim.address.is_link_local)
        return tuple(sorted(routable, key=lambda claim: _precedence(claim, interface.mac)))


def _domains(observation: LibvirtObservation, witnesses: _Witnesses) -> Iterator[ObservedDomain]:
    bridges = {seen.network.name: seen.network.bridge for seen in observation.networks}
    for seen in observation.domains:
        located = (_located(interface, bridges, witnesses.bridges) for interface in seen.domain.interfaces)
        interfaces = tuple(replace(item, learned=witnesses.learned(seen.domain, item)) for item in located)
        yield replace(seen, domain=replace(seen.domain, interfaces=interfaces))


def _located(
    interface: GuestInterface, networks: Mapping[str, str | None], kernel: Mapping[str, str]
) -> GuestInterface:
    """Fill in the bridge where the domain's own XML does not name it: from the network, or from the kernel."""
    if interface.bridge is not None:
        return interface
    bridge = networks.get(interface.network) if interface.network is not None else kernel.get(interface.device or "")
    return replace(interface, bridge=bridge)


def _network_claims(observation: LibvirtObservation) -> Mapping[Place, list[LearnedAddress]]:
    return _by_place((seen.network.name, claim) for seen in observation.networks for claim in seen.claims)


def _by_place(claims: Iterable[tuple[str, MacClaim]]) -> Mapping[Place, list[LearnedAddress]]:
    index: defaultdict[Place, list[LearnedAddress]] = defaultdict(list)
    for place, claim in claims:
        index[place, claim.mac].append(claim.learned)
    return index


def _neighbour(address: Address) -> LearnedAddress:
    return LearnedAddress(address, AddressSource.NEIGHBOUR)


def _distinct(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Give each name once. Several hypervisors share one network driver; of two that differ, the active one counts."""
    chosen: dict[str, Network] = {}
    for network in networks:
        known = chosen.setdefault(network.name, network)
        if network.active and not known.active:
            chosen[network.name] = network
    return tuple(chosen[name] for name in sorted(chosen))


def _lacks_address(domain: Domain, subnets: SubnetIndex) -> bool:
    return any(
        not any(claim.source < AddressSource.AGENT and claim.address in subnet for claim in interface.learned)
        for interface in domain.interfaces
        for subnet in subnets.of(interface)
    )


def _precedence(claim: LearnedAddress, mac: str) -> tuple[bool, AddressSource, bool]:
    return claim.source is not AddressSource.LEASE, claim.source, not _is_stable(claim.address, mac)


def _is_stable(address: Address, mac: str) -> bool:
    """Tell whether an IPv6 address was made from the MAC address (RFC 4291, appendix A), so that it will not rotate."""
    if Family.of(address) is Family.IPV4:
        return True
    octets = bytes.fromhex(mac.replace(":", ""))
    return address.packed[8:] == bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
