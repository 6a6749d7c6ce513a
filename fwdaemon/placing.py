"""From configuration and inventory to the desired state. Pure.

Every forward and 1:1 address is placed in each family it can exist in: its domain must run, one of its interfaces must
be meant, and an address of that interface must be believed (`fwdaemon.guests`). A route needs its network to be active.
What is missing becomes a reason to wait.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fwdaemon.addresses import Refusal
from fwdaemon.config.model import Config, ForwardEntry, NatEntry, PortMapping, RouteEntry
from fwdaemon.desired import Desired, Forward, Nat, Opening, Owner, Route, Waiting
from fwdaemon.guests import Absence, Guest, GuestEntry, GuestFinder
from fwdaemon.inventory import Domain, Inventory, Network
from fwdaemon.model import Address, Family, Subnet
from fwdaemon.naming import is_interface_name


def desired_state(config: Config, inventory: Inventory) -> Desired:
    """Tell what is to be live on a host like `inventory`."""
    placer = _Placer(config, inventory)
    placed = [
        *map(placer.forward, config.forwards),
        *map(placer.nat, config.nats),
        *map(placer.route, config.routes),
    ]
    state = Desired(
        waiting=tuple(waiting for entry in placed for waiting in entry.waiting),
        guest_subnets=placer.guest_subnets,
        outer=inventory.outer if config.nats or config.routes else frozenset(),
        localhost=config.daemon.localhost,
        mark=config.daemon.mark,
        gates=config.daemon.gates,
    )
    return state.having(opening for entry in placed for opening in entry.openings)


@dataclass(frozen=True, slots=True)
class _Placed:
    openings: tuple[Opening, ...] = ()
    waiting: tuple[Waiting, ...] = ()


class _Placer:
    """Places the entries of one configuration on one inventory."""

    def __init__(self, config: Config, inventory: Inventory) -> None:
        self._guests = GuestFinder(inventory, [*config.forwards, *config.nats])
        self._networks = {network.name: network for network in inventory.networks}
        self.guest_subnets: frozenset[Subnet] = frozenset(
            subnet for network in inventory.networks if network.active for subnet in network.subnets
        )

    def forward(self, entry: ForwardEntry) -> _Placed:
        """Give the live forwards of an entry, or the reasons why there are none."""
        domain = self._guests.running(entry)
        if isinstance(domain, Absence):
            return _absent(entry, domain)
        located = {family: self._guests.locate(entry, domain, family) for family in _families(entry)}
        guests = [guest for guest in located.values() if isinstance(guest, Guest)]
        self._reach(guests)
        forwards = tuple(forward for guest in guests for forward in _forwards(entry, guest))
        return _Placed(forwards, tuple(self._reasons(entry, domain, located)))

    def nat(self, entry: NatEntry) -> _Placed:
        """Give an entry's 1:1 NAT, or the reason why there is none."""
        domain = self._guests.running(entry)
        if isinstance(domain, Absence):
            return _absent(entry, domain)
        guest = self._guests.locate(entry, domain, Family.of(entry.public))
        if isinstance(guest, Refusal):
            return _Placed(waiting=(Waiting(Owner(domain.name), guest.reason, entry.origin),))
        self._reach([guest])
        nat = Nat(domain.name, entry.public, guest.address, entry.assign, guest.bridge, guest.bridge_port, entry.origin)
        return _Placed((nat,))

    def route(self, entry: RouteEntry) -> _Placed:
        """Give an entry's route, or the reason why there is none."""
        owner = Owner(entry.network, "network")
        bridge = _bridge_of(self._networks.get(entry.network))
        if isinstance(bridge, Absence):
            return _Placed(waiting=(Waiting(owner, bridge.reason, entry.origin, bridge.stopped),))
        return _Placed((Route(entry.network, entry.subnet, bridge, entry.proxy, entry.origin),))

    def _reach(self, guests: Iterable[Guest]) -> None:
        """Count the guests' own subnets among those from which hairpin connections come."""
        self.guest_subnets |= {subnet for guest in guests for subnet in self._guests.subnets(guest)}

    def _reasons(
        self, entry: ForwardEntry, domain: Domain, located: dict[Family, Guest | Refusal]
    ) -> Iterator[Waiting]:
        """Give a reason for each family that was asked for, or one for all if none was and none works."""
        refused = {family: guest.reason for family, guest in located.items() if isinstance(guest, Refusal)}
        named = [family for family in refused if _is_named(entry, family)]
        if refused and not named and len(refused) == len(located):
            named = [self._guests.likeliest(entry, domain, list(refused))]
        for family in named:
            yield Waiting(Owner(domain.name), refused[family], entry.origin)


def _absent(entry: GuestEntry, absence: Absence) -> _Placed:
    return _Placed(waiting=(Waiting(Owner(absence.name), absence.reason, entry.origin, absence.stopped),))


def _bridge_of(network: Network | None) -> str | Absence:
    if network is None:
        return Absence("", "libvirt knows no such network", stopped=True)
    if not network.active:
        return Absence(network.name, "the network is not active", stopped=True)
    if network.bridge is None:
        return Absence(network.name, "the network has no bridge to route to", stopped=False)
    if not is_interface_name(network.bridge):
        return Absence(network.name, "its bridge has a name that no rule can hold", stopped=False)
    return network.bridge


def _forwards(entry: ForwardEntry, guest: Guest) -> Iterator[Forward]:
    family = Family.of(guest.address)
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
                sources=tuple(subnet for subnet in entry.sources if Family.of(subnet) is family),
                bridge=guest.bridge,
                bridge_port=guest.bridge_port,
                origin=mapping.origin,
            )


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
