"""Finds the guest that an entry of the configuration means: its domain, which of its interfaces, at which address.

Pure. Which claim about an address is believed is decided in `fwdaemon.addresses`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from fwdaemon.addresses import AddressBook, ConfiguredAddress, Refusal, SubnetIndex
from fwdaemon.config.model import ForwardEntry, NatEntry
from fwdaemon.inventory import Domain, GuestInterface, Inventory
from fwdaemon.model import Address, Family, Subnet

GuestEntry: TypeAlias = ForwardEntry | NatEntry


@dataclass(frozen=True, slots=True)
class Absence:
    """There is no guest, or no network, now; `stopped` says that nothing runs, and not that something is unclear."""

    name: str
    reason: str
    stopped: bool


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


class GuestFinder:
    """Finds the guests of one inventory for `entries`, all entries of one configuration."""

    def __init__(self, inventory: Inventory, entries: Iterable[GuestEntry]) -> None:
        self._by_name: defaultdict[str, list[Domain]] = defaultdict(list)
        for domain in inventory.domains:
            self._by_name[domain.name].append(domain)
        self._by_uuid = {domain.uuid: domain for domain in inventory.domains}
        # Whose an address is depends on what the configuration says of all guests, so that is gathered first.
        self._book = AddressBook(inventory)
        self._book = AddressBook(inventory, self._configured(entries))
        self._subnets = SubnetIndex(inventory)

    def running(self, entry: GuestEntry) -> Domain | Absence:
        """Give the entry's domain if it runs."""
        if len(self._by_name.get(entry.domain, ())) > 1:
            return Absence(entry.domain, "several domains have this name: write the UUID", stopped=False)
        domain = self._domain(entry)
        if domain is None:
            return Absence(entry.domain, "libvirt knows no such domain", stopped=True)
        return domain if domain.running else Absence(domain.name, "the domain is not running", stopped=True)

    def locate(self, entry: GuestEntry, domain: Domain, family: Family) -> Guest | Refusal:
        """Give the interface the entry means, and the address it is believed to have."""
        interface = self._interface(entry, domain, family)
        if isinstance(interface, Refusal):
            return interface
        found = self._book.believed(domain, interface, family, entry.address)
        return found if isinstance(found, Refusal) else Guest(domain, interface, found.address)

    def likeliest(self, entry: GuestEntry, domain: Domain, families: list[Family]) -> Family:
        """Choose the family whose reason to wait helps: one that the guest's network has."""
        for family in families:
            interface = self._interface(entry, domain, family)
            if not isinstance(interface, Refusal) and family in self._book.families(interface):
                return family
        return families[0]

    def subnets(self, guest: Guest) -> tuple[Subnet, ...]:
        """Give the subnets of the guest's network."""
        return self._subnets.of(guest.interface)

    def _domain(self, entry: GuestEntry) -> Domain | None:
        """Find the domain by its name, or else by its UUID: a name may look like somebody else's UUID."""
        if named := self._by_name.get(entry.domain):
            return named[0]
        try:
            return self._by_uuid.get(UUID(entry.domain))
        except ValueError:
            return None

    def _interface(self, entry: GuestEntry, domain: Domain, family: Family) -> GuestInterface | Refusal:
        return self._book.select_interface(
            domain, family, network=entry.network, mac=entry.mac, configured=entry.address
        )

    def _configured(self, entries: Iterable[GuestEntry]) -> Iterator[ConfiguredAddress]:
        for entry in entries:
            domain = self._domain(entry)
            if entry.address is None or domain is None or not domain.running:
                continue
            interface = self._interface(entry, domain, Family.of(entry.address))
            if not isinstance(interface, Refusal):
                yield ConfiguredAddress(domain, interface, entry.address)
