"""Puts together what libvirt, the guests' agents and the kernel said into one `Inventory`.

Pure. A claim counts only where it was made: a lease for interfaces on that network, a neighbour for those on that
bridge, an agent's word for its own domain; and always only for that MAC address. Which of the claims is believed is
decided in `fwdaemon.resolve.addresses`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final, TypeAlias
from uuid import UUID

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostObservation,
    Inventory,
    LearnedAddress,
    LibvirtObservation,
    MacClaim,
    Move,
    Network,
    ObservedDomain,
)
from fwdaemon.core.report import Reason, ReasonKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.resolve.addresses import SubnetIndex
from fwdaemon.resolve.neighbours import interface_identifier

# A short grace for exposures whose domain has just stopped and may be rebooting.
#
# A reboot can reach us as a stop followed by a start. Taking the exposures away in between would end their connections
# for nothing, so the removal waits for a moment, unless another guest has the address by then. A domain that was
# destroyed, whose emulator died, that libvirt knows no more or that another host has is not rebooting, and gets none:
# another host may take its public address at once. Pure; the time is given.
GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Stop:
    """When an exposure's domain was found stopped, by the clock that was given, and the reasons that came since."""

    at: float
    reasons: tuple[Reason, ...]

    def then(self, later: "Stop") -> "Stop":
        """Add later reasons: libvirt may say only then why a domain stopped."""
        return Stop(self.at, tuple(dict.fromkeys(self.reasons + later.reasons)))


class Grace:
    """Remembers the stops of the last moments; an exposure is held for `seconds`, counted from its own."""

    def __init__(self, seconds: float = GRACE) -> None:
        self._seconds = seconds
        self._stops: dict[Exposure, Stop] = {}

    def extend(self, desired: Desired, live: AbstractSet[Exposure], taken: Collection[Address], stop: Stop) -> Desired:
        """Add to `desired` the live exposures that are not to go yet.

        `taken` are the addresses of running guests; `stop` is now, with the reasons of this pass.
        """
        gone = [exposure for exposure in live - desired.exposures if exposure.owner in desired.returning]
        known = self._stops
        self._stops = {exposure: known[exposure].then(stop) if exposure in known else stop for exposure in gone}
        held = [
            exposure
            for exposure, stopped_at in self._stops.items()
            if stop.at < stopped_at.at + self._seconds and not _is_taken(exposure, taken)
        ]
        others: Collection[Exposure] = desired.translated if held else ()
        held = [exposure for exposure in held if not any(_is_claimed(exposure, other) for other in others)]
        return desired.having(held) if held else desired

    def reasons(self, exposure: Exposure, otherwise: tuple[Reason, ...]) -> tuple[Reason, ...]:
        """Give the reasons since the exposure's domain stopped."""
        stop = self._stops.get(exposure)
        return stop.reasons if stop else otherwise

    @property
    def ends(self) -> float | None:
        """When the next held exposure goes, by the clock that was given; `None` when none is held."""
        return min((stop.at + self._seconds for stop in self._stops.values()), default=None)


class Rebooting:
    """Remembers which domains stopped a moment ago and may be rebooting: they keep what they claimed meanwhile.

    `ends` is when the next of them is one no more, by the clock that was given; `None` where there is none.
    """

    def __init__(self, seconds: float = GRACE) -> None:
        self._seconds = seconds
        self._running: frozenset[UUID] = frozenset()
        self._since: dict[UUID, float] = {}
        self.ends: float | None = None

    def follow(self, domains: Collection[Domain], now: float) -> frozenset[UUID]:
        """Give those that are rebooting now, by the clock that is given."""
        stopped = {domain.uuid for domain in domains if domain.returning and not domain.running and domain.move is None}
        known = self._since.keys() | self._running
        self._since = {uuid: self._since.get(uuid, now) for uuid in stopped & known}
        self._running = frozenset(domain.uuid for domain in domains if domain.running)
        found = {uuid: since + self._seconds for uuid, since in self._since.items() if now < since + self._seconds}
        self.ends = min(found.values(), default=None)
        return frozenset(found)


def _is_taken(exposure: Exposure, taken: Collection[Address]) -> bool:
    """Whether an exposure that is held would lead to another guest; a route's bridge has gone by then."""
    return exposure.guest is None or exposure.guest in taken


def _is_claimed(exposure: Exposure, other: Exposure) -> bool:
    """Whether another domain has the ports or the address of an exposure now: that goes to the next that asks."""
    mine, its = exposure.claim, other.claim
    same = (mine.kind, mine.family, mine.protocol, mine.address) == (its.kind, its.family, its.protocol, its.address)
    if not same or exposure.owner == other.owner:
        return False
    return mine.ports is None or its.ports is None or mine.ports.overlaps(its.ports)


AgentAnswers: TypeAlias = Mapping[UUID, tuple[MacClaim, ...]]
Place: TypeAlias = tuple[str, str]
"""A network or a bridge, and a MAC address on it."""


def merge(observations: Iterable[LibvirtObservation], host: HostObservation, agents: AgentAnswers) -> Inventory:
    """Make one inventory of several connections' observations; what two of them both see is as the first one says.

    Of a domain that only one of them has running, or on the move, it is as that one says.
    """
    observations = tuple(observations)
    neighbours = _by_place((n.device, MacClaim(n.mac, _neighbour(n.address))) for n in host.neighbours)
    domains: dict[UUID, Domain] = {}
    for rank, observation in enumerate(observations):
        witnesses = _Witnesses(_network_claims(observation), neighbours, agents, host.bridges)
        for domain in _domains(observation, witnesses):
            known = domains.get(domain.uuid)
            if known is None or _liveness(known) < _liveness(domain):
                domains[domain.uuid] = replace(domain, rank=rank)
    networks = [
        replace(seen.network, rank=rank) for rank, observed in enumerate(observations) for seen in observed.networks
    ]
    # libvirt lists in no order at all, and two inventories that say the same are to be equal.
    in_order = tuple(sorted(domains.values(), key=lambda domain: (domain.name, domain.uuid)))
    uplinks = host.uplinks - _guest_devices(observations) - _guest_bridges(networks)
    distinct, namesakes = _distinct(networks)
    return Inventory(in_order, distinct, host.addresses, uplinks, host.routed, namesakes, host.links)


def _liveness(domain: Domain) -> int:
    """Say how much of a domain is here: one that is defined only hides none that runs."""
    return 2 if domain.running else int(domain.move not in (None, Move.GONE))


def _guest_bridges(networks: Iterable[Network]) -> frozenset[str]:
    """Give the bridges that libvirt made for networks: a route through one leads to a guest."""
    return frozenset(network.bridge for network in networks if network.bridge is not None and network.own_bridge)


def _guest_devices(observations: Iterable[LibvirtObservation]) -> frozenset[str]:
    """Give the host's side of every guest's interface: a default route may lead to a guest, as to a firewall."""
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


def links_without_subnets(observations: Iterable[LibvirtObservation]) -> frozenset[str]:
    """Give the host's interfaces that guests are on and whose subnets libvirt does not know: bridges, and macvtap's."""
    described = {
        seen.network.name for observation in observations for seen in observation.networks if seen.network.subnets
    }
    return frozenset(
        link
        for observation in observations
        for seen in observation.domains
        for interface in seen.domain.interfaces
        for link in (interface.bridge, interface.parent)
        if link is not None and interface.network not in described
    )


def guest_macs(observations: Iterable[LibvirtObservation]) -> frozenset[str]:
    """Give the MAC addresses of all running domains."""
    return frozenset(
        interface.mac
        for observation in observations
        for seen in observation.domains
        for interface in seen.domain.interfaces
    )


def awaited_macs(inventory: Inventory) -> frozenset[str]:
    """Give the MAC addresses of running guests of which no address is known yet."""
    interfaces = (interface for domain in inventory.domains if domain.running for interface in domain.interfaces)
    return frozenset(interface.mac for interface in interfaces if not interface.learned)


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
    """Which hypervisor and agent to ask about an interface."""

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


def _domains(observation: LibvirtObservation, witnesses: _Witnesses) -> Iterator[Domain]:
    bridges = {seen.network.name: seen.network.bridge for seen in observation.networks}
    for seen in observation.domains:
        located = (_located(interface, bridges, witnesses.bridges) for interface in seen.domain.interfaces)
        interfaces = tuple(replace(item, learned=witnesses.learned(seen.domain, item)) for item in located)
        yield replace(seen.domain, interfaces=interfaces, instance=seen.instance)


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


def _distinct(networks: Iterable[Network]) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
    """Give each name once, the first has it; and others of such a name, that entries do not mean.

    Several hypervisors share one network driver: of what two of them say of one network, that it is active counts.
    """
    chosen: dict[str, Network] = {}
    others: dict[UUID | None, Network] = {}
    for network in networks:
        known = chosen.setdefault(network.name, network)
        if network.uuid != known.uuid:
            others.setdefault(network.uuid, network)
        elif network.active and not known.active:
            chosen[network.name] = network
    return tuple(chosen[name] for name in sorted(chosen)), tuple(others.values())


def _lacks_address(domain: Domain, subnets: SubnetIndex) -> bool:
    return any(
        not any(claim.source < AddressSource.AGENT and claim.address in subnet for claim in interface.learned)
        for interface in domain.interfaces
        for subnet in subnets.of(interface)
    )


def _precedence(claim: LearnedAddress, mac: str) -> tuple[bool, AddressSource, bool]:
    return claim.source is not AddressSource.LEASE, claim.source, not _is_stable(claim.address, mac)


def _is_stable(address: Address, mac: str) -> bool:
    """Whether an address will not rotate: IPv4, made from the MAC address, or low, so written by hand."""
    if Family.of(address) is Family.IPV4:
        return True
    identifier = address.packed[8:]
    # One drawn by lot (RFC 8981) begins with 32 zeros once in 4 billion times.
    return identifier == interface_identifier(mac) or not any(identifier[:4])


# News of the files of DHCP servers.
#
# A look at the leases spares most of the looks at everything else: a lease that is renewed, or that ends when its guest
# has long gone, is no news. And it shows the first lease of a guest, which follows from its start, from what guests can
# cause as often as they like.
Leases: TypeAlias = Mapping[str, tuple[str, ...]]
"""The addresses of each MAC address, the newest lease first."""

# So long after its guest was seen last, a MAC address may be another guest's.
_FORGOTTEN_S: Final = 60.0
# Leases of some thousand guests; a flood of leases is longer, and all of it would be read at each of them.
LARGEST: Final = 1 << 19


class LeaseNews:
    """Distinguishes news from repetition. `clock` gives a monotonic time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._guests: AbstractSet[str] = frozenset()
        self._awaited: AbstractSet[str] = frozenset()
        self._had: dict[str, float] = {}
        self._known: dict[str, Leases] = {}
        self._strange: dict[str, AbstractSet[str]] = {}

    def inventory_begins(self) -> None:
        """Note that what changed so far will be seen, with whatever MAC address."""
        self._strange.clear()

    def follow(self, guests: AbstractSet[str], awaited: AbstractSet[str]) -> tuple[tuple[str, ReasonKind], ...]:
        """Say which MAC addresses guests have, and of which of them no address is known yet.

        Gives the bridges where leases of new guests changed since that inventory began, and what kind of news that is.
        A guest has one first lease, also where it gives that back or reboots: it could have many of them otherwise.
        """
        now = self._clock()
        seen = {mac: now if mac in guests else since for mac, since in self._had.items()}
        self._had = {mac: since for mac, since in seen.items() if now - since < _FORGOTTEN_S}
        self._guests, self._awaited = guests, awaited - self._had.keys()
        return tuple((bridge, self._kind_of(macs)) for bridge, macs in self._strange.items() if macs & guests)

    def kind(self, bridge: str, now: Leases | None) -> ReasonKind | None:
        """Give what the file of a bridge says, `None` for nothing; a file that cannot be read may say anything.

        Leases that no guest has are none; where its domain is just being looked at, `follow` gives it then.
        """
        before = self._known.pop(bridge, None)
        if now is None:
            return ReasonKind.LEASES
        self._known[bridge], known = now, before or {}
        changed = {mac for mac in now.keys() | known.keys() if now.get(mac) != known.get(mac)}
        self._strange[bridge] = (self._strange.get(bridge, frozenset()) | changed - self._guests) & now.keys()
        is_news = before is None or changed & self._guests or self._awaited & now.keys()
        return self._kind_of(now.keys()) if is_news else None

    def _kind_of(self, leased: AbstractSet[str]) -> ReasonKind:
        """Tell a first lease among these MAC addresses; it is one no more."""
        if not (first := self._awaited & leased):
            return ReasonKind.LEASES
        self._awaited -= first
        self._had |= dict.fromkeys(first, self._clock())
        return ReasonKind.FIRST_LEASE


def read_leases(text: bytes | None) -> Leases | None:
    """Read what dnsmasq's helper writes; `None` where that is none of its files, or too large to be worth it."""
    if text is None or len(text) > LARGEST:
        return None
    found = defaultdict[str, list[tuple[float, str]]](list)
    try:
        for lease in json.loads(text):
            expiry = float(lease.get("expiry-time") or "inf")
            found[str(lease["mac-address"]).lower()].append((-expiry, str(lease["ip-address"])))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None
    return {mac: tuple(address for _, address in sorted(leases)) for mac, leases in found.items()}
