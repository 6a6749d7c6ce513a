"""Finds the guest that an entry of the configuration means: its domain, which of its interfaces, at which address.

Pure. Which claim about an address is believed is decided in `fwdaemon.resolve.addresses`.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, TypeAlias
from uuid import UUID

from fwdaemon.config.model import Config, ForwardEntry, GuestEntry
from fwdaemon.core.inventory import Domain, GuestInterface, Hindrance, HindranceKind, Inventory, Move, Network
from fwdaemon.core.state import Namesake, Silent, Unchosen
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.resolve.addresses import AddressBook, ConfiguredAddress, SubnetIndex

Chosen: TypeAlias = Mapping[tuple[UUID, Family], str]
"""The MAC address of the interface that entries lead to which name none, by domain and family."""
_rank = attrgetter("rank")
_MAY_RUN: Final = frozenset({Move.HERE, Move.ARRIVED, Move.AWAY})
_UUID: Final = re.compile(r"(?:urn:uuid:)?\{?[0-9a-f-]{32,}\}?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Absence:
    """There is no guest, or no network, now; `stopped` says that nothing runs, and not that something is unclear.

    `move` says that it is migrating, or has, `returning` that it may be rebooting.
    """

    name: str
    reason: Hindrance
    stopped: bool
    move: Move | None = None
    returning: bool = False


@dataclass(frozen=True, slots=True)
class Guest:
    """Where an entry leads in one family."""

    domain: Domain
    interface: GuestInterface
    address: Address

    @property
    def bridge(self) -> str | None:
        """The bridge it is plugged into."""
        return self.interface.bridge

    @property
    def bridge_port(self) -> str | None:
        """The host's side of its interface, where that is a port of a bridge."""
        return self.interface.device if self.interface.bridge else None


class DomainIndex:
    """The domains of one inventory, by UUID and by name."""

    def __init__(self, domains: Iterable[Domain]) -> None:
        self.by_uuid: dict[UUID, Domain] = {}
        self.by_name: defaultdict[str, list[Domain]] = defaultdict(list)
        for domain in domains:
            self.by_uuid[domain.uuid] = domain
            self.by_name[domain.name].append(domain)

    def meant(self, spelling: str) -> Domain | None:
        """Give the domain that entries call so: by its UUID, or of those with this name the one of the foremost URI.

        What can be read as a UUID is one, whatever domains are named. No URI has a name twice.
        """
        if (uuid := as_uuid(spelling)) is not None:
            return self.by_uuid.get(uuid)
        return min(self.by_name.get(spelling, ()), key=_rank, default=None)


class GuestFinder:
    """Finds the guests of one inventory for `entries`, all entries of one configuration.

    An entry that names no interface stays with the one it leads to when its domain is given more of them; `chosen` is
    what an earlier finder knew of this.
    """

    def __init__(self, inventory: Inventory, entries: Iterable[GuestEntry], chosen: Chosen | None = None) -> None:
        self._chosen = dict(chosen or {})
        self._entries: defaultdict[str, list[GuestEntry]] = defaultdict(list)
        for entry in entries:
            self._entries[entry.domain].append(entry)
        self._spelled: defaultdict[UUID, list[str]] = defaultdict(list)
        for spelling in self._entries:
            if (uuid := as_uuid(spelling)) is not None:
                self._spelled[uuid].append(spelling)
        self._stand_on(inventory)

    def follow(self, inventory: Inventory) -> Collection[str]:
        """Go on to another inventory; tell, by what entries call them, about which domains answers may be others."""
        if _shared_context(inventory) != self._shared_context:
            self._stand_on(inventory)
            return self._entries.keys()
        before = self._domains.by_uuid
        self._index(inventory.domains)
        now = self._domains.by_uuid
        differing = [uuid for uuid in before.keys() | now.keys() if before.get(uuid) != now.get(uuid)]
        names = {domain.name for seen in (before, now) for uuid in differing if (domain := seen.get(uuid))}
        concerned = self._meant_by(names).union(differing)
        for uuid in list(concerned):
            domain = now.get(uuid)
            concerned |= self._book.change(uuid, domain, self._configured(domain) if domain else ())
        return names | {spelling for uuid in concerned for spelling in self._spellings(uuid)}

    def enlist(self, added: Iterable[GuestEntry], removed: Iterable[GuestEntry]) -> None:
        """Go on with other entries, none of which writes an address; what answers rest on stays as it is."""
        for entry in removed:
            self._entries[entry.domain].remove(entry)
            if not self._entries[entry.domain]:
                del self._entries[entry.domain]
                if (uuid := as_uuid(entry.domain)) is not None:
                    self._spelled[uuid].remove(entry.domain)
        for entry in added:
            if entry.domain not in self._entries and (uuid := as_uuid(entry.domain)) is not None:
                self._spelled[uuid].append(entry.domain)
            self._entries[entry.domain].append(entry)

    def running(self, entry: GuestEntry) -> Domain | Absence:
        """Give the entry's domain if it runs."""
        domain = self.meant(entry.domain)
        if domain is None:
            # A domain that is not defined may be made anew, as a reboot of such a one is.
            missing = Hindrance(HindranceKind.NO_SUCH_DOMAIN)
            return Absence(entry.domain, missing, stopped=True, returning=True)
        return domain if domain.running else _absence(domain)

    def imminent(self, entry: GuestEntry) -> Domain | None:
        """Give the entry's domain if it may run here before anything says so, as while it migrates."""
        domain = self.meant(entry.domain)
        return domain if domain is not None and domain.move in _MAY_RUN else None

    def meant(self, spelling: str) -> Domain | None:
        """Give the domain that entries call so; see `DomainIndex.meant`."""
        return self._domains.meant(spelling)

    def namesakes(self) -> Iterator[Domain]:
        """Give the domains that are named as entries say, and are not meant."""
        uuids = {spelling for spellings in self._spelled.values() for spelling in spellings}
        for name in sorted(self._shared | (uuids & self._domains.by_name.keys())):
            if name in self._entries:
                meant = self.meant(name)
                yield from (domain for domain in self._domains.by_name[name] if domain != meant)

    def locate(self, entry: GuestEntry, domain: Domain, family: Family) -> Guest | Hindrance:
        """Give the interface the entry means, and the address it is believed to have."""
        interface = self._interface(entry, domain, family)
        if isinstance(interface, Hindrance):
            return interface
        if entry.origin.domain and entry.address is not None:
            # Metadata only chooses among the addresses that others say the guest has.
            own = tuple(claim for claim in interface.learned if claim.address == entry.address)
            found = self._book.believed(domain, replace(interface, learned=own), family)
        else:
            found = self._book.believed(domain, interface, family, entry.address)
        return found if isinstance(found, Hindrance) else Guest(domain, interface, found.address)

    @property
    def chosen(self) -> Chosen:
        """Which interface entries lead to that name none."""
        return self._chosen

    def unchosen(self, entry: GuestEntry, guest: Guest) -> Unchosen | None:
        """Say where an entry only stays with its interface, and would not find it by itself."""
        found = self._select(entry, guest.domain, Family.of(guest.address))
        if not isinstance(found, Hindrance):
            return None
        return Unchosen(guest.domain.name, guest.interface.mac, found, entry.origin)

    def silent(self, entry: GuestEntry, domain: Domain, family: Family) -> Silent | None:
        """Say where to search for a guest that nothing names an address of; `None` where it is on no bridge."""
        interface = self._interface(entry, domain, family)
        if isinstance(interface, Hindrance) or interface.bridge is None:
            return None
        return Silent(interface.bridge, interface.mac, family)

    def likeliest(self, entry: GuestEntry, domain: Domain, missing: Mapping[Family, Hindrance]) -> Family:
        """Choose the family whose reason to wait helps: one with a claim that is refused, or that its network has."""
        for family, hindrance in missing.items():
            if hindrance.is_claimed:
                return family
        for family in missing:
            interface = self._interface(entry, domain, family)
            if not isinstance(interface, Hindrance) and family in self._book.families(interface):
                return family
        return next(iter(missing))

    def subnets(self, guest: Guest) -> tuple[Subnet, ...]:
        """Give the subnets of the guest's network."""
        return self._subnets.of(guest.interface)

    def settled(self) -> tuple[ConfiguredAddress, ...]:
        """Give the addresses that entries write and that are believed, each with the interface it is at."""
        return tuple(item for item in self._all_configured() if self._is_believed(item))

    def _stand_on(self, inventory: Inventory) -> None:
        """Begin anew with an inventory."""
        self._shared_context = _shared_context(inventory)
        self._index(inventory.domains)
        self._subnets = SubnetIndex(inventory)
        # Whose an address is depends on what the configuration says of all guests, so that is gathered first.
        self._book = AddressBook(inventory)
        self._book = AddressBook(inventory, self._all_configured())

    def _index(self, domains: Iterable[Domain]) -> None:
        self._domains = DomainIndex(domains)
        known = self._domains.by_uuid
        stopped = [key for key in self._chosen if key[0] not in known or not known[key[0]].running]
        for key in stopped:
            del self._chosen[key]
        self._shared = {name for name, named in self._domains.by_name.items() if len(named) > 1}

    def _meant_by(self, names: Iterable[str]) -> set[UUID]:
        """Give all domains that these may be names or UUIDs of."""
        known = [name for name in names if name in self._entries]
        uuids = {uuid for name in known if (uuid := as_uuid(name)) is not None}
        return uuids.union(domain.uuid for name in known for domain in self._domains.by_name.get(name, ()))

    def _spellings(self, uuid: UUID) -> Iterator[str]:
        """Give what entries may call a domain."""
        yield from self._spelled.get(uuid, ())
        if (domain := self._domains.by_uuid.get(uuid)) is not None:
            yield domain.name

    def _interface(self, entry: GuestEntry, domain: Domain, family: Family) -> GuestInterface | Hindrance:
        """Give the interface an entry means; of several, the one it led to before."""
        found, key = self._select(entry, domain, family), (domain.uuid, family)
        if isinstance(found, Hindrance):
            several = found.places if found.kind is HindranceKind.SEVERAL_INTERFACES else ()
            before = (item for item in domain.interfaces if item.mac == self._chosen.get(key) and item.place in several)
            return next(before, found)
        if entry.network is None and entry.mac is None and entry.address is None:
            self._chosen[key] = found.mac
        return found

    def _select(self, entry: GuestEntry, domain: Domain, family: Family) -> GuestInterface | Hindrance:
        return self._book.select_interface(
            domain,
            family,
            network=entry.network,
            mac=entry.mac,
            configured=None if entry.origin.domain else entry.address,
        )

    def _all_configured(self) -> Iterator[ConfiguredAddress]:
        return (item for domain in self._domains.by_uuid.values() for item in self._configured(domain))

    def _is_believed(self, item: ConfiguredAddress) -> bool:
        believed = self._book.believed(item.domain, item.interface, Family.of(item.address), item.address)
        return not isinstance(believed, Hindrance)

    def _configured(self, domain: Domain) -> Iterator[ConfiguredAddress]:
        """Give the addresses that entries write for a domain; they count while it runs."""
        spellings = [spelling for spelling in self._spellings(domain.uuid) if self.meant(spelling) is domain]
        for entry in (entry for spelling in dict.fromkeys(spellings) for entry in self._entries.get(spelling, ())):
            if entry.address is None or entry.origin.domain or not domain.running:
                continue
            interface = self._interface(entry, domain, Family.of(entry.address))
            if not isinstance(interface, Hindrance):
                yield ConfiguredAddress(domain, interface, entry.address)


def _absence(domain: Domain) -> Absence:
    match domain.move:
        case None:
            kind = HindranceKind.NOT_RUNNING
        case Move.HERE:
            kind = HindranceKind.ARRIVING
        case Move.ARRIVED:
            kind = HindranceKind.ARRIVED
        case Move.AWAY | Move.GONE:
            kind = HindranceKind.HANDED_OVER
    return Absence(domain.name, Hindrance(kind), stopped=True, move=domain.move, returning=domain.returning)


def as_uuid(spelling: str) -> UUID | None:
    """Read a UUID as people write it: in letters of either case, with or without hyphens, in braces, as a URN."""
    if not _UUID.fullmatch(spelling):
        return None
    try:
        return UUID(spelling.lower())
    except ValueError:  # hyphens for digits
        return None


def nameless(some: Collection[Domain], known: Iterable[Domain]) -> frozenset[UUID]:
    """Give those of some domains that entries cannot mean by their name: it can be read as a UUID, or is another's."""
    foremost: dict[str, Domain] = {}
    names = {domain.name for domain in some}
    for domain in sorted((domain for domain in known if domain.name in names), key=_rank):
        foremost.setdefault(domain.name, domain)
    meant = {domain.uuid for name, domain in foremost.items() if as_uuid(name) is None}
    return frozenset(domain.uuid for domain in some if domain.uuid not in meant)


def bridge_of(network: Network | None) -> str | Absence:
    """Give the bridge of a network, or why nothing can be routed to it."""
    if network is None:
        return Absence("", Hindrance(HindranceKind.NO_SUCH_NETWORK), stopped=True)
    if not network.active:
        return Absence(network.name, Hindrance(HindranceKind.NETWORK_NOT_ACTIVE), stopped=True)
    if network.bridge is None:
        return Absence(network.name, Hindrance(HindranceKind.NO_BRIDGE), stopped=False)
    if not is_interface_name(network.bridge):
        return Absence(network.name, Hindrance(HindranceKind.BRIDGE_NAME), stopped=False)
    return network.bridge


def namesake(domain: Domain, uris: Sequence[str]) -> Namesake:
    """Say of a domain that it has the name an entry writes, and is not the one it means."""
    return Namesake(domain.name, domain.uuid, _uri(uris, domain.rank), is_uuid=as_uuid(domain.name) is not None)


def namesakes_of_networks(networks: Iterable[Network], config: Config) -> Iterator[Namesake]:
    """Say the same of networks that have the name of a route's."""
    named = {entry.network for entry in config.routes}
    for network in networks:
        if network.name in named:
            uri = _uri(config.daemon.libvirt, network.rank)
            yield Namesake(network.name, network.uuid, uri, is_network=True)


def _uri(uris: Sequence[str], rank: int) -> str:
    return uris[rank] if rank < len(uris) else ""


def _shared_context(inventory: Inventory) -> tuple[object, ...]:
    """Give what answers about all guests rest on: networks, and the addresses of the host that a guest could claim."""
    addresses = [host for host in inventory.host_addresses if not host.address.is_link_local]
    return inventory.networks, inventory.namesakes, inventory.routed, addresses


# What an entry asks for.


def possible_families(entry: ForwardEntry) -> list[Family]:
    """The families an entry can exist in: sources of one family alone let no one of the other in."""
    possible = [entry.address.version] if entry.address else list(Family)
    admitted = {subnet.version for subnet in entry.sources} or set(Family)
    return [
        family
        for family in Family
        if family in possible
        and family in admitted
        and any(entry.listens_on(mapping, family) for mapping in entry.mappings)
    ]


def is_named(entry: ForwardEntry, family: Family) -> bool:
    """Whether an entry asks for a family by a listening address, or by the guest's."""
    written = [*entry.listen, *(mapping.listen for mapping in entry.mappings if mapping.listen), entry.address]
    return any(address is not None and Family.of(address) is family for address in written)
