"""From configuration and inventory to the desired state. Pure.

Every entry is placed in each family it can exist in: its domain must run, one of its interfaces must be meant, and an
address of that interface must be believed (`fwdaemon.addresses`). What is missing becomes a reason to wait.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from fwdaemon.addresses import AddressBook, ConfiguredAddress, Refusal, SubnetIndex
from fwdaemon.config.model import Config, ForwardEntry, PortMapping
from fwdaemon.desired import Desired, Forward, Waiting
from fwdaemon.inventory import Domain, GuestInterface, Inventory
from fwdaemon.model import Address, Family, Subnet


def desired_state(config: Config, inventory: Inventory) -> Desired:
    """Tell which forwards are to be live on a host like `inventory`."""
    placer = _Placer(config, inventory)
    placed = [placer.place(entry) for entry in config.forwards]
    return Desired(
        forwards=frozenset(forward for entry in placed for forward in entry.forwards),
        waiting=tuple(waiting for entry in placed for waiting in entry.waiting),
        guest_subnets=placer.guest_subnets,
        mark=config.daemon.mark,
        gates=config.daemon.gates,
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    forwards: tuple[Forward, ...] = ()
    waiting: tuple[Waiting, ...] = ()


@dataclass(frozen=True, slots=True)
class _Guest:
    """Where an entry leads in one family."""

    domain: Domain
    interface: GuestInterface
    address: Address


class _Placer:
    """Places the entries of one configuration on one inventory."""

    def __init__(self, config: Config, inventory: Inventory) -> None:
        self._by_name: defaultdict[str, list[Domain]] = defaultdict(list)
        for domain in inventory.domains:
            self._by_name[domain.name].append(domain)
        self._by_uuid = {domain.uuid: domain for domain in inventory.domains}
        # Whose an address is depends on what the configuration says of all guests, so that is gathered first.
        self._book = AddressBook(inventory)
        self._book = AddressBook(inventory, self._configured(config.forwards))
        self._subnets = SubnetIndex(inventory)
        self.guest_subnets: frozenset[Subnet] = frozenset(
            subnet for network in inventory.networks if network.active for subnet in network.subnets
        )

    def place(self, entry: ForwardEntry) -> _Placed:
        """Give the live forwards of an entry, or the reasons why there are none."""
        if len(self._by_name.get(entry.domain, ())) > 1:
            return _waits(entry, entry.domain, "several domains have this name: write the UUID", stopped=False)
        domain = self._domain(entry)
        if domain is None:
            return _waits(entry, entry.domain, "libvirt knows no such domain", stopped=True)
        if not domain.running:
            return _waits(entry, domain.name, "the domain is not running", stopped=True)
        located = {family: self._locate(entry, domain, family) for family in _families(entry)}
        forwards = [
            forward
            for guest in located.values()
            if isinstance(guest, _Guest)
            for forward in self._forwards(entry, guest)
        ]
        return _Placed(tuple(forwards), tuple(self._reasons(entry, domain, located)))

    def _domain(self, entry: ForwardEntry) -> Domain | None:
        """Find the domain by its name, or else by its UUID: a name may look like somebody else's UUID."""
        if named := self._by_name.get(entry.domain):
            return named[0]
        try:
            return self._by_uuid.get(UUID(entry.domain))
        except ValueError:
            return None

    def _locate(self, entry: ForwardEntry, domain: Domain, family: Family) -> _Guest | Refusal:
        interface = self._interface(entry, domain, family)
        if isinstance(interface, Refusal):
            return interface
        found = self._book.believed(domain, interface, family, entry.address)
        return found if isinstance(found, Refusal) else _Guest(domain, interface, found.address)

    def _interface(self, entry: ForwardEntry, domain: Domain, family: Family) -> GuestInterface | Refusal:
        return self._book.select_interface(
            domain, family, network=entry.network, mac=entry.mac, configured=entry.address
        )

    def _forwards(self, entry: ForwardEntry, guest: _Guest) -> Iterator[Forward]:
        self.guest_subnets |= frozenset(self._subnets.of(guest.interface))
        family = Family.of(guest.address)
        sources = tuple(subnet for subnet in entry.sources if Family.of(subnet) is family)
        for mapping in entry.mappings:
            for listen in _listens(entry, mapping, family):
                yield Forward(
                    domain=guest.domain.name,
                    protocol=mapping.protocol,
                    listen=listen,
                    ports=mapping.host,
                    target=guest.address,
                    target_ports=mapping.guest,
                    interface=entry.interface,
                    sources=sources,
                    bridge_port=guest.interface.device if guest.interface.bridge else None,
                    origin=mapping.origin,
                )

    def _reasons(
        self, entry: ForwardEntry, domain: Domain, located: dict[Family, _Guest | Refusal]
    ) -> Iterator[Waiting]:
        """Give a reason for each family that was asked for, or one for all if none was and none works."""
        refused = {family: guest.reason for family, guest in located.items() if isinstance(guest, Refusal)}
        named = [family for family in refused if _is_named(entry, family)]
        if refused and not named and len(refused) == len(located):
            named = [self._likeliest(entry, domain, list(refused))]
        for family in named:
            yield Waiting(domain.name, refused[family], entry.origin)

    def _likeliest(self, entry: ForwardEntry, domain: Domain, refused: list[Family]) -> Family:
        """Choose the family whose reason helps: one that the guest's network has."""
        for family in refused:
            interface = self._interface(entry, domain, family)
            if not isinstance(interface, Refusal) and family in self._book.families(interface):
                return family
        return refused[0]

    def _configured(self, entries: Iterable[ForwardEntry]) -> Iterator[ConfiguredAddress]:
        for entry in entries:
            domain = self._domain(entry)
            if entry.address is None or domain is None or not domain.running:
                continue
            interface = self._interface(entry, domain, Family.of(entry.address))
            if not isinstance(interface, Refusal):
                yield ConfiguredAddress(domain, interface, entry.address)


def _waits(entry: ForwardEntry, name: str, reason: str, *, stopped: bool) -> _Placed:
    return _Placed(waiting=(Waiting(name, reason, entry.origin, stopped),))


def _families(entry: ForwardEntry) -> list[Family]:
    """The families an entry can exist in: sources of one family alone let nobody of the other in."""
    possible = [entry.address.version] if entry.address else list(Family)
    admitted = {subnet.version for subnet in entry.sources} or set(Family)
    return [
        family
        for family in Family
        if family in possible
        and family in admitted
        and any(_listens(entry, mapping, family) for mapping in entry.mappings)
    ]


def _listens(entry: ForwardEntry, mapping: PortMapping, family: Family) -> list[Address | None]:
    """The listening addresses of one family; `None`, for every local address, where none are written."""
    written = [mapping.listen] if mapping.listen else entry.listen
    return [address for address in written if Family.of(address) is family] if written else [None]


def _is_named(entry: ForwardEntry, family: Family) -> bool:
    """Whether an entry asks for a family by a listening address, or by the guest's."""
    written = [*entry.listen, *(mapping.listen for mapping in entry.mappings if mapping.listen), entry.address]
    return any(address is not None and Family.of(address) is family for address in written)
