"""Which of several domains gets a port that all of them claim. Pure.

A claim comes from an entry of one domain, with ports that are known, whether that was written for the domain or made
from a pattern.

What a file says of one domain by its name comes first, whether or not the domain runs. Then come the entries of running
domains, in the order of `Ask.before`: those of files, patterns last, then those of domains' own metadata; of two of one
rank, the older claim (`Turns`). A claim that is refused waits; one that is granted holds until its domain stops, or
asks for it no more.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from fwdaemon.config.exposures import AskedEntry
from fwdaemon.config.model import AutoMapping, ForwardEntry, NatEntry, PortMapping
from fwdaemon.config.overlap import families_of_entry
from fwdaemon.core.exposures import Claim
from fwdaemon.core.inventory import Domain, Hindrance, HindranceKind, Network, Occupied
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Family, PortRange, Protocol, Subnet

Key: TypeAlias = tuple[int, str]
"""The number of an entry in the configuration, and the domain's UUID where the entry is for several domains."""

# The claims of patterns and assigned ports.
#
# Not so in metadata (`wishes.Taken`): who asks for one address there would take it from a file's entry for every one.
#
# Two claims meet if both listen on the same address, or both on every address. One of a single address and one of every
# address do not: for that address, the former has precedence. They are indexed by blocks of this many ports.
_PIECE: Final = 64


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


# Ports that processes of the host have.
Sockets: TypeAlias = Collection[Occupied]
"""Ports that processes of the host have, and others that are not to be assigned."""


def no_sockets() -> Sockets:
    """Give no sockets."""
    return ()


class PortsInUse:
    """Ports of the host that are in use, found without a look at all ports of a claim."""

    def __init__(self, used: Iterable[Occupied]) -> None:
        self._at: defaultdict[tuple[Protocol, int], list[Occupied]] = defaultdict(list)
        for item in used:
            if not item.passing:
                self._at[item.protocol, item.port].append(item)
        self._ports = {protocol: sorted(port for of, port in self._at if of is protocol) for protocol in Protocol}

    def first_of(self, claims: Iterable[Claim]) -> int | None:
        """Give a port of which one of these claims would take what comes there."""
        found = (
            port
            for claim in claims
            if claim.protocol is not None and claim.ports is not None
            for port in _within(claim.ports, self._ports[claim.protocol])
            if any(_takes_from(claim, item) for item in self._at[claim.protocol, port])
        )
        return next(found, None)


def located(used: Iterable[Occupied], networks: Iterable[Network]) -> Iterator[Occupied]:
    """Bind what waits for guests at the gateway of a network to its bridge: no other interface has packets for it."""
    bridges = {
        gateway: item.bridge for item in networks if item.active and item.own_bridge for gateway in item.gateways
    }
    for item in used:
        bridge = None if item.address is None else bridges.get(item.address)
        yield item if bridge is None else item._replace(device=bridge)


def _takes_from(claim: Claim, used: Occupied) -> bool:
    """Whether some packet for a claim of that protocol and port is for the process."""
    families = {Family.of(source) for source in claim.sources} or set(Family)
    return (
        (None in (claim.address, used.address) or claim.address == used.address)
        and not used.families.isdisjoint(families if claim.family is None else {claim.family})
        and _may_meet(claim.interface, used.device)
    )


def _within(ports: PortRange, used: list[int]) -> list[int]:
    return used[bisect_left(used, ports.first) : bisect_right(used, ports.last)]


# Who claimed what first.
#
# A claim is as old as this run of its domain has made it without a break, which no inventory shows: so it is noted, and
# kept for the next start. Without a note, of domains of one hypervisor the one with the lower number goes first. That
# is the one that was started earlier, but for LXC, whose numbers are those of processes.
_FRESH: Final = 1 << 62


class Turn(NamedTuple):
    """A claim of a domain, whose `run` libvirt gave this number; `has` says that it was granted.

    `place` is where it listens, `terms` stand for which clients it lets in, and by which interface.
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
        """What distinguishes it from others, whatever run of the domain it is of."""
        return self.domain.uuid, self.place, self.terms

    @classmethod
    def of(cls, domain: Domain, entry: AskedEntry) -> "Bid":
        """Give that of an entry with one mapping, or of a 1:1 address."""
        guest = _assigned_for(entry) if isinstance(entry, ForwardEntry) else None
        claims = [claim for claim, _ in entry.every_claim()]
        # Another range of automatic ports makes no other claim of it.
        place = " ".join(str(claim) if guest is None else f"{claim._replace(ports=None)}:{guest}" for claim in claims)
        return cls(domain, place, _digest(entry.interface, entry.sources), isinstance(entry, NatEntry))

    def turn(self, *, has: bool) -> Turn:
        """Note what came of it."""
        return Turn(self.domain.uuid, self.place, self.terms, self.domain.instance, has)


def _digest(interface: str | None, sources: tuple[Subnet, ...]) -> str:
    terms = [interface or "", *sorted(map(str, sources))] if interface or sources else []
    return blake2b("\0".join(terms).encode(), digest_size=8).hexdigest() if terms else ""


def _assigned_for(entry: ForwardEntry) -> int | None:
    """Give the guest's port of an automatic mapping, whether or not one of the host is assigned."""
    given = (mapping.guest.first for mapping in entry.mappings if mapping.auto)
    return next(given, entry.auto[0].guest if entry.auto else None)


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
        self._of = defaultdict[UUID, list[tuple[UUID, str, str]]](list)
        for key in self._known:
            self._of[key[0]].append(key)
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

    def keep(self, domain: Domain, claims: Collection[Claim]) -> None:
        """Keep the age of what a domain goes on to ask for, though no policy covers that now."""
        asked = {(domain.uuid, str(claim), _digest(claim.interface, claim.sources)) for claim in claims}
        for uuid, place, terms in self._of[domain.uuid] if asked else ():
            written = place if ":auto:" not in place else place.rpartition(":")[0]
            if (uuid, written, terms) in asked:
                number, _ = self._known[uuid, place, terms]
                self._noted.append((number, Turn(uuid, place, terms, domain.instance, has=False)))

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


def settle(
    asks: Iterable[Ask], claims: Claims, turns: Turns, occupied: Callable[[], Sockets | None]
) -> tuple[dict[Key, list[PortMapping]], list[Waiting]]:
    """Give what each ask gets, and the reasons for the rest; it is added to `claims`, and noted in `turns`.

    A process of the host goes before what is asked for anew, and not before what was given earlier. They are `None`
    where the kernel does not say.
    """

    @cache
    def in_use() -> PortsInUse | None:
        return None if (sockets := occupied()) is None else PortsInUse(sockets)

    got: dict[Key, list[PortMapping]] = {}
    refused: list[Waiting] = []
    bids = sorted(_bids(asks), key=lambda item: (item[0].before, *turns.before(item[2]), item[0].key))
    for ask, mapping, bid in bids:
        reason = _taken(ask.entry, mapping, claims)
        if reason is None and not mapping.auto and not turns.has(bid):
            reason = _in_use(ask.entry, mapping, in_use())
        turns.note(bid, has=reason is None)
        if reason is None:
            claims.add(ask.entry, mapping)
            got.setdefault(ask.key, []).append(mapping)
        else:
            refused += refused_claims(ask.entry, mapping, reason)
    return got, refused


def _bids(asks: Iterable[Ask]) -> Iterator[tuple[Ask, PortMapping, Bid]]:
    for ask in asks:
        for mapping in ask.entry.mappings:
            yield ask, mapping, Bid.of(ask.domain, replace(ask.entry, mappings=(mapping,), auto=()))


def _in_use(entry: ForwardEntry, mapping: PortMapping, in_use: PortsInUse | None) -> Hindrance | None:
    if in_use is None:
        return Hindrance(HindranceKind.SOCKETS_UNKNOWN)
    port = in_use.first_of(entry.claims_of(mapping))
    return None if port is None else Hindrance(HindranceKind.CLAIMED, ports=PortRange(port, port))


def _taken(entry: ForwardEntry, mapping: PortMapping, claims: Claims) -> Hindrance | None:
    taker = claims.taker(entry, mapping)
    if taker is None:
        return None
    host = taker.mapping.host
    shared = PortRange(max(host.first, mapping.host.first), min(host.last, mapping.host.last))
    return Hindrance(HindranceKind.CLAIMED, names=(taker.called,), ports=shared, origin=taker.mapping.origin)


def refused_claims(entry: ForwardEntry, mapping: PortMapping | AutoMapping, reason: Hindrance) -> Iterator[Waiting]:
    """Give the refusal of a mapping at each of its listening addresses."""
    for claim in entry.claims_of(mapping):
        yield Waiting(entry.owner, reason, mapping.origin, claim=claim)
