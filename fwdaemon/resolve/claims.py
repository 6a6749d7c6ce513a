"""Which of several domains gets a port that all of them claim. Pure.

A claim comes from an entry of one domain, with ports that are known, whether that was written for the domain or made
from a pattern.

What a file says of one domain by its name comes first, whether or not the domain runs. Then come the entries of running
domains, in the order of `Ask.before`: those of files, patterns last, then those of domains' own metadata; of two of one
rank, the domain that has run for longer. A claim that is refused waits; one that is granted holds until its domain
stops.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from fwdaemon.config.model import (
    AutoMapping,
    Config,
    Entry,
    ForwardEntry,
    GuestEntry,
    NatEntry,
    PortMapping,
    RouteEntry,
)
from fwdaemon.config.overlap import families_of_entry
from fwdaemon.core.exposures import Claim, Forward, Owner
from fwdaemon.core.inventory import Domain, Hindrance, HindranceKind
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet
from fwdaemon.resolve.guests import as_uuid

Run: TypeAlias = tuple[UUID, int]
"""A domain, and libvirt's number of this run of it."""
Key: TypeAlias = tuple[int, str]
"""The number of an entry in the configuration, and the domain's UUID where the entry is for several domains."""

# The claims of patterns and assigned ports.
#
# Two claims meet if both listen on the same address, or both on every address. One of a single address and one of every
# address do not: for that address, the former has precedence. They are indexed by blocks of this many ports.
_PIECE: Final = 64
# A claim of at most this many ports is indexed under each of them.
_NARROW: Final = 64


@dataclass(frozen=True, slots=True)
class Claimed:
    """A mapping that is granted; `called` is the domain's name, or what the file calls it."""

    entry: ForwardEntry
    mapping: PortMapping
    called: str

    def meets(self, entry: ForwardEntry, mapping: PortMapping) -> bool:
        """Whether some packet would be for both, given that address and protocol are the same."""
        if not self.mapping.host.overlaps(mapping.host) or not _may_meet(self.entry.interface, entry.interface):
            return False
        families = families_of_entry(self.entry) & families_of_entry(entry)
        return any(_share_sources(_sources(self.entry, family), _sources(entry, family)) for family in families)


class Claims:
    """The claims so far, indexed by where they listen."""

    def __init__(self, entries: Iterable[ForwardEntry] = (), before: "Claims | None" = None) -> None:
        """Begin with the claims of these entries; those in `before` go before all of them."""
        self._before = before
        self._claimed: defaultdict[tuple[Address | None, Protocol, int], list[Claimed]] = defaultdict(list)
        for entry in entries:
            for mapping in entry.mappings:
                self.add(entry, mapping)

    def add(self, entry: ForwardEntry, mapping: PortMapping) -> None:
        """Add the claim of one mapping."""
        claimed = Claimed(entry, mapping, entry.owner.name)
        for place in _places(entry, mapping):
            self._claimed[place].append(claimed)

    def taker(self, entry: ForwardEntry, mapping: PortMapping) -> Claimed | None:
        """Give an earlier claim of some of the same ports."""
        if self._before is not None and (taker := self._before.taker(entry, mapping)) is not None:
            return taker
        found = (claimed for place in _places(entry, mapping) for claimed in self._claimed.get(place, ()))
        return next((claimed for claimed in found if claimed.meets(entry, mapping)), None)


def _places(entry: ForwardEntry, mapping: PortMapping) -> Iterator[tuple[Address | None, Protocol, int]]:
    for listen in entry.listens_on(mapping):
        for piece in range(mapping.host.first // _PIECE, mapping.host.last // _PIECE + 1):
            yield listen, mapping.protocol, piece


def _may_meet(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def _sources(entry: ForwardEntry, family: Family) -> tuple[Subnet, ...]:
    return tuple(source for source in entry.sources if Family.of(source) is family)


def _share_sources(some: tuple[Subnet, ...], others: tuple[Subnet, ...]) -> bool:
    if not some or not others:
        return True
    return any(one.version == other.version and one.overlaps(other) for one in some for other in others)


@dataclass(frozen=True, slots=True)
class Ask:
    """An `entry` of one running domain, which claims ports; the one with the lesser `before` goes first.

    `key` identifies it from one time to the next.
    """

    key: Key
    entry: ForwardEntry
    before: tuple[int, ...]


def settle(asks: Iterable[Ask], claims: Claims) -> Iterator[tuple[Ask, tuple[Waiting, ...]]]:
    """Give each ask with the mappings it gets, and the reasons for the others; what it gets is added to `claims`."""
    for ask in sorted(asks, key=attrgetter("before")):
        got, refused = list[PortMapping](), list[Waiting]()
        for mapping in ask.entry.mappings:
            taker = claims.taker(ask.entry, mapping)
            if taker is None:
                claims.add(ask.entry, mapping)
                got.append(mapping)
            else:
                refused += refused_claims(ask.entry, mapping, _claimed_by(taker, mapping))
        yield replace(ask, entry=replace(ask.entry, mappings=tuple(got))), tuple(refused)


def _claimed_by(taker: Claimed, mapping: PortMapping) -> Hindrance:
    host = taker.mapping.host
    shared = PortRange(max(host.first, mapping.host.first), min(host.last, mapping.host.last))
    return Hindrance(HindranceKind.CLAIMED, names=(taker.called,), ports=shared, origin=taker.mapping.origin)


def refused_claims(entry: ForwardEntry, mapping: PortMapping | AutoMapping, reason: Hindrance) -> Iterator[Waiting]:
    """Give the refusal of a mapping at each of its listening addresses."""
    for claim in entry.claims_of(mapping):
        yield Waiting(entry.owner, reason, mapping.origin, claim=claim)


def arrived(before: Sequence[Run], domains: Iterable[Domain]) -> tuple[Run, ...]:
    """Give the running domains in order of arrival; several new ones by libvirt's number, then by UUID."""
    running = {(domain.uuid, domain.instance): domain for domain in domains if domain.running}
    known = [run for run in before if run in running]
    fresh = running.keys() - set(known)
    return (*known, *sorted(fresh, key=lambda run: (running[run].rank, run[1], run[0])))


# Everything that is claimed already, so that what domains ask for in their metadata takes nothing from others.


class Holder(NamedTuple):
    """The owner of a claim, and where that is written; `domain` is what the entry of a domain writes as its domain."""

    owner: Owner
    origin: Origin
    domain: str | None = None

    @classmethod
    def of(cls, entry: Entry) -> "Holder":
        """Give the holder of what an entry claims."""
        return cls(entry.owner, entry.origin, None if isinstance(entry, RouteEntry) else entry.domain)


class Asker(NamedTuple):
    """A domain that asks; `name` is its name where entries mean this domain by it, and not another of that name."""

    uuid: UUID
    name: str | None

    def has(self, holder: Holder) -> bool:
        """Whether it is the holder itself."""
        uuid = as_uuid(holder.domain) if holder.domain is not None else None
        return uuid == self.uuid if uuid is not None else self.name is not None and holder.domain == self.name


class Taken:
    """Claims that are taken, indexed by port, public address and subnet."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._narrow: defaultdict[tuple[Protocol, int], list[tuple[Claim, Holder]]] = defaultdict(list)
        self._wide: list[tuple[Claim, Holder]] = []
        self._public: dict[Address, tuple[NatEntry, Holder]] = {}
        self._routed: list[tuple[Subnet, Holder]] = []
        for entry in entries:
            self.take(entry)

    def take(self, entry: Entry) -> None:
        """Take what an entry claims, for its owner."""
        holder = Holder.of(entry)
        for claim, _ in entry.claims():
            if claim.subnet is not None:
                self._routed.append((claim.subnet, holder))
            elif claim.ports is None or claim.protocol is None:
                if isinstance(entry, NatEntry):
                    self._public.setdefault(entry.public, (entry, holder))
            elif claim.ports.width > _NARROW:
                self._wide.append((claim, holder))
            else:
                for port in claim.ports:
                    self._narrow[claim.protocol, port].append((claim, holder))

    @property
    def ports(self) -> frozenset[tuple[Protocol, int]]:
        """Every port that is taken, at whatever address."""
        wide = ((claim.protocol, port) for claim, _ in self._wide if claim.protocol for port in claim.ports or ())
        return frozenset(self._narrow).union(wide)

    def holder(self, entry: GuestEntry, asker: Asker, local: Collection[Address]) -> Holder | None:
        """Give the holder of some of what an entry claims; `None` where all of it is free."""
        if isinstance(entry, NatEntry):
            return self._holder_of_address(entry.public)
        held = (self._holder_of_ports(claim, asker, local) for claim, _ in entry.every_claim())
        return next(filter(None, held), None)

    def _holder_of_address(self, address: Address) -> Holder | None:
        known = self._public.get(address)
        return known[1] if known is not None else self._router(address)

    def _router(self, address: Address) -> Holder | None:
        return next((held for subnet, held in self._routed if address in subnet), None)

    def _holder_of_ports(self, claim: Claim, asker: Asker, local: Collection[Address]) -> Holder | None:
        held = next((held for other, held in self._met(claim) if overlap(claim, other)), None)
        return held or self._whole(claim, asker, local)

    def _met(self, claim: Claim) -> Iterator[tuple[Claim, Holder]]:
        yield from self._wide
        if claim.ports is None or claim.protocol is None:
            return
        if claim.ports.width <= len(self._narrow):
            for port in claim.ports:
                yield from self._narrow.get((claim.protocol, port), ())
        else:
            for (protocol, port), items in self._narrow.items():
                if protocol is claim.protocol and port in claim.ports:
                    yield from items

    def _whole(self, claim: Claim, asker: Asker, local: Collection[Address]) -> Holder | None:
        """Give the holder of the 1:1 address or subnet that a forward, which has precedence, would take a port of."""
        if claim.address is not None:
            held = self._holder_of_address(claim.address)
            return None if held is None or asker.has(held) else held
        for address, (nat, held) in self._public.items():
            is_here = nat.assign is not None or address in local
            if is_here and _meets(claim, address) and not asker.has(held):
                return held
        return None


def overlap(one: Claim, other: Claim) -> bool:
    """Whether some packet may be for both of two forwards; every address overlaps with each single one here."""
    return (
        one.protocol is other.protocol
        and one.ports is not None
        and other.ports is not None
        and one.ports.overlaps(other.ports)
        and (None in (one.address, other.address) or one.address == other.address)
        and (None in (one.family, other.family) or one.family is other.family)
        and (None in (one.interface, other.interface) or one.interface == other.interface)
        and _share_sources(one.sources, other.sources)
    )


def _meets(claim: Claim, address: Address) -> bool:
    """Whether a forward on every address is for a public one, going by its sources."""
    families = {Family.of(source) for source in claim.sources}
    return not families or Family.of(address) in families


@dataclass(frozen=True, slots=True)
class Unavailable:
    """What a forward may not take: what a configuration and metadata ask for, assigned ports, and those of processes.

    `live` are the forwards there are. `local` are addresses of the host. `occupied` gives the ports of processes, among
    them our own for forwards on loopback addresses; entries that are `replaced` had their ports before.
    """

    config: Config
    live: frozenset[Forward] = frozenset()
    local: frozenset[Address] = frozenset()
    assigned: frozenset[tuple[Protocol, int]] = frozenset()
    occupied: Callable[[], Collection[tuple[Protocol, int]]] = frozenset
    replaced: frozenset[Origin] = frozenset()

    def hindrances(self, entry: ForwardEntry) -> Iterator[tuple[PortMapping, Hindrance | None]]:
        """Give what somebody has of what an entry asks for, and who; `None` is a domain that it is assigned to."""
        own = as_uuid(entry.domain)
        occupied = frozenset() if self.replaced else frozenset(self.occupied())
        asker, taken = Asker(own or UUID(int=0), entry.domain if own is None else None), Taken(self._entries())
        for mapping in entry.mappings:
            alone = replace(entry, mappings=(mapping,), auto=())
            ports = {(mapping.protocol, port) for port in mapping.host}
            held = taken.holder(alone, asker, self.local) or self._live(alone)
            if held is not None:
                yield mapping, Hindrance(HindranceKind.CLAIMED, names=(held.owner.name,), origin=held.origin)
            elif ports & self.assigned:
                yield mapping, None
            elif ports & occupied:
                yield mapping, Hindrance(HindranceKind.CLAIMED)

    def _entries(self) -> Iterator[Entry]:
        return (entry for entry in self.config.entries if entry.origin not in self.replaced)

    def _live(self, entry: ForwardEntry) -> Holder | None:
        claims = [claim for claim, _ in entry.claims()]
        for forward in self.live:
            if forward.origin not in (None, *self.replaced) and any(overlap(claim, forward.claim) for claim in claims):
                return Holder(forward.owner, forward.origin or entry.origin)
        return None


def opened(config: Config, entries: Iterable[ForwardEntry]) -> tuple[Config, dict[Origin, Origin]]:
    """Add entries that were opened for a while; of those whose ports a file claims, tell where they and that stand."""
    claims, added, gone = Claims(entry for entry in config.forwards if not entry.is_pattern), [], dict[Origin, Origin]()
    for entry in entries:
        takers = filter(None, (claims.taker(entry, mapping) for mapping in entry.mappings))
        if (taker := next(takers, None)) is not None:
            gone[entry.origin] = taker.mapping.origin
        elif entry.auto and config.daemon.auto_ports is None:
            gone[entry.origin] = entry.origin
        else:
            added.append(entry)
    return (replace(config, forwards=(*config.forwards, *added)) if added else config), gone
