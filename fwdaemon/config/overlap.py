"""Two claims on one address, port and protocol.

Claims that need not be compared are never met: they are sorted by address, family and protocol, then swept along the
ports, and among those open at one port a claim finds the others through its interface and the prefixes of its sources.
What that costs grows with the conflicts, not with the square of the claims.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from fwdaemon.config.conflicts import cut_short
from fwdaemon.config.contradictions import families_of_entry
from fwdaemon.config.model import ForwardEntry, PortMapping
from fwdaemon.config.text import quote
from fwdaemon.errors import Problem
from fwdaemon.model import Address, Family, PortRange, Protocol, show_endpoint

_BITS: Final = {Family.IPV4: 32, Family.IPV6: 128}

# A network as its prefix length and the bits of its prefix; the parents of a network are shifts of it.
_Prefix: TypeAlias = tuple[int, int]
_Place: TypeAlias = tuple[Address | None, Family, Protocol]
_Open: TypeAlias = dict[_Prefix, dict[str | None, list["_Claim"]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    """One mapping at one address, or at every address of one family; `rank` is its place in the configuration."""

    rank: tuple[int, int]
    place: _Place
    entry: ForwardEntry
    mapping: PortMapping

    @property
    def written(self) -> tuple[object, ...]:
        """What stands for its port string: the mappings of `53/tcp+udp` have it in common."""
        return self.rank[0], self.mapping.origin, self.mapping.listen, self.mapping.host

    @property
    def sources(self) -> list[_Prefix]:
        """Who may connect, within the claim's family; anyone is the empty prefix."""
        if not self.entry.sources:
            return [(0, 0)]
        family = self.place[1]
        return [
            (source.prefixlen, int(source.network_address) >> (_BITS[family] - source.prefixlen))
            for source in self.entry.sources
            if Family.of(source) is family
        ]


_Pair: TypeAlias = tuple[_Claim, _Claim]


def find_conflicts(entries: Sequence[ForwardEntry]) -> list[Problem]:
    """Return a problem for each pair of port strings that claim the same, at the later one, `cut_short`."""
    return cut_short(_describe(*pair) for pair in _distinct(_find_pairs(_claims(entries))))


def _claims(entries: Iterable[ForwardEntry]) -> Iterator[_Claim]:
    for entry_number, entry in enumerate(entries):
        families = families_of_entry(entry)
        for number, mapping in enumerate(entry.mappings):
            for place in _places(entry, mapping, families):
                yield _Claim((entry_number, number), place, entry, mapping)


def _places(entry: ForwardEntry, mapping: PortMapping, families: frozenset[Family]) -> Iterator[_Place]:
    for address in _addresses(entry, mapping):
        here = families if address is None else families & {Family.of(address)}
        yield from ((address, family, mapping.protocol) for family in sorted(here))


def _addresses(entry: ForwardEntry, mapping: PortMapping) -> tuple[Address | None, ...]:
    """Return where a mapping listens; `None` is every address."""
    return (mapping.listen,) if mapping.listen is not None else entry.listen or (None,)


def _distinct(pairs: Iterable[_Pair]) -> Iterator[_Pair]:
    """Drop what is the same pair of strings again, for another protocol, family or source."""
    seen: set[tuple[object, ...]] = set()
    for pair in pairs:
        earlier, later = sorted(pair, key=lambda claim: claim.rank)
        key = (earlier.written, later.written)
        if key not in seen:
            seen.add(key)
            yield earlier, later


def _find_pairs(claims: Iterable[_Claim]) -> Iterator[_Pair]:
    """Find claims that overlap; a pair may come several times."""
    places: defaultdict[_Place, list[_Claim]] = defaultdict(list)
    for claim in claims:
        places[claim.place].append(claim)
    for together in places.values():
        for group in _groups(together):
            sweep = _Sweep(sorted({length for claim in group for length, _ in claim.sources}))
            for claim in group:
                yield from ((met, claim) for met in sweep.meet(claim))


def _groups(claims: Iterable[_Claim]) -> Iterator[list[_Claim]]:
    """Split claims of one place, in the order of their ports, where no port is shared; a lone claim is no group."""
    group: list[_Claim] = []
    last = 0
    for claim in sorted(claims, key=lambda claim: claim.mapping.host):
        if claim.mapping.host.first > last:
            if len(group) > 1:
                yield group
            group = []
        group.append(claim)
        last = max(last, claim.mapping.host.last)
    if len(group) > 1:
        yield group


@dataclass(slots=True)
class _Sweep:
    """The claims still open at the port reached.

    `lengths` are the prefix lengths in use. `exact` holds the claims by each of their sources, `around` by the parents
    of those of the lengths in use, so that wider and narrower sources are both found by looking up, never by search.
    """

    lengths: list[int]
    exact: _Open = field(default_factory=dict)
    around: _Open = field(default_factory=dict)

    def meet(self, claim: _Claim) -> Iterator[_Claim]:
        """Yield the open claims with which this one conflicts, then open it too."""
        for source in claim.sources:
            for parent in (source, *self._parents(source)):
                yield from _still_open(self.exact.get(parent, {}), claim)
            yield from _still_open(self.around.get(source, {}), claim)
        for source in claim.sources:
            _add(self.exact, source, claim)
            for parent in self._parents(source):
                _add(self.around, parent, claim)

    def _parents(self, source: _Prefix) -> Iterator[_Prefix]:
        length, bits = source
        for shorter in self.lengths:
            if shorter < length:
                yield shorter, bits >> (length - shorter)


def _add(opened: _Open, prefix: _Prefix, claim: _Claim) -> None:
    opened.setdefault(prefix, {}).setdefault(claim.entry.interface, []).append(claim)


def _still_open(by_interface: dict[str | None, list[_Claim]], claim: _Claim) -> Iterator[_Claim]:
    """Yield the claims on an interface that may be this claim's, forgetting those whose ports are passed."""
    interface = claim.entry.interface
    names = list(by_interface) if interface is None else [None, interface]
    for name in names:
        if name in by_interface:
            met = [other for other in by_interface[name] if other.mapping.host.last >= claim.mapping.host.first]
            by_interface[name] = met
            yield from met


def _describe(earlier: _Claim, later: _Claim) -> Problem:
    mine, its = later.mapping.host, earlier.mapping.host
    shared = PortRange(max(mine.first, its.first), min(mine.last, its.last))
    what = f"{show_endpoint(later.place[0], shared)}/{later.mapping.protocol}"
    origin = later.mapping.origin
    return Problem(
        origin.file,
        origin.line,
        f"domain {quote(later.entry.domain)}: {what} is already claimed at {earlier.mapping.origin}"
        f" for domain {quote(earlier.entry.domain)}; use another port or address, or give both an interface or sources"
        " that tell them apart",
    )
