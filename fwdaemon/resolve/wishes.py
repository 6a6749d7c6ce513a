"""Judges what a domain asks for in its metadata: which policies cover each claim, and what the rest lacks. Pure."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Final, TypeAlias

from fwdaemon.config.metadata import Lack, Reading, allowed, cost, lacks, read_metadata
from fwdaemon.config.model import AllowEntry, ForwardEntry, GuestEntry, NatEntry
from fwdaemon.core.exposures import Claim, Kind, Owner
from fwdaemon.core.inventory import Domain, GuestInterface, Hindrance, HindranceKind, Move
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Origin, PortRange
from fwdaemon.resolve.guests import as_uuid

_NOT_LIVE: Final = (None, Move.GONE)
_MOST_PROBLEMS: Final = 3
_MOST_LACKS: Final = 3


def is_live(domain: Domain) -> bool:
    """Whether a domain runs here, or may again before anything says so, as while it migrates."""
    return domain.running or domain.move not in _NOT_LIVE


@dataclass(frozen=True, slots=True)
class Wish:
    """One claim of a definition, for a single port string; `cost` counts against the `max` of the policy that gives it.

    `ways` are the policies that cover it, each with what is given by it.
    """

    entry: GuestEntry
    ways: tuple[tuple[AllowEntry, GuestEntry], ...]
    cost: int


Wishes: TypeAlias = tuple[Wish | Waiting, ...]


def wishes(
    domain: Domain,
    allows: Collection[AllowEntry],
    local: Collection[Address],
    pool: PortRange | None,
    sets: Collection[str] = (),
) -> Wishes:
    """Give what a domain asks for where a policy covers that, and the refusals of the rest; `sets` are known names."""
    if domain.metadata is None:
        return ()
    readings = read_metadata(domain.metadata, domain.name, domain.uuid, sets)
    judge = _Judge(domain, allows, local, pool)
    return tuple(item for reading in readings for item in _judged(reading, domain, judge))


def _judged(reading: Reading, domain: Domain, judge: "_Judge") -> Iterator[Wish | Waiting]:
    if reading.problems:
        hindrance = Hindrance(HindranceKind.MISREAD, names=_first(reading.problems))
        yield Waiting(Owner(domain.name), hindrance, reading.origin, claim=Claim(Kind.FORWARD))
    for entry in reading.entries:
        for single in _single(entry):
            yield from judge.judge(single)


def _first(problems: tuple[str, ...]) -> tuple[str, ...]:
    more = len(problems) - _MOST_PROBLEMS
    return problems if more <= 0 else (*problems[:_MOST_PROBLEMS], f"and {more} more")


def _single(entry: GuestEntry) -> Iterator[GuestEntry]:
    if isinstance(entry, NatEntry):
        yield entry
    else:
        yield from (replace(entry, mappings=(mapping,), auto=()) for mapping in entry.mappings)
        yield from (replace(entry, mappings=(), auto=(item,)) for item in entry.auto)


def _by_address(entry: GuestEntry) -> Iterator[GuestEntry]:
    """Take an entry apart that names several addresses to listen on."""
    if isinstance(entry, ForwardEntry) and len(entry.listen) > 1:
        yield from (replace(entry, listen=(address,)) for address in entry.listen)
    else:
        yield entry


class _Judge:
    """Judges what one domain asks for."""

    def __init__(
        self, domain: Domain, allows: Iterable[AllowEntry], local: Collection[Address], pool: PortRange | None
    ) -> None:
        self._domain, self._allows, self._local, self._pool = domain, tuple(allows), local, pool

    def judge(self, entry: GuestEntry) -> Iterator[Wish | Waiting]:
        """Give a wish for each address to listen on, with the policies that cover it, or refusals."""
        if (strange := self._strange_address(entry)) is not None:
            yield from refusals(entry, self._domain, Hindrance(HindranceKind.NOT_OWN, strange))
            return
        parts = [(part, self._ways(part)) for part in _by_address(entry)]
        if not any(ways for _, ways in parts):
            yield from self._refused(entry)
            return
        for part, ways in parts:
            yield from [Wish(part, ways, cost(part))] if ways else self._refused(part)

    def _ways(self, entry: GuestEntry) -> tuple[tuple[AllowEntry, GuestEntry], ...]:
        covering = (allow for allow in self._allows if next(self._lacks(entry, allow), None) is None)
        return tuple((allow, allowed(entry, allow)) for allow in covering)

    def _refused(self, entry: GuestEntry) -> Iterator[Waiting]:
        lacking = [(allow.origin, tuple(self._lacks(entry, allow))) for allow in self._allows]
        yield from refusals(entry, self._domain, _not_allowed(lacking))

    def _lacks(self, entry: GuestEntry, allow: AllowEntry) -> Iterator[Lack]:
        """Give what a policy does not cover of an entry with one port string."""
        if not any(_means(pattern, self._domain) for pattern in allow.domains):
            yield "domains", self._domain.name
        if allow.networks:
            strange = [name for network, name in self._networks(entry) if network not in allow.networks]
            yield from dict.fromkeys(("networks", name) for name in strange)
        yield from lacks(entry, allow, self._local, self._pool)

    def _networks(self, entry: GuestEntry) -> list[tuple[str | None, str]]:
        """Give the network of each interface that an entry may come to mean, and what to call it.

        Where it means none, what it names does not count: a guest that is not on a network is on no network that a
        policy is for. One that does not run has no interfaces yet.
        """
        found = [(item.network, item.network or item.bridge or item.mac) for item in self._candidates(entry)]
        if found:
            return found
        if is_live(self._domain):
            return [(None, entry.network or entry.mac or "none")]
        return [] if entry.network is None else [(entry.network, entry.network)]

    def _candidates(self, entry: GuestEntry) -> list[GuestInterface]:
        """Give the interfaces that an entry may come to mean."""
        return [
            item
            for item in self._domain.interfaces
            if entry.network in (None, item.network) and entry.mac in (None, item.mac)
        ]

    def _strange_address(self, entry: GuestEntry) -> Address | None:
        """Give the address an entry names if the guest is known to have others and not this one."""
        if entry.address is None:
            return None
        own = {claim.address for item in self._candidates(entry) for claim in item.learned}
        known = any(address.version == entry.address.version for address in own)
        return entry.address if known and entry.address not in own else None


def _not_allowed(lacking: Iterable[tuple[Origin, tuple[Lack, ...]]]) -> Hindrance:
    """Say what the policy that comes closest lacks; one that is for other domains does not come close."""
    near = [item for item in lacking if item[1][0][0] != "domains"]
    if not near:
        return Hindrance(HindranceKind.NOT_ALLOWED)
    origin, missing = min(near, key=lambda item: len(item[1]))
    more = len(missing) - _MOST_LACKS
    shown = missing if more <= 0 else (*missing[:_MOST_LACKS], (str(more), "more"))
    return Hindrance(HindranceKind.NOT_ALLOWED, names=tuple(chain.from_iterable(shown)), origin=origin)


def refusals(entry: GuestEntry, domain: Domain, reason: Hindrance) -> Iterator[Waiting]:
    """Refuse an entry, claim by claim."""
    for claim, origin in entry.every_claim():
        yield Waiting(Owner(domain.name), reason, origin, claim=claim)


def _means(pattern: str, domain: Domain) -> bool:
    """Whether a pattern matches a domain; what can be read as a UUID is one."""
    uuid = as_uuid(pattern)
    return fnmatchcase(domain.name, pattern) if uuid is None else uuid == domain.uuid
