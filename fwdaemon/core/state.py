"""The desired state as plain data: what is to be reachable now, and why the rest waits.

How it follows from configuration and inventory is in `fwdaemon.resolve.placement`; the backends make rules of it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from fwdaemon.core.admission import Admission, Gatekeeper, Place, Ranges, SourceSet, names_of
from fwdaemon.core.bans import BEHIND
from fwdaemon.core.exposures import Claim, Exposure, Exposures, Forward, Nat, Owner, Route
from fwdaemon.core.inventory import Hindrance, Move
from fwdaemon.core.types import Address, Family, Gate, GuestPath, Origin, Subnet

# A connection has so many labels (struct nf_conn_labels).
LABELS: Final = range(128)

# An ended connection is remembered for longer than a guest waits to send again; that of a port is not renewed earlier.
REFUSED_FOR_S: Final = 120
RENEWED_AFTER_S: Final = 5.0

# Thousands of exposures are looked at by what is written in C: a line of Python for each takes ten times as long.
_FAMILIES: Final[Mapping[type, Family]] = {IPv4Address: Family.IPV4, IPv6Address: Family.IPV6}
_target = attrgetter("target")
_masquerades = attrgetter("masquerade")
_admission = attrgetter("admission")
_log = attrgetter("log")


class Proxied(NamedTuple):
    """An address of a route with a `proxy` that a guest behind its bridge has: the host answers for it there."""

    route: Route
    address: Address


@dataclass(frozen=True, slots=True)
class Silent:
    """An entry waits for a guest: nothing names an address of that family for `mac` on `bridge`.

    With `subnet` it is one that is routed to the bridge, in which the host has no address itself.
    """

    bridge: str
    mac: str
    family: Family
    subnet: Subnet | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry, or one family of it, that has no live exposure, with the reason.

    `stopped` says that the reason is the domain not running, `move` that it is migrating, or has, `returning` that it
    may be rebooting. `public` is that of a 1:1 entry. With `claim` it is about that alone, as with all that is asked
    for in metadata. `is_matched` says that the domain is one of several that the entry is for.
    """

    owner: Owner
    reason: Hindrance
    origin: Origin = field(compare=False)
    stopped: bool = False
    move: Move | None = None
    public: Address | None = None
    returning: bool = field(default=False, compare=False)
    claim: Claim | None = None
    is_matched: bool = field(default=False, compare=False)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to say of it: a domain that a pattern fits does not run."""
        return self.is_matched and self.stopped and self.move is None

    @property
    def refused(self) -> bool:
        """Whether it will not come to be by waiting."""
        return self.claim is not None and self.reason.kind.is_refusal

    @property
    def declined(self) -> bool:
        """Whether that is so of what a domain asks for in its metadata."""
        return self.refused and bool(self.origin.domain)


@dataclass(frozen=True, slots=True)
class ExpandedEntry:
    """An entry of a pattern or with automatic ports, for one domain: its claims, each with its place.

    With `is_matched` the domain is one of several that the entry is for.
    """

    owner: Owner
    origin: Origin
    claims: tuple[tuple[Claim, Origin], ...]
    is_matched: bool = False


@dataclass(frozen=True, slots=True)
class Namesake:
    """A domain or network of `uri` has the `name` that an entry writes, and is not meant.

    `is_uuid` says that the name is one, which only a domain's matters for.
    """

    name: str
    uuid: UUID | None
    uri: str
    is_uuid: bool = False
    is_network: bool = False


@dataclass(frozen=True, slots=True)
class Unchosen:
    """An entry leads to the interface `mac` for having led there before; by itself it would wait for `reason`."""

    domain: str
    mac: str
    reason: Hindrance
    origin: Origin


@dataclass(frozen=True)
class Desired(Exposures):
    """Everything the kernel is to do for us.

    `imminent` are 1:1 NATs that are not live, whose guests may run here before anything says so, as while they migrate.
    What such a guest sends leaves with its public address from the start: translated by others, its connections end.
    `proxied` are the addresses of routes that the host answers for outside. `silent` are guests that entries wait for,
    as nothing names their address, and those behind a route with a `proxy` that have shown none of it.
    `guest_subnets` are where hairpin connections may come from and go to. `homes` are subnets that lie behind a bridge
    of libvirt's, each with that bridge: a packet from there that came in elsewhere has a forged source. So it is with
    `links`, subnets that are directly on a link of the host, each with an interface; one within another that is reached
    through a gateway has an empty name, as it may come in by any. `uplinks` are the interfaces that lead away from the
    host, and not to guests or containers on it: only there do routed and 1:1 guests open connections by themselves.
    `elsewhere` are listening addresses on the host's own links that it does not hold now: another machine may, as in a
    pair that shares an address, so the host and its guests are led there. `unheld` are public addresses of 1:1 guests
    that the host does not hold now, so no forward on every address is for them.
    `localhost` has forwards on every address answer on 127.0.0.1 and ::1 too. `gates` are the foreign chains, besides
    those we know, that are to let labelled connections through; jumps to chains that a pattern of `behind` names stay
    ahead of our rule there.
    `inside` are the bridges that libvirt made for networks whose guests it lets out, as far as they do not lead away;
    into those that are `closed`, and those of isolated networks among them, it lets no one. `forwarded` names the
    active networks for which libvirt itself wants packets of a family forwarded. In `confined` families we turn
    forwarding on, or have done so: what libvirt does not want forwarded for its networks is refused there, as it was
    not forwarded before. Frames within `bridging` bridges pass the same chains, and are none of that. Interfaces that
    are `switched` alone had forwarding off: what comes in by one is refused.
    `kept` are families that had exposures before: their tables stay, to go on refusing what is left of connections
    that were ended. `expanded` are the entries of patterns and with automatic ports, each for one domain. `remarks` are
    of what is there and does not count, and of entries that work for now. On `guest_paths`, chains of others that would
    refuse libvirt's own guests are to leave the decision to libvirt. `sets` are the named sets of sources that there
    are. Clients that `barred` denies may connect to nothing. With `counts_down`, rules that know one clock alone ask a
    set as well: it is empty once an end has come by another.

    Two states that follow each other share nearly all exposures, as the same objects in sets, whose operations neither
    hash nor compare them anew. What follows from all of them is worked out once.
    """

    waiting: tuple[Waiting, ...] = ()
    imminent: frozenset[Nat] = frozenset()
    proxied: frozenset[Proxied] = frozenset()
    silent: frozenset[Silent] = frozenset()
    guest_subnets: frozenset[Subnet] = frozenset()
    homes: frozenset[tuple[Subnet, str]] = frozenset()
    links: frozenset[tuple[Subnet, str]] = frozenset()
    uplinks: frozenset[str] = frozenset()
    elsewhere: frozenset[Address] = frozenset()
    unheld: frozenset[Address] = frozenset()
    localhost: bool = False
    label: int = 25
    gates: tuple[Gate, ...] = ()
    behind: tuple[str, ...] = BEHIND
    inside: frozenset[str] = frozenset()
    closed: frozenset[tuple[Family, str]] = frozenset()
    forwarded: frozenset[tuple[Family, str]] = frozenset()
    confined: frozenset[Family] = frozenset()
    bridging: frozenset[tuple[Family, str]] = frozenset()
    switched: frozenset[tuple[Family, str]] = frozenset()
    kept: frozenset[Family] = frozenset()
    remarks: tuple[Namesake | Unchosen, ...] = ()
    expanded: tuple[ExpandedEntry, ...] = ()
    sets: tuple[SourceSet, ...] = ()
    barred: Admission | None = None
    guest_paths: frozenset[GuestPath] = frozenset()
    counts_down: bool = False

    @cached_property
    def outgoing(self) -> frozenset[Nat]:
        """The 1:1 NATs under whose addresses guests open connections."""
        return self.nats.union(self.imminent) if self.imminent else self.nats

    @cached_property
    def carrying(self) -> frozenset[Exposure]:
        """Everything that an open connection may go by."""
        return self.exposures.union(self.imminent) if self.imminent else self.exposures

    def knowing(
        self,
        families: frozenset[Family],
        bridge_ports: frozenset[tuple[Family, str]],
        bridges: frozenset[tuple[Family, str]],
    ) -> "Desired":
        """Give the same state with what follows from its exposures, where that is known without reading them all."""
        known = replace(self)
        # Where `cached_property` keeps its value; what is made of this state with `replace` does not inherit it.
        vars(known).update(families=self.kept | families, bridge_ports=bridge_ports, bridges=bridges)
        return known

    def on_paths(self, guest_paths: frozenset[GuestPath]) -> "Desired":
        """Give the same state with these paths of guests; the same object where it has them."""
        if guest_paths == self.guest_paths:
            return self
        return replace(self, guest_paths=guest_paths).knowing(self.families, self.bridge_ports, self.bridges)

    def keeping(self, families: frozenset[Family]) -> "Desired":
        """Give the same state with these families kept."""
        return replace(self, kept=families).knowing(self.families, self.bridge_ports, self.bridges)

    def confining(
        self,
        families: frozenset[Family],
        bridging: frozenset[tuple[Family, str]],
        switched: frozenset[tuple[Family, str]] = frozenset(),
    ) -> "Desired":
        """Give the same state, confined, and with the tables of these families kept; the same object where it is so."""
        if (families, bridging, switched) == (self.confined, self.bridging, self.switched):
            return self
        kept = self.kept | families
        confined = replace(self, confined=families, bridging=bridging, switched=switched, kept=kept)
        return confined.knowing(self.families, self.bridge_ports, self.bridges)

    def of_family(self, family: Family) -> list[Forward]:
        """The forwards of one family, in no particular order."""
        return by_family(self.forwards)[family]

    @cached_property
    def families(self) -> frozenset[Family]:
        """The families that need anything in the kernel."""
        kinds = set(map(type, map(_target, chain(self.translated, self.imminent))))
        return self.kept.union(map(_FAMILIES.__getitem__, kinds), (route.family for route in self.routes))

    @cached_property
    def limited(self) -> tuple[Exposure, ...]:
        """The exposures to which not every client that they would take may connect, or not as often as it likes."""
        return tuple(filter(_admission, self.exposures))

    @cached_property
    def logged(self) -> tuple[Forward, ...]:
        """The forwards whose connections are written to the journal."""
        return tuple(filter(_log, self.forwards))

    @property
    def has_external(self) -> bool:
        """Whether others fill any of the sets."""
        return any(item.external for item in self.sets)

    @cached_property
    def used_sets(self) -> Mapping[str, SourceSet]:
        """The sets that the rules need: those that something live names, and those that others fill."""
        asked = [*map(_admission, self.limited), *([self.barred] if self.barred is not None else [])]
        names = set(names_of(asked))
        return {item.name: item for item in self.sets if item.external or item.name in names}

    def gatekeeper(self, ranges: Mapping[Place, Ranges] | None = None) -> Gatekeeper | None:
        """Give what knows who may not connect, with what others have in sets; `None` where all may."""
        if self.barred is None and not self.limited:
            return None
        return Gatekeeper({item.name: item for item in self.sets}, self.barred, ranges or {})

    @cached_property
    def masquerading(self) -> tuple[Forward, ...]:
        """The forwards whose guests see an address of the host."""
        return tuple(filter(_masquerades, self.forwards))

    @cached_property
    def stopped(self) -> frozenset[Owner]:
        """Those who have no exposure because they run nowhere."""
        return frozenset(entry.owner for entry in self.waiting if entry.stopped and entry.move is None)

    @cached_property
    def returning(self) -> frozenset[Owner]:
        """Those of them that may be rebooting."""
        return frozenset(entry.owner for entry in self.waiting if entry.returning and entry.move is None)

    @cached_property
    def moved(self) -> Mapping[Owner, Move]:
        """Those who have no exposure because another host has them."""
        return {entry.owner: entry.move for entry in self.waiting if entry.move is not None}

    @property
    def handed_over(self) -> frozenset[Address]:
        """The public addresses of those that another host was given."""
        gone = (entry for entry in self.waiting if entry.move in (Move.AWAY, Move.GONE))
        return frozenset(entry.public for entry in gone if entry.public is not None)

    @cached_property
    def hindered(self) -> Mapping[Owner, tuple[Waiting, ...]]:
        """What those who run, if elsewhere, wait for, or one family of it."""
        found: dict[Owner, tuple[Waiting, ...]] = {}
        for entry in self.waiting:
            if entry.move is not None or not entry.stopped:
                found[entry.owner] = (*found.get(entry.owner, ()), entry)
        return found

    @cached_property
    def owners(self) -> frozenset[Owner]:
        """Those who have an exposure."""
        domains = set(map(attrgetter("domain"), self.translated))
        return frozenset(map(Owner, domains)).union(route.owner for route in self.routes)

    @cached_property
    def bridge_ports(self) -> frozenset[tuple[Family, str]]:
        """The bridge ports of the guests that are reached by translation, each with the family it is reached in."""
        plugged = self.translated
        ports = set(zip(map(type, map(_target, plugged)), map(attrgetter("bridge_port"), plugged), strict=True))
        return frozenset((_FAMILIES[kind], port) for kind, port in ports if port is not None)

    @cached_property
    def bridges(self) -> frozenset[tuple[Family, str]]:
        """The bridges of guests and networks, each with the family its packets are forwarded in."""
        plugged = self.translated
        found = set(zip(map(type, map(_target, plugged)), map(attrgetter("bridge"), plugged), strict=True))
        of_guests = frozenset((_FAMILIES[kind], bridge) for kind, bridge in found if bridge is not None)
        return of_guests.union((route.family, route.bridge) for route in self.routes)

    @cached_property
    def ways_in(self) -> frozenset[str]:
        """The interfaces by which clients come in, apart from guests' own bridges."""
        named = map(attrgetter("interface"), self.forwards)
        return self.uplinks.union(interface for interface in set(named) if interface is not None)


def by_family(forwards: Collection[Forward]) -> Mapping[Family, list[Forward]]:
    """Give forwards apart by their families, in the order they have here."""
    found: dict[type, list[Forward]] = {kind: [] for kind in _FAMILIES}
    for forward, kind in zip(forwards, map(type, map(_target, forwards)), strict=True):
        found[kind].append(forward)
    return {family: found[kind] for kind, family in _FAMILIES.items()}


# What rules have counted of a state.

_Counter = TypeVar("_Counter")


class Counted(Generic[_Counter]):
    """Adds up for each exposure what rules have counted; which rules those are is worked out once for each state."""

    def __init__(self, counting_rules: Callable[[Desired], Mapping[_Counter, Exposure]]) -> None:
        self._counting_rules = counting_rules
        self._known: tuple[Desired, Mapping[_Counter, Exposure]] | None = None

    def of(self, desired: Desired, packets: Iterable[tuple[_Counter, int]]) -> Mapping[Exposure, int]:
        """Give the packets of each exposure; rules that are none of this state's count nothing."""
        if self._known is None or self._known[0] is not desired:
            self._known = (desired, self._counting_rules(desired))
        rules, found = self._known[1], dict[Exposure, int]()
        for rule, number in packets:
            if (exposure := rules.get(rule)) is not None:
                found[exposure] = found.get(exposure, 0) + number
        return found


class Dropped(NamedTuple):
    """First packets that were dropped: by exposure, for `deny` of addresses and limits, and by the set that denied.

    Those over a limit are counted by source too, for what exposures are `counted_as`; `None`: uncounted, but over it.
    """

    by_exposure: Mapping[Exposure, int] = MappingProxyType({})
    by_set: Mapping[str, int] = MappingProxyType({})
    by_source: Mapping[str, Mapping[Address, int | None]] = MappingProxyType({})
