"""From configuration and inventory to the desired state. Pure.

Every forward and 1:1 address is placed in each family it can exist in: its domain must run, one of its interfaces must
be meant, and an address of that interface must be believed (`fwdaemon.resolve.guests`). A route needs its network to be
active. What is missing becomes a reason to wait.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Final, TypeVar
from uuid import UUID

from fwdaemon.config.model import Config, ForwardEntry, GuestEntry, NatEntry, RouteEntry
from fwdaemon.core.exposures import Forward, Nat, Owner, Route
from fwdaemon.core.inventory import Domain, Hindrance, HindranceKind, Inventory, Network
from fwdaemon.core.report import Assigned
from fwdaemon.core.state import Desired, ExpandedEntry, Silent, Unchosen, Waiting
from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.resolve.claims import Key
from fwdaemon.resolve.expansion import Assignments, Before, Expander, Expansion, aged
from fwdaemon.resolve.guests import (
    Absence,
    Chosen,
    Guest,
    GuestFinder,
    bridge_of,
    is_named,
    namesake,
    namesakes_of_networks,
    possible_families,
)
from fwdaemon.resolve.neighbours import closed, elsewhere, forwarded, homes, inside, lets_out, paths, proxied, unseen
from fwdaemon.resolve.sharing import Allocator, Grants
from fwdaemon.resolve.snapshot import Rebooting

_T = TypeVar("_T")
_COUNTED_AFTER_S: Final = 60.0
_listen = attrgetter("listen")


class Placer:
    """Places whatever configuration is in force on the inventory there is; `chosen` is what entries lead to.

    `ports` are those that are assigned to domains, `turns` are the claims in order, as in `Before`. By the clock of
    `now`, `ends` is when to place again, as claims are kept until then.
    """

    def __init__(self, chosen: Chosen, before: Before | None = None) -> None:
        self._before = before or Before()
        self.chosen, self.ports, self.turns = chosen, self._before.ports, self._before.turns
        self.assigned: tuple[Assigned, ...] = ()
        self.placement: Placement | None = None
        self._rebooting, self._known, self._uncounted = Rebooting(), frozenset[UUID](), 0.0
        self.ends: float | None = None
        self._allocator: Allocator | None = None
        self._expander: Expander | None = None
        self._answered_at: float | None = None

    def place(
        self, config: Config, inventory: Inventory, answered_at: float | None = None, now: float = 0.0
    ) -> Desired:
        """Give the desired state; a mistake on the way leaves nothing for the next time.

        `now` is by a clock that cannot be set, as is `answered_at`, where libvirt answers; `assigned` are new ports.
        """
        placement, self.placement = self.placement, None
        before, self._answered_at = self._answered_at, answered_at
        passed = answered_at - before if answered_at is not None and before is not None else 0.0
        ports = self._aged(frozenset(domain.uuid for domain in inventory.domains), passed)
        rebooting = self._rebooting.follow(inventory.domains, now)
        self.ends = self._rebooting.ends
        grants = self._granted(config, inventory, ports, rebooting)
        expansion = self._expanded(grants, inventory, ports, rebooting)
        if placement is None or placement.config is not grants.config:
            placement = Placement(grants.config, inventory, self.chosen, expansion)
        desired = placement.move(inventory, expansion)
        self.placement, self.chosen = placement, placement.chosen
        self.ports, self.assigned = expansion.ports, expansion.assigned
        return desired

    def _aged(self, known: frozenset[UUID], seconds: float) -> Assignments:
        """Count how long domains are gone, when some came or went, and once a minute: there may be thousands."""
        self._uncounted += seconds
        is_due, counted = known != self._known or self._uncounted >= _COUNTED_AFTER_S, self._uncounted
        self._known, self._uncounted = known, 0.0 if is_due else counted
        return aged(self.ports, known, counted) if is_due else self.ports

    def _granted(self, config: Config, inventory: Inventory, ports: Assignments, rebooting: frozenset[UUID]) -> Grants:
        if self._allocator is None:
            self.turns = self._before.of_these_runs(inventory.domains)
            self._allocator = Allocator(self.turns[0])
        grants = self._allocator.settle(config, inventory, ports, rebooting)
        self.turns = self._allocator.turns, self.turns[1]
        return grants

    def _expanded(
        self, grants: Grants, inventory: Inventory, ports: Assignments, rebooting: frozenset[UUID]
    ) -> Expansion:
        if self._expander is None or self._expander.config is not grants.config:
            self._expander = Expander(grants.config, self.turns[1])
        occupied = grants.occupied(self._before.occupied, inventory.every_network)
        found = self._expander.expand(inventory.domains, ports, occupied, grants.misread, rebooting)
        self.turns = self.turns[0], self._expander.turns
        return replace(found, waiting=(*found.waiting, *grants.refused)) if grants.refused else found


def desired_state(
    config: Config, inventory: Inventory, chosen: Chosen | None = None, before: Before | None = None
) -> Desired:
    """Say what is to be live on a host like `inventory`; the rest is as in `Placer`."""
    return Placer(chosen or {}, before).place(config, inventory)


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

    def __init__(
        self,
        config: Config,
        inventory: Inventory,
        chosen: Chosen | None = None,
        expansion: Expansion | None = None,
    ) -> None:
        self.config = config
        self._expansion = expansion or Expander(config).expand(inventory.domains, {})
        written: tuple[GuestEntry, ...] = (*config.forwards, *config.nats)
        by_name = {(number, ""): entry for number, entry in enumerate(written) if not entry.is_pattern}
        self._entries = {**by_name, **self._expansion.entries}
        self._keys: defaultdict[str, set[Key]] = defaultdict(set)
        for key, entry in self._entries.items():
            self._keys[entry.domain].add(key)
        self._guests = GuestFinder(inventory, self._entries.values(), chosen)
        self._placed = {key: self._place(entry) for key, entry in sorted(self._entries.items(), key=itemgetter(0))}
        self.inventory = inventory
        self.desired = self._state()

    @property
    def chosen(self) -> Chosen:
        """What another placement is to know of this one; see `GuestFinder`."""
        return self._guests.chosen

    def move(self, inventory: Inventory, expansion: Expansion | None = None) -> Desired:
        """Place the configuration on another inventory; where nothing differs, the state is the same object."""
        expansion = expansion or Expander(self.config).expand(inventory.domains, {})
        changed = self._expand(expansion)
        if inventory == self.inventory and not changed and expansion.waiting == self._expansion.waiting:
            return self.desired
        for called in self._guests.follow(inventory):
            changed |= self._keys.get(called, set())
        for key in changed & self._entries.keys():
            self._placed[key] = self._place(self._entries[key])
        self.inventory, self._expansion = inventory, expansion
        self.desired = self._state()
        return self.desired

    def _expand(self, expansion: Expansion) -> set[Key]:
        """Go on with other entries, and return which of them differ."""
        before, now = self._expansion.entries, expansion.entries
        if before is now:
            return set()
        changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
        removed, added = ([of[key] for key in changed if key in of] for of in (before, now))
        self._guests.enlist(added, removed)
        for key in changed & before.keys():
            self._keys[self._entries.pop(key).domain].discard(key)
        for key in changed & now.keys():
            self._entries[key] = now[key]
            self._keys[now[key].domain].add(key)
        for key in before.keys() - now.keys():
            del self._placed[key]
        if now.keys() - before.keys():
            # In the order in which they would be placed anew.
            places = sorted({**self._placed, **dict.fromkeys(now, _Placed())})
            self._placed = {key: self._placed.get(key, _Placed()) for key in places}
        return changed

    def _state(self) -> Desired:
        config, inventory = self.config, self.inventory
        networks = {network.name: network for network in inventory.networks}
        placed = [*self._placed.values(), *(_route(entry, networks.get(entry.network)) for entry in config.routes)]
        known = (network.subnets for network in inventory.every_network if network.active)
        forwards = _united(entry.forwards for entry in placed)
        nats, routes = _united(entry.nats for entry in placed), _united(entry.routes for entry in placed)
        public = frozenset(nat.public for nat in nats)
        state = Desired(
            forwards,
            nats,
            routes,
            (*chain.from_iterable(entry.waiting for entry in placed), *self._expansion.waiting),
            imminent=_united(entry.imminent for entry in placed),
            guest_subnets=_united(entry.subnets for entry in placed).union(*known),
            homes=frozenset(homes(inventory.every_network)),
            links=inventory.links,
            uplinks=(uplinks := config.daemon.uplinks or inventory.uplinks),
            inside=frozenset(inside(inventory.every_network)) - uplinks,
            closed=frozenset(item for item in closed(inventory.every_network) if item[1] not in uplinks),
            forwarded=frozenset(forwarded(inventory.every_network)),
            elsewhere=frozenset(
                elsewhere(map(_listen, forwards), public, [route.subnet for route in routes], inventory)
            ),
            unheld=public - {host.address for host in inventory.host_addresses},
            proxied=proxied(routes, inventory),
            silent=_united(entry.silent for entry in placed) | unseen(routes, inventory),
            localhost=config.daemon.localhost,
            label=config.daemon.label,
            gates=config.daemon.gates,
            behind=config.daemon.behind,
            remarks=(
                *(namesake(domain, config.daemon.libvirt) for domain in self._guests.namesakes()),
                *namesakes_of_networks(inventory.namesakes, config),
                *dict.fromkeys(chain.from_iterable(entry.unchosen for entry in placed)),
            ),
            expanded=tuple(_expanded(key, entry) for key, entry in sorted(self._expansion.entries.items())),
            sets=config.sets,
            barred=config.daemon.barred,
            guest_paths=frozenset(paths(inventory.every_network, uplinks) if config.daemon.keep_guests_online else ()),
        )
        return state.knowing(
            # Other programs find their sets there, whatever is live.
            _united(entry.families for entry in placed).union(Family if state.has_external else ()),
            _united(entry.bridge_ports for entry in placed),
            _united(entry.bridges for entry in placed),
        )

    def _place(self, entry: GuestEntry) -> _Placed:
        placed = self._place_one(entry)
        if not placed.waiting or not entry.origin.domain:
            return placed
        claims = [claim for claim, _ in entry.every_claim()]
        return replace(placed, waiting=tuple(replace(item, claim=claim) for item in placed.waiting for claim in claims))

    def _place_one(self, entry: GuestEntry) -> _Placed:
        domain = self._guests.running(entry)
        if isinstance(domain, Absence):
            return self._absent(entry, domain)
        return self._forward(entry, domain) if isinstance(entry, ForwardEntry) else self._nat(entry, domain)

    def _absent(self, entry: GuestEntry, absence: Absence) -> _Placed:
        """Give the reason to wait, and what a 1:1 guest needs that may run here before we hear of it."""
        public = entry.public if isinstance(entry, NatEntry) else None
        why = absence.reason, entry.origin, absence.stopped, absence.move
        called = isinstance(entry, ForwardEntry) and entry.called is not None
        waiting = Waiting(Owner(absence.name), *why, public, absence.returning, is_matched=called)
        domain = self._guests.imminent(entry)
        if domain is None or not isinstance(entry, NatEntry):
            return _Placed(waiting=(waiting,))
        guest = self._guests.locate(entry, domain, Family.of(entry.public))
        if isinstance(guest, Hindrance):
            return _Placed(waiting=(waiting,))
        nat = _one_to_one(entry, guest)
        return _Placed(waiting=(waiting,), imminent=frozenset({nat}), families=_the_same(frozenset({nat.family})))

    def _forward(self, entry: ForwardEntry, domain: Domain) -> _Placed:
        """Give the live forwards of an entry, or the reasons why there are none."""
        located = {family: self._guests.locate(entry, domain, family) for family in possible_families(entry)}
        guests = [guest for guest in located.values() if isinstance(guest, Guest)]
        forwards = frozenset(forward for guest in guests for forward in _forwards(entry, guest))
        missing = {family: guest for family, guest in located.items() if isinstance(guest, Hindrance)}
        if guests:
            missing = {family: hindrance for family, hindrance in missing.items() if is_named(entry, family)}
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
        named = [family for family in missing if is_named(entry, family)]
        if missing and not named and len(missing) == len(located):
            named = [self._guests.likeliest(entry, domain, missing)]
        for family in named:
            yield Waiting(Owner(domain.name), missing[family], entry.origin)


def _expanded(key: Key, entry: ForwardEntry) -> ExpandedEntry:
    return ExpandedEntry(entry.owner, entry.origin, tuple(entry.every_claim()), is_matched=bool(key[1]))


def _route(entry: RouteEntry, network: Network | None) -> _Placed:
    """Give an entry's route, or the reason why there is none."""
    bridge = bridge_of(network)
    if isinstance(bridge, Absence):
        owner = Owner(entry.network, "network")
        return _Placed(waiting=(Waiting(owner, bridge.reason, entry.origin, bridge.stopped),))
    let_out = network is not None and lets_out(network, entry.subnet)
    route = Route(entry.network, entry.subnet, bridge, entry.proxy, entry.origin, let_out, entry.admission)
    bridges = frozenset({(route.family, bridge)})
    return _Placed(routes=frozenset({route}), families=frozenset({route.family}), bridges=bridges)


@lru_cache(maxsize=1024)
def _the_same(found: frozenset[_T]) -> frozenset[_T]:
    """Give the one of all equal sets: thousands of entries have the same few."""
    return found


def _united(sets: Iterable[frozenset[_T]]) -> frozenset[_T]:
    return frozenset[_T]().union(*sets)


def _one_to_one(entry: NatEntry, guest: Guest) -> Nat:
    where = guest.domain.name, entry.public, guest.address, entry.assign
    return Nat(*where, guest.bridge, guest.bridge_port, entry.origin, guest.interface.mac, entry.admission)


def _forwards(entry: ForwardEntry, guest: Guest) -> Iterator[Forward]:
    family, name, target = Family.of(guest.address), guest.domain.name, guest.address
    sources = tuple(subnet for subnet in entry.sources if Family.of(subnet) is family)
    asked = entry.interface, sources, entry.masquerade
    bridge, port = guest.bridge, guest.bridge_port
    how = entry.admission and entry.admission.of(family), entry.until, entry.log
    listening: dict[Address | None, list[Address | None]] = {}
    # By position, and nothing worked out again for each: there may be thousands.
    for item in entry.mappings:
        if item.listen not in listening:
            listening[item.listen] = entry.listens_on(item, family)
        for listen in listening[item.listen]:
            where = item.protocol, listen, item.host, target, item.guest
            yield Forward(name, *where, *asked, bridge, port, item.origin, item.auto, *how)
