"""From configuration and inventory to the desired state. Pure.

Every forward and 1:1 address is placed in each family it can exist in: its domain must run, one of its interfaces must
be meant, and an address of that interface must be believed (`fwdaemon.resolve.guests`). A route needs its network to be
active. What is missing becomes a reason to wait.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import TypeVar

from fwdaemon.config.model import Config, ForwardEntry, GuestEntry, NatEntry, PortMapping, RouteEntry
from fwdaemon.core.exposures import Forward, Nat, Owner, Route
from fwdaemon.core.inventory import Domain, Hindrance, HindranceKind, Inventory, Network
from fwdaemon.core.probing import Silent
from fwdaemon.core.state import Desired, Namesake, Unchosen, Waiting
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.resolve.guests import Absence, Chosen, Guest, GuestFinder, as_uuid
from fwdaemon.resolve.neighbours import proxied, unseen

_T = TypeVar("_T")
_listen = attrgetter("listen")


class Placer:
    """Places whatever configuration is in force on the inventory there is; `chosen` is what entries lead to."""

    def __init__(self, chosen: Chosen) -> None:
        self.chosen = chosen
        self.placement: Placement | None = None

    def place(self, config: Config, inventory: Inventory) -> Desired:
        """Give the desired state; a mistake on the way leaves nothing for the next time."""
        placement, self.placement = self.placement, None
        if placement is None or placement.config is not config:
            placement = Placement(config, inventory, self.chosen)
        desired = placement.move(inventory)
        self.placement, self.chosen = placement, placement.chosen
        return desired


def desired_state(config: Config, inventory: Inventory, chosen: Chosen | None = None) -> Desired:
    """Tell what is to be live on a host like `inventory`; `chosen` is as in `GuestFinder`."""
    return Placement(config, inventory, chosen).desired


@dataclass(frozen=True, slots=True)
class _Placed:
    """What came of one entry; `subnets` are those of its guests, from which hairpin connections may come.

    `families` are those it has rules in; `imminent`, `bridge_ports`, `bridges` and `silent` are as in `Desired`.
    """

    forwards: frozenset[Forward] = frozenset()
    nats: frozenset[Nat] = frozenset()
    routes: frozenset[Route] = frozenset()
    waiting: tuple[Waiting, ...] = ()
    imminent: frozenset[Nat] = frozenset()
    subnets: frozenset[Subnet] = frozenset()
    families: frozenset[Family] = frozenset()
    bridge_ports: frozenset[tuple[Family, str]] = frozenset()
    bridges: frozenset[tuple[Family, str]] = frozenset()
    silent: frozenset[Silent] = frozenset()
    unchosen: tuple[Unchosen, ...] = ()


class Placement:
    """One configuration, placed on one inventory after another.

    What came of an entry is kept while nothing changed that it follows from; so most exposures of a state are the very
    objects of the state before it.
    """

    def __init__(self, config: Config, inventory: Inventory, chosen: Chosen | None = None) -> None:
        self.config = config
        self._entries = config.guest_entries
        self._numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(self._entries):
            self._numbers[entry.domain].append(number)
        self._guests = GuestFinder(inventory, self._entries, chosen)
        self._placed = [self._place(entry) for entry in self._entries]
        self.inventory = inventory
        self.desired = self._state()

    @property
    def chosen(self) -> Chosen:
        """What another placement is to know of this one; see `GuestFinder`."""
        return self._guests.chosen

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
        known = (network.subnets for network in inventory.every_network if network.active)
        forwards = _united(entry.forwards for entry in placed)
        nats, routes = _united(entry.nats for entry in placed), _united(entry.routes for entry in placed)
        state = Desired(
            forwards,
            nats,
            routes,
            tuple(chain.from_iterable(entry.waiting for entry in placed)),
            imminent=_united(entry.imminent for entry in placed),
            guest_subnets=_united(entry.subnets for entry in placed).union(*known),
            homes=frozenset(_homes(inventory.every_network)),
            links=inventory.links,
            uplinks=(uplinks := config.daemon.uplinks or inventory.uplinks),
            inside=frozenset(_inside(inventory.every_network)) - uplinks,
            closed=frozenset(item for item in _closed(inventory.every_network) if item[1] not in uplinks),
            forwarded=frozenset(forwarded(inventory.every_network)),
            elsewhere=frozenset(_elsewhere(forwards, nats, routes, inventory)),
            unheld=frozenset(nat.public for nat in nats) - {host.address for host in inventory.host_addresses},
            proxied=proxied(routes, inventory),
            silent=_united(entry.silent for entry in placed) | unseen(routes, inventory),
            localhost=config.daemon.localhost,
            label=config.daemon.label,
            gates=config.daemon.gates,
            behind=config.daemon.behind,
            remarks=(
                *(_namesake(domain, config.daemon.libvirt) for domain in self._guests.namesakes()),
                *_namesakes(inventory.namesakes, config),
                *dict.fromkeys(chain.from_iterable(entry.unchosen for entry in placed)),
            ),
        )
        return state.knowing(
            _united(entry.families for entry in placed),
            _united(entry.bridge_ports for entry in placed),
            _united(entry.bridges for entry in placed),
        )

    def _place(self, entry: GuestEntry) -> _Placed:
        domain = self._guests.running(entry)
        if isinstance(domain, Absence):
            return self._absent(entry, domain)
        return self._forward(entry, domain) if isinstance(entry, ForwardEntry) else self._nat(entry, domain)

    def _absent(self, entry: GuestEntry, absence: Absence) -> _Placed:
        """Give the reason to wait, and what a 1:1 guest needs that may run here before we hear of it."""
        public = entry.public if isinstance(entry, NatEntry) else None
        why = absence.reason, entry.origin, absence.stopped, absence.move
        waiting = Waiting(Owner(absence.name), *why, public, returning=absence.returning)
        domain = self._guests.imminent(entry)
        if domain is None or not isinstance(entry, NatEntry):
            return _waiting(waiting)
        guest = self._guests.locate(entry, domain, Family.of(entry.public))
        if isinstance(guest, Hindrance):
            return _waiting(waiting)
        nat = _one_to_one(entry, guest)
        return _Placed(waiting=(waiting,), imminent=frozenset({nat}), families=_the_same(frozenset({nat.family})))

    def _forward(self, entry: ForwardEntry, domain: Domain) -> _Placed:
        """Give the live forwards of an entry, or the reasons why there are none."""
        located = {family: self._guests.locate(entry, domain, family) for family in _families(entry)}
        guests = [guest for guest in located.values() if isinstance(guest, Guest)]
        forwards = frozenset(forward for guest in guests for forward in _forwards(entry, guest))
        missing = {family: guest for family, guest in located.items() if isinstance(guest, Hindrance)}
        if guests:
            missing = {family: hindrance for family, hindrance in missing.items() if _is_named(entry, family)}
        silent = self._silent(entry, domain, missing)
        reasons = tuple(self._reasons(entry, domain, located))
        return self._translated(entry, guests, forwards=forwards, waiting=reasons, silent=silent)

    def _nat(self, entry: NatEntry, domain: Domain) -> _Placed:
        """Give an entry's 1:1 NAT, or the reason why there is none."""
        family = Family.of(entry.public)
        guest = self._guests.locate(entry, domain, family)
        if isinstance(guest, Hindrance):
            waiting = Waiting(Owner(domain.name), guest, entry.origin)
            return _Placed(waiting=(waiting,), silent=self._silent(entry, domain, {family: guest}))
        return self._translated(entry, [guest], nats=frozenset({_one_to_one(entry, guest)}))

    def _translated(  # noqa: PLR0913  what becomes of an entry has that many sides
        self,
        entry: GuestEntry,
        guests: Collection[Guest],
        *,
        forwards: frozenset[Forward] = frozenset(),
        nats: frozenset[Nat] = frozenset(),
        waiting: tuple[Waiting, ...] = (),
        silent: frozenset[Silent] = frozenset(),
    ) -> _Placed:
        """Add to the exposures of an entry what follows from its guests, one for each family."""
        ports = {Family.of(guest.address): guest.bridge_port for guest in guests}
        bridges = {Family.of(guest.address): guest.bridge for guest in guests}
        return _Placed(
            forwards,
            nats,
            waiting=waiting,
            subnets=frozenset(subnet for guest in guests for subnet in self._guests.subnets(guest)),
            families=_the_same(frozenset(ports)),
            bridge_ports=_the_same(frozenset((family, port) for family, port in ports.items() if port is not None)),
            bridges=_the_same(frozenset((family, name) for family, name in bridges.items() if name is not None)),
            silent=silent,
            unchosen=tuple(unchosen for guest in guests if (unchosen := self._guests.unchosen(entry, guest))),
        )

    def _silent(self, entry: GuestEntry, domain: Domain, missing: Mapping[Family, Hindrance]) -> frozenset[Silent]:
        """Give where to search for the guest of an entry that waits."""
        unnamed = (family for family, hindrance in missing.items() if hindrance.kind is HindranceKind.NO_ADDRESS)
        found = (self._guests.silent(entry, domain, family) for family in unnamed)
        return frozenset(silent for silent in found if silent is not None)

    def _reasons(
        self, entry: ForwardEntry, domain: Domain, located: dict[Family, Guest | Hindrance]
    ) -> Iterator[Waiting]:
        """Give a reason for each family that was asked for, or one for all if none was and none works."""
        missing = {family: guest for family, guest in located.items() if isinstance(guest, Hindrance)}
        named = [family for family in missing if _is_named(entry, family)]
        if missing and not named and len(missing) == len(located):
            named = [self._guests.likeliest(entry, domain, missing)]
        for family in named:
            yield Waiting(Owner(domain.name), missing[family], entry.origin)


def _namesake(domain: Domain, uris: Sequence[str]) -> Namesake:
    """Say of a domain that it has the name an entry writes, and is not the one it means."""
    return Namesake(domain.name, domain.uuid, _uri(uris, domain.rank), is_uuid=as_uuid(domain.name) is not None)


def _namesakes(networks: Iterable[Network], config: Config) -> Iterator[Namesake]:
    """Say the same of networks that have the name of a route's."""
    named = {entry.network for entry in config.routes}
    for network in networks:
        if network.name in named:
            uri = _uri(config.daemon.libvirt, network.rank)
            yield Namesake(network.name, network.uuid, uri, is_network=True)


def _uri(uris: Sequence[str], rank: int) -> str:
    return uris[rank] if rank < len(uris) else ""


def _route(entry: RouteEntry, network: Network | None) -> _Placed:
    """Give an entry's route, or the reason why there is none."""
    bridge = _bridge_of(network)
    if isinstance(bridge, Absence):
        return _waiting(Waiting(Owner(entry.network, "network"), bridge.reason, entry.origin, bridge.stopped))
    let_out = network is not None and _lets_out(network, entry.subnet)
    route = Route(entry.network, entry.subnet, bridge, entry.proxy, entry.origin, let_out)
    bridges = frozenset({(route.family, bridge)})
    return _Placed(routes=frozenset({route}), families=frozenset({route.family}), bridges=bridges)


def _lets_out(network: Network, subnet: Subnet) -> bool:
    """Whether libvirt's own rules let out what these addresses open: they do so for a network's own subnets."""
    own = (other for other in network.subnets if other.version == subnet.version)
    is_own = any(subnet.subnet_of(other) for other in own)  # type: ignore[arg-type]  # the family is one
    return network.unfiltered or (network.forwards and is_own)


def _homes(networks: Iterable[Network]) -> Iterator[tuple[Subnet, str]]:
    """Give the subnets that lie behind libvirt's own bridges, and nowhere else."""
    for network in networks:
        if network.active and network.own_bridge and network.bridge is not None:
            yield from ((subnet, network.bridge) for subnet in network.subnets if not subnet.is_link_local)


def _inside(networks: Iterable[Network]) -> Iterator[str]:
    """Give the bridges that libvirt made for networks whose guests it lets out."""
    for network in networks:
        if network.active and network.own_bridge and network.forwards and network.bridge is not None:
            yield network.bridge


def _closed(networks: Iterable[Network]) -> Iterator[tuple[Family, str]]:
    """Give those into which it lets nobody, by family."""
    for network in networks:
        if network.active and network.own_bridge and network.bridge is not None:
            yield from ((family, network.bridge) for family in network.closed)


def forwarded(networks: Iterable[Network]) -> Iterator[tuple[Family, str]]:
    """Give the networks that need forwarding without us, by family."""
    for network in networks:
        if network.active and network.forwards:
            yield from ((Family.of(subnet), network.name) for subnet in network.subnets if not subnet.is_link_local)


def _elsewhere(
    forwards: Iterable[Forward], nats: Iterable[Nat], routes: Iterable[Route], inventory: Inventory
) -> Iterator[Address]:
    """Give the listening addresses that would be on a link of the host that leads away, if any machine there has them.

    One that is routed to the host from farther off needs not be held by it, and those of guests are their own.
    """
    own = {host.address for host in inventory.host_addresses} | {nat.public for nat in nats}
    inside = {network.bridge for network in inventory.every_network if network.own_bridge}
    links = [host.subnet for host in inventory.host_addresses if host.device not in inside]
    routed = [route.subnet for route in routes]
    for address in set(map(_listen, forwards)) - own - {None}:
        if _lies_in(address, links) and not _lies_in(address, routed):
            yield address


def _lies_in(address: Address, subnets: Iterable[Subnet]) -> bool:
    return any(address.version == subnet.version and address in subnet for subnet in subnets)


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
        return Absence("", Hindrance(HindranceKind.NO_SUCH_NETWORK), stopped=True)
    if not network.active:
        return Absence(network.name, Hindrance(HindranceKind.NETWORK_NOT_ACTIVE), stopped=True)
    if network.bridge is None:
        return Absence(network.name, Hindrance(HindranceKind.NO_BRIDGE), stopped=False)
    if not is_interface_name(network.bridge):
        return Absence(network.name, Hindrance(HindranceKind.BRIDGE_NAME), stopped=False)
    return network.bridge


def _one_to_one(entry: NatEntry, guest: Guest) -> Nat:
    plugged = guest.bridge, guest.bridge_port
    mac = guest.interface.mac
    return Nat(guest.domain.name, entry.public, guest.address, entry.assign, *plugged, entry.origin, mac)


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
                masquerade=entry.masquerade,
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
