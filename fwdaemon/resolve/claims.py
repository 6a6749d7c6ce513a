"""Who of several gets a port that all of them want. Pure.

What is asked is an entry of one domain, with ports that are known, in whatever way it came to be: out of a pattern in a
file, or otherwise. It says where it stands, and its precedence is given with it.

Who goes before whom: what a file says of one domain by its name, whether or not that runs; then what is asked of
domains that run, in the order of `Ask.before`, and of one rank the domain that has run for longer. Only who is refused
waits; who has a port keeps it until its domain goes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, TypeAlias
from uuid import UUID

from fwdaemon.config.model import AutoMapping, ForwardEntry, PortMapping
from fwdaemon.config.overlap import families_of_entry
from fwdaemon.core.inventory import Domain, Hindrance, HindranceKind
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Family, PortRange, Protocol

Run: TypeAlias = tuple[UUID, int]
"""A domain, and libvirt's number of this run of it."""
Key: TypeAlias = tuple[int, str]
"""The number of an entry among those that are written, and the UUID of the domain where it is for several."""

# Who claims which ports.
#
# Claims meet where they listen on one address, or both on every address; what is on one address goes before what is on
# every one. They are found by their ports, in pieces of so many.
_PIECE: Final = 64


@dataclass(frozen=True, slots=True)
class Claimed:
    """A mapping that an entry has; `called` is the domain's name, or what the file calls it."""

    entry: ForwardEntry
    mapping: PortMapping
    called: str

    def meets(self, entry: ForwardEntry, mapping: PortMapping) -> bool:
        """Whether some packet would be for both; they listen on one address, with one protocol."""
        if not self.mapping.host.overlaps(mapping.host) or not _may_meet(self.entry.interface, entry.interface):
            return False
        families = families_of_entry(self.entry) & families_of_entry(entry)
        return any(_share_sources(self.entry, entry, family) for family in families)


class Claims:
    """What is claimed so far, by where it listens."""

    def __init__(self, entries: Iterable[ForwardEntry] = (), before: "Claims | None" = None) -> None:
        """Begin with these entries; what is claimed in `before` goes before all of this."""
        self._before = before
        self._claimed: defaultdict[tuple[Address | None, Protocol, int], list[Claimed]] = defaultdict(list)
        for entry in entries:
            for mapping in entry.mappings:
                self.add(entry, mapping)

    def add(self, entry: ForwardEntry, mapping: PortMapping) -> None:
        """Claim it."""
        claimed = Claimed(entry, mapping, entry.owner.name)
        for place in _places(entry, mapping):
            self._claimed[place].append(claimed)

    def taker(self, entry: ForwardEntry, mapping: PortMapping) -> Claimed | None:
        """Give who has some of it already."""
        if self._before is not None and (taker := self._before.taker(entry, mapping)) is not None:
            return taker
        found = (claimed for place in _places(entry, mapping) for claimed in self._claimed.get(place, ()))
        return next((claimed for claimed in found if claimed.meets(entry, mapping)), None)


def _places(entry: ForwardEntry, mapping: PortMapping) -> Iterator[tuple[Address | None, Protocol, int]]:
    for listen in (mapping.listen,) if mapping.listen is not None else entry.listen or (None,):
        for piece in range(mapping.host.first // _PIECE, mapping.host.last // _PIECE + 1):
            yield listen, mapping.protocol, piece


def _may_meet(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def _share_sources(one: ForwardEntry, other: ForwardEntry, family: Family) -> bool:
    if not one.sources or not other.sources:
        return True
    mine = [source for source in one.sources if Family.of(source) is family]
    its = [source for source in other.sources if Family.of(source) is family]
    return any(a.overlaps(b) for a in mine for b in its)


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for one running domain, which `entry` is for alone; the lesser `before` goes first.

    `key` tells asks apart, and stays with one.
    """

    key: Key
    entry: ForwardEntry
    before: tuple[int, ...]


def settle(asks: Iterable[Ask], claims: Claims) -> Iterator[tuple[Ask, tuple[Waiting, ...]]]:
    """Give each ask with what it gets, and why it does not get the rest; `claims` are added to."""
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
    """Say of each of its addresses that a mapping is refused there."""
    for claim in entry.claims_of(mapping):
        yield Waiting(entry.owner, reason, mapping.origin, claim=claim)


def arrived(before: Sequence[Run], domains: Iterable[Domain]) -> tuple[Run, ...]:
    """Give the domains that run, in the order in which they came; those that are new by libvirt's number, then UUID."""
    running = {(domain.uuid, domain.instance): domain for domain in domains if domain.running}
    known = [run for run in before if run in running]
    fresh = running.keys() - set(known)
    return (*known, *sorted(fresh, key=lambda run: (running[run].rank, run[1], run[0])))
