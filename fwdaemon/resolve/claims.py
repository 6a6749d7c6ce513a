"""Which of several domains gets a port that all of them claim. Pure.

A claim comes from an entry of one domain, with ports that are known, whether that was written for the domain or made
from a pattern.

What a file says of one domain by its name comes first, whether or not the domain runs. Then come the entries of running
domains, in the order of `Ask.before`: those of files, patterns last, then those of domains' own metadata; of two of one
rank, the older claim (`Turns`). A claim that is refused waits; one that is granted holds until its domain stops, or
asks for it no more.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from fwdaemon.config.model import AutoMapping, Entry, ForwardEntry, GuestEntry, NatEntry, PortMapping, RouteEntry
from fwdaemon.config.overlap import families_of_entry
from fwdaemon.core.exposures import Claim, Owner
from fwdaemon.core.inventory import Domain, Hindrance, HindranceKind
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet
from fwdaemon.resolve.guests import as_uuid

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


# Who claimed what first.
#
# A claim is as old as this run of its domain has made it without a break, which no inventory tells: so it is noted, and
# kept for the next start. Without a note, of domains of one hypervisor the one with the lower number goes first. That
# is the one that was started earlier, but for LXC, whose numbers are those of processes.
_FRESH: Final = 1 << 62


class Turn(NamedTuple):
    """A claim of a domain, whose `run` libvirt gave this number; `has` says that it was granted.

    `place` is where it listens, `terms` stand for whom it lets in, and by which interface.
    """

    domain: UUID
    place: str
    terms: str
    run: int
    has: bool

    @classmethod
    def read(cls, record: Mapping[str, str | int]) -> "Turn":
        """Read what `record` gave. Raises KeyError, ValueError."""
        uuid, place, terms = UUID(str(record["domain"])), str(record["claim"]), str(record["terms"])
        return cls(uuid, place, terms, int(record["run"]), bool(record["granted"]))

    def record(self) -> dict[str, str | int]:
        """Give it for a record."""
        claim = {"domain": str(self.domain), "claim": self.place, "terms": self.terms}
        return {**claim, "run": self.run, "granted": int(self.has)}


AllTurns: TypeAlias = tuple[tuple[Turn, ...], tuple[Turn, ...]]
"""Those of metadata, and those of patterns; each in order, the oldest first."""


class Bid(NamedTuple):
    """A claim that a domain makes now: where, on which terms, and whether that is a `whole` address."""

    domain: Domain
    place: str
    terms: str
    whole: bool = False

    @property
    def key(self) -> tuple[UUID, str, str]:
        """What tells it from others, whatever run of the domain it is of."""
        return self.domain.uuid, self.place, self.terms

    @classmethod
    def of(cls, domain: Domain, entry: GuestEntry) -> "Bid":
        """Give that of an entry with one mapping, or of a 1:1 address."""
        guest = entry.auto[0].guest if isinstance(entry, ForwardEntry) and entry.auto else ""
        place = " ".join(f"{claim}{guest and f':{guest}'}" for claim, _ in entry.every_claim())
        terms = [entry.interface or "", *sorted(map(str, entry.sources))] if entry.interface or entry.sources else []
        digest = blake2b("\0".join(terms).encode(), digest_size=8).hexdigest() if terms else ""
        return cls(domain, place, digest, isinstance(entry, NatEntry))

    def turn(self, *, has: bool) -> Turn:
        """Note what came of it."""
        return Turn(self.domain.uuid, self.place, self.terms, self.domain.instance, has)


class Turns:
    """The order of claims: what was granted goes before all that waits. What comes of each is noted for the next time.

    A domain that had a place and changes the terms alone goes before all others that wait for it, and takes nothing
    that they have.
    """

    def __init__(self, known: Iterable[Turn] = ()) -> None:
        self._known: dict[tuple[UUID, str, str], tuple[int, bool]] = {}
        self._had: dict[tuple[UUID, str], int] = {}
        for number, turn in enumerate(known):
            first, has = self._known.get(turn[:3], (number, False))
            self._known[turn[:3]] = first, has or turn.has
            if turn.has:
                self._had.setdefault((turn.domain, turn.place), number)
        self._noted: list[tuple[int, Turn]] = []

    def has(self, bid: Bid) -> bool:
        """Whether it was granted already."""
        return self._known.get(bid.key, (0, False))[1]

    def before(self, bid: Bid) -> tuple[object, ...]:
        """Give what to sort by; bids that compare equal keep the order of their entries."""
        rank = 0 if self.has(bid) else 1 if bid.key[:2] in self._had else 2
        return rank, self._number(bid), not bid.whole, bid.domain.rank, bid.domain.instance, str(bid.domain.uuid)

    def _number(self, bid: Bid) -> int:
        known = self._known.get(bid.key)
        return known[0] if known is not None else self._had.get(bid.key[:2], _FRESH)

    def note(self, bid: Bid, *, has: bool) -> None:
        """Note what came of a bid; new ones in the order of `before`."""
        self._noted.append((self._number(bid), bid.turn(has=has)))

    @property
    def noted(self) -> tuple[Turn, ...]:
        """What was noted, the oldest first."""
        return tuple(turn for _, turn in sorted(self._noted, key=itemgetter(0)))


def of_these_runs(turns: Iterable[Turn], domains: Iterable[Domain]) -> tuple[Turn, ...]:
    """Give what is known of domains that have not been started anew since, as while no daemon ran."""
    runs = {(domain.uuid, domain.instance) for domain in domains}
    return tuple(turn for turn in turns if (turn.domain, turn.run) in runs)


@dataclass(frozen=True, slots=True)
class Ask:
    """An `entry` for one running domain, which claims ports; of two with the same `before`, the older claim goes first.

    `key` identifies it from one time to the next.
    """

    key: Key
    entry: ForwardEntry
    domain: Domain
    before: tuple[bool, bool]


def settle(asks: Iterable[Ask], claims: Claims, turns: Turns) -> tuple[dict[Key, list[PortMapping]], list[Waiting]]:
    """Give what each ask gets, and the reasons for the rest; it is added to `claims`, and noted in `turns`."""
    got: dict[Key, list[PortMapping]] = {}
    refused: list[Waiting] = []
    bids = sorted(_bids(asks), key=lambda item: (item[0].before, *turns.before(item[2]), item[0].key))
    for ask, mapping, bid in bids:
        taker = claims.taker(ask.entry, mapping)
        turns.note(bid, has=taker is None)
        if taker is None:
            claims.add(ask.entry, mapping)
            got.setdefault(ask.key, []).append(mapping)
        else:
            refused += refused_claims(ask.entry, mapping, _claimed_by(taker, mapping))
    return got, refused


def _bids(asks: Iterable[Ask]) -> Iterator[tuple[Ask, PortMapping, Bid]]:
    for ask in asks:
        for mapping in ask.entry.mappings:
            yield ask, mapping, Bid.of(ask.domain, replace(ask.entry, mappings=(mapping,), auto=()))


def _claimed_by(taker: Claimed, mapping: PortMapping) -> Hindrance:
    host = taker.mapping.host
    shared = PortRange(max(host.first, mapping.host.first), min(host.last, mapping.host.last))
    return Hindrance(HindranceKind.CLAIMED, names=(taker.called,), ports=shared, origin=taker.mapping.origin)


def refused_claims(entry: ForwardEntry, mapping: PortMapping | AutoMapping, reason: Hindrance) -> Iterator[Waiting]:
    """Give the refusal of a mapping at each of its listening addresses."""
    for claim in entry.claims_of(mapping):
        yield Waiting(entry.owner, reason, mapping.origin, claim=claim)


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
    """Claims that are taken, indexed by port, public address and subnet; those in `before` are taken as well.

    What a domain claims in its metadata on every address is for none that is 1:1 another guest's, so the two do not
    meet there. What a file claims on every address is for that one too.
    """

    def __init__(self, entries: Iterable[Entry] = (), before: "Taken | None" = None) -> None:
        self._before = before
        self._narrow: defaultdict[tuple[Protocol, int], list[tuple[Claim, Holder]]] = defaultdict(list)
        self._wide: list[tuple[Claim, Holder]] = []
        self._public: dict[Address, Holder] = {}
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
                    self._public.setdefault(entry.public, holder)
            elif claim.ports.width > _NARROW:
                self._wide.append((claim, holder))
            else:
                for port in claim.ports:
                    self._narrow[claim.protocol, port].append((claim, holder))

    @property
    def ports(self) -> frozenset[tuple[Protocol, int]]:
        """Every port that is taken, at whatever address; without those before."""
        wide = ((claim.protocol, port) for claim, _ in self._wide if claim.protocol for port in claim.ports or ())
        return frozenset(self._narrow).union(wide)

    def public(self) -> Mapping[Address, Holder]:
        """Give the addresses that are 1:1 a guest's, with the holder of each."""
        return {**self._public, **(self._before.public() if self._before is not None else {})}

    def holder(self, entry: GuestEntry, asker: Asker) -> Holder | None:
        """Give the holder of some of what an entry claims; `None` where all of it is free."""
        if isinstance(entry, NatEntry):
            return self.holder_of_address(entry.public)
        held = (self._holder_of_ports(claim, asker) for claim, _ in entry.every_claim())
        return next(filter(None, held), None)

    def holder_of_address(self, address: Address) -> Holder | None:
        """Give who has an address as a whole, 1:1 or in a subnet."""
        before = self._before.holder_of_address(address) if self._before is not None else None
        return before or self._public.get(address) or self._router(address)

    def _router(self, address: Address) -> Holder | None:
        return next((held for subnet, held in self._routed if address in subnet), None)

    def _holder_of_ports(self, claim: Claim, asker: Asker) -> Holder | None:
        """Give who has a port of a claim, or the 1:1 address or subnet that a forward would take one of."""
        whole = None if claim.address is None else self.holder_of_address(claim.address)
        if whole is not None and not asker.has(whole):
            return whole
        return next((held for other, held in self.meeting(claim) if self._meet(claim, other, held, asker)), None)

    def _meet(self, claim: Claim, other: Claim, holder: Holder, asker: Asker) -> bool:
        """Whether some packet may be for both."""
        if not overlap(claim, other):
            return False
        if claim.address is None and other.address is not None:
            whole = self.holder_of_address(other.address)
            return whole is None or asker.has(whole)
        if claim.address is not None and other.address is None and holder.origin.domain:
            return self.holder_of_address(claim.address) is None
        return True

    def meeting(self, claim: Claim) -> Iterator[tuple[Claim, Holder]]:
        """Give all that may have a port of a claim, each perhaps more than once."""
        if self._before is not None:
            yield from self._before.meeting(claim)
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
