"""Takes the observation: what libvirt says of all domains and networks, in as few calls as it can be had.

Four calls list everything; then one for each network, one more for each active network, and one for each running domain
that is new or in doubt. After each event about it a domain is in doubt, and now and then all are.
Domains and networks that go away in the middle are normal, and simply not there. If libvirt stays, but cannot answer
for one of them (a lease file it cannot read, a domain whose lock is held), or not so that we understand it, what it
said the last time stands in: one broken guest must not blind us to the others.
"""

import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from queue import SimpleQueue
from typing import Any, TypeVar
from uuid import UUID
from xml.etree.ElementTree import ParseError

import libvirt

from fwdaemon.hypervisor.failure import is_gone, is_unsupported
from fwdaemon.inventory import AddressSource, Domain, LearnedAddress
from fwdaemon.libvirt_xml import guest_address, normal_mac, parse_domain, parse_network
from fwdaemon.naming import shown
from fwdaemon.observation import LibvirtObservation, MacClaim, ObservedDomain, ObservedNetwork

_log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, str]


class Reader:
    """Reads one connection; it remembers the last good answer about each domain and network, and what is in doubt."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._answers: dict[Key, Any] = {}
        self._asked: dict[Key, Any] = {}
        self._silent: set[Key] = set()
        self._known: dict[str, ObservedDomain] = {}
        self._doubts: SimpleQueue[str | None] = SimpleQueue()

    def doubt(self, uuid: str | None = None) -> None:
        """Have a domain asked again the next time, or all of them. May be called from any thread."""
        self._doubts.put(uuid)

    def observe(self, hypervisor: libvirt.virConnect, networks: libvirt.virConnect) -> LibvirtObservation:
        """Take one observation. Raises `libvirt.libvirtError` when libvirt does not answer."""
        self._forget_doubtful()
        self._asked = {}
        domains = tuple(self._domains(hypervisor))
        macs = {interface.mac for seen in domains for interface in seen.domain.interfaces}
        observation = LibvirtObservation(domains, tuple(self._networks(networks, macs)))
        self._answers = self._asked
        self._silent &= self._asked.keys()
        return observation

    def _domains(self, connection: libvirt.virConnect) -> list[ObservedDomain]:
        domains = connection.listAllDomains()
        other = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_OTHER)
        crashed = {domain.UUIDString() for domain in other if self._is_crashed(domain)}
        observed: dict[str, ObservedDomain] = {}
        for domain in domains:
            uuid = domain.UUIDString()
            if (seen := self._domain(domain, uuid, crashed=uuid in crashed)) is not None:
                observed[uuid] = seen
        self._known = {uuid: seen for uuid, seen in observed.items() if _devices(uuid) not in self._silent}
        return list(observed.values())

    def _forget_doubtful(self) -> None:
        while not self._doubts.empty():
            uuid = self._doubts.get()
            if uuid is None:
                self._known.clear()
            else:
                self._known.pop(uuid, None)

    def _is_crashed(self, domain: libvirt.virDomain) -> bool:
        """Tell whether a domain crashed and was kept for a post-mortem; libvirt still counts it as active."""
        state: Any = self._ask(("state", domain.UUIDString()), domain, domain.state)
        return state is not None and state[0] == libvirt.VIR_DOMAIN_CRASHED

    def _domain(self, domain: libvirt.virDomain, uuid: str, *, crashed: bool) -> ObservedDomain | None:
        """Observe one domain; its number, name and UUID came with the list and cost no call."""
        name, instance, key = domain.name(), domain.ID(), _devices(uuid)
        known = self._known.get(uuid)
        if known is not None and not crashed and (known.domain.name, known.instance) == (name, instance):
            self._asked[key] = self._answers.get(key)
            return known
        if crashed or instance < 0:
            return ObservedDomain(Domain(name, UUID(uuid), running=False))
        devices = self._ask(key, domain, lambda: parse_domain(domain.XMLDesc()))
        if devices is None:
            return None
        observed = Domain(name, UUID(uuid), running=True, interfaces=devices.interfaces)
        return ObservedDomain(observed, instance, devices.agent_connected)

    def _networks(self, connection: libvirt.virConnect, macs: AbstractSet[str]) -> list[ObservedNetwork]:
        try:
            networks = connection.listAllNetworks()
            active = {n.UUIDString() for n in connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)}
        except libvirt.libvirtError as error:
            if is_unsupported(error):
                return []
            raise
        observed = (self._network(network, macs, active=network.UUIDString() in active) for network in networks)
        return [network for network in observed if network is not None]

    def _network(self, network: libvirt.virNetwork, macs: AbstractSet[str], *, active: bool) -> ObservedNetwork | None:
        uuid = network.UUIDString()
        definition = self._ask(("network", uuid), network, lambda: parse_network(network.XMLDesc(), active=active))
        if definition is None:
            return None
        leases = self._ask(("leases", uuid), network, lambda: _leases(network, macs)) if active else None
        return ObservedNetwork(definition.network, definition.reservations + (leases or ()))

    def _ask(self, key: Key, subject: libvirt.virDomain | libvirt.virNetwork, question: Callable[[], T]) -> T | None:
        """Ask; `None` if the subject is gone or has no such thing, and the last answer if libvirt cannot tell now."""
        answer: T | None
        try:
            answer = question()
        except libvirt.libvirtError as error:
            if is_gone(error) or is_unsupported(error):
                return None
            if not _is_alive(subject):
                raise
            answer = self._last_answer(key, subject.name(), error)
        except (ParseError, ValueError) as error:
            answer = self._last_answer(key, subject.name(), error)
        else:
            self._silent.discard(key)
        self._asked[key] = answer
        return answer

    def _last_answer(self, key: Key, name: str, error: Exception) -> Any:
        if key not in self._silent:
            self._silent.add(key)
            _log.warning("libvirt at %s does not tell the %s of %s: %s", self._uri, key[0], shown(name), error)
        return self._answers.get(key)


def _devices(uuid: str) -> Key:
    return "devices", uuid


def _is_alive(subject: libvirt.virDomain | libvirt.virNetwork) -> bool:
    """Tell whether the connection it came from still stands; asks only this side of it."""
    connection: libvirt.virConnect = subject.connect()  # type: ignore[no-untyped-call]
    return bool(connection.isAlive())


def _leases(network: libvirt.virNetwork, macs: AbstractSet[str]) -> tuple[MacClaim, ...]:
    leases: Any = network.DHCPLeases()
    return lease_claims(leases, macs)


def lease_claims(leases: list[dict[str, Any]], macs: AbstractSet[str]) -> tuple[MacClaim, ...]:
    """Read the leases of an active network that these MAC addresses have, the newest first.

    A MAC address can have several, one per client ID. Those of others are not kept: who sends from many MAC addresses
    can have as many as the network has addresses.
    """
    claims = (_lease(lease, macs) for lease in sorted(leases, key=_expiry, reverse=True))
    return tuple(claim for claim in claims if claim is not None)


def _expiry(lease: dict[str, Any]) -> float:
    """Give when a lease ends; 0 is libvirt's word for never."""
    return lease["expirytime"] or float("inf")


def _lease(lease: dict[str, Any], macs: AbstractSet[str]) -> MacClaim | None:
    mac, address = normal_mac(lease["mac"]), guest_address(lease["ipaddr"])
    if mac is None or mac not in macs or address is None:
        return None
    return MacClaim(mac, LearnedAddress(address, AddressSource.LEASE))
