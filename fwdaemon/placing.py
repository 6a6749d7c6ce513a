"""From configuration and inventory to the desired state. Pure.

Every forward and 1:1 address is placed in each family it can exist in: its domain must run, one of its interfaces must
be meant, and an address of that interface must be believed (`fwdaemon.guests`). A route needs its network to be active.
What is missing becomes a reason to wait.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypeVar

from fwdaemon.addresses import Refusal
from fwdaemon.config.model import Config, ForwardEntry, NatEntry, PortMapping, RouteEntry
from fwdaemon.desired import Desired, Forward, Nat, Owner, Route, Waiting
from fwdaemon.guests import Absence, Guest, GuestEntry, GuestFinder
from fwdaemon.inventory import Domain, Inventory, Network
from fwdaemon.model import Address, Family, Subnet
from fwdaemon.naming import is_interface_name

_T = TypeVar("_T")


def desired_state(config: Config, inventory: Inventory) -> Desired:
    """Tell what is to be live on a host like `inventory`."""
    return Placement(config, inventory).desired


@dataclass(frozen=True, slots=True)
class _Placed:
    """What came of one entry; `subnets` are those of its guests, from which hairpin connections may come.

    `families` are those of its openings, `bridge_ports` as in `Desired`.
    """

    forwards: frozenset[Forward] = frozenset()
    nats: frozenset[Nat] = frozenset()
    routes: frozenset[Route] = frozenset()
    waiting: tuple[Waiting, ...] = ()
    subnets: frozenset[Subnet] = frozenset()
    families: frozenset[Family] = frozenset()
    bridge_ports: frozenset[tuple[Family, str]] = frozenset()


class Placement:
    """One configuration, placed on one inventory after another.

    What came of an entry is kept while nothing changed that it follows from; so most openings of a state are the very
    objects of the state before it.
    """

    def __init__(self, config: Config, inventory: Inventory) -> None:
        self.config = config
        self._entries: list[GuestEntry] = [*config.forwards, *config.nats]
        self._numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(self._entries):
            self._numbers[entry.domain].append(number)
        self._guests = GuestFinder(inventory, self._entries)
        self._placed = [self._place(entry) for entry in self._entries]
        self.inventory = inventory
        self.desired = self._state()

    def move(self, inventory: Inventory) -> Desired:
        """Place the configuration on another inventory; where nothing differs, the state is the same object."""
        if inventory == self.inventory:
            return self.desired
        for called in self._guests.follow(inventory):
            for number in self._numbers.get(called, ()):
                self._placed[number] = self._place(self._entries[number])
        self.inventory = inventory
        self.desired = self._state()
        return self.desired

    def _state(self) -> Desired:
        config, inventory = self.config, self.inventory
        networks = {network.name: network for network in inventory.networks}
        placed = [*self._placed, *(_route(entry, networks.get(entry.network)) for entry in config.routes)]
        known = (network.subnets for network in inventory.networks if network.active)
        state = Desired(
            _united(entry.forwards for entry in placed),
            _united(entry.nats for entry in placed),
            _united(entry.routes for entry in placed),
            tuple(chain.from_iterable(entry.waiting for entry in placed)),
            guest_subnets=_united(entry.subnets for entry in placed).union(*known),
            outer=inventory.outer if config.nats or config.routes else frozenset(),
            localhost=config.daemon.localhost,
            mark=config.daemon.mark,
            gates=config.daemon.gates,
        )
        return state.knowing(
            _united(entry.families for entry in placed), _united(entry.bridge_ports for entry in placed)
        )

    def _place(self, entry: GuestEntry) -> _Placed:
        domain = self._guests.running(entry)
        if isinstance(domain, Absence):
            return _waiting(Waiting(Owner(domain.name), domain.reason, entry.origin, domain.stopped))
        return self._forward(entry, domain) if isinstance(entry, ForwardEntry) else self._nat(entry, domain)

    def _forward(self, entry: ForwardEntry, domain: Domain) -> _Placed:
        """Give the live forwards of an entry, or the reasons why there are none."""
        located = {family: self._guests.locate(entry, domain, family) for family in _families(entry)}
        guests = [guest for guest in located.values() if isinstance(guest, Guest)]
        forwards = frozenset(forward for guest in guests for forward in _forwards(entry, guest))
        reasons = tuple(self._reasons(entry, domain, located))
        return self._translated(guests, forwards=forwards, waiting=reasons)

    def _nat(self, entry: NatEntry, domain: Domain) -> _Placed:
        """Give an entry's 1:1 NAT, or the reason why there is none."""
        guest = self._guests.locate(entry, domain, Family.of(entry.public))
        if isinstance(guest, Refusal):
            return _waiting(Waiting(Owner(domain.name), guest.reason, entry.origin))
        nat = Nat(domain.name, entry.public, guest.address, entry.assign, guest.bridge, guest.bridge_port, entry.origin)
        return self._translated([guest], nats=frozenset({nat}))

    def _translated(
        self,
        guests: Collection[Guest],
        *,
        forwards: frozenset[Forward] = frozenset(),
        nats: frozenset[Nat] = frozenset(),
        waiting: tuple[Waiting, ...] = (),
    ) -> _Placed:
        """Add to the openings of an entry what follows from its guests, one for each family."""
        ports = {Family.of(guest.address): guest.bridge_port for guest in guests}
        return _Placed(
            forwards,
            nats,
            waiting=waiting,
            subnets=frozenset(subnet for guest in guests for subnet in self._guests.subnets(guest)),
            families=_the_same(frozenset(ports)),
            bridge_ports=_the_same(frozenset((family, port) for family, port in ports.items() if port is not None)),
        )

    def _reasons(
        self, entry: ForwardEntry, domain: Domain, located: dict[Family, Guest | Refusal]
    ) -> Iterator[Waiting]:
        """Give a reason for each family that was asked for, or one for all if none was and none works."""
        refused = {family: guest for family, guest in located.items() if isinstance(guest, Refusal)}
        named = [family for family in refused if _is_named(entry, family)]
        if refused and not named and len(refused) == len(located):
            named = [self._guests.likeliest(entry, domain, refused)]
        for family in named:
            yield Waiting(Owner(domain.name), refused[family].reason, entry.origin)


def _route(entry: RouteEntry, network: Network | None) -> _Placed:
    """Give an entry's route, or the reason why there is none."""
    bridge = _bridge_of(network)
    if isinstance(bridge, Absence):
        return _waiting(Waiting(Owner(entry.network, "network"), bridge.reason, entry.origin, bridge.stopped))
    route = Route(entry.network, entry.subnet, bridge, entry.proxy, entry.origin)
    return _Placed(routes=frozenset({route}), families=frozenset({route.family}))


@lru_cache(maxsize=1024)
def _the_same(found: frozenset[_T]) -> frozenset[_T]:
    """Give the one of all equal sets: thousands of entries have the same few."""
    return found


def _waiting(reason: Waiting) -> _Placed:
    return _Placed(waiting=(reason,))


def _united(sets: Iterable[frozenset[_T]]) -> frozenset[_T]:
    return frozenset[_T]().union(*sets)


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
