"""Judges what is asked for beside the files, and knows what is taken already. Pure.

That is what a domain asks for in its metadata: which policies cover each claim, and what the rest lacks. And it is what
a user opens for a while. Neither takes anything from others.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from fwdaemon.config.exposures import AskedEntry
from fwdaemon.config.metadata import Lack, Reading, allowed, cost, lacks, read_metadata
from fwdaemon.config.model import AllowEntry, Config, Entry, ForwardEntry, NatEntry, PortMapping, RouteEntry
from fwdaemon.config.sets import settled
from fwdaemon.core.exposures import Claim, Exposure, Forward, Kind, Nat, Owner
from fwdaemon.core.inventory import Domain, GuestInterface, Hindrance, HindranceKind, Move
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet
from fwdaemon.resolve.claims import Claims, PortsInUse, Sockets, overlap
from fwdaemon.resolve.guests import as_uuid

# A claim of at most this many ports is indexed under each of them.
_NARROW: Final = 64
_NOT_LIVE: Final = (None, Move.GONE)
_MOST_TOLD: Final = 3


def is_live(domain: Domain) -> bool:
    """Whether a domain runs here, or may again before anything says so, as while it migrates."""
    return domain.running or domain.move not in _NOT_LIVE


@dataclass(frozen=True, slots=True)
class Wish:
    """One claim of a definition, for a single port string; `cost` counts against the `max` of the policy that gives it.

    `ways` are the policies that cover it, each with what is given by it.
    """

    entry: AskedEntry
    ways: tuple[tuple[AllowEntry, AskedEntry], ...]
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
    more = len(problems) - _MOST_TOLD
    return problems if more <= 0 else (*problems[:_MOST_TOLD], f"and {more} more")


def _single(entry: AskedEntry) -> Iterator[AskedEntry]:
    if isinstance(entry, NatEntry):
        yield entry
    else:
        yield from (replace(entry, mappings=(mapping,), auto=()) for mapping in entry.mappings)
        yield from (replace(entry, mappings=(), auto=(item,)) for item in entry.auto)


def _by_address(entry: AskedEntry) -> Iterator[AskedEntry]:
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

    def judge(self, entry: AskedEntry) -> Iterator[Wish | Waiting]:
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

    def _ways(self, entry: AskedEntry) -> tuple[tuple[AllowEntry, AskedEntry], ...]:
        covering = (allow for allow in self._allows if next(self._lacks(entry, allow), None) is None)
        return tuple((allow, allowed(entry, allow)) for allow in covering)

    def _refused(self, entry: AskedEntry) -> Iterator[Waiting]:
        lacking = [(allow.origin, tuple(self._lacks(entry, allow))) for allow in self._allows]
        yield from refusals(entry, self._domain, _not_allowed(lacking))

    def _lacks(self, entry: AskedEntry, allow: AllowEntry) -> Iterator[Lack]:
        """Give what a policy does not cover of an entry with one port string."""
        if not any(_means(pattern, self._domain) for pattern in allow.domains):
            yield "domains", self._domain.name
        if allow.networks:
            strange = [name for network, name in self._networks(entry) if network not in allow.networks]
            yield from dict.fromkeys(("networks", name) for name in strange)
        yield from lacks(entry, allow, self._local, self._pool)

    def _networks(self, entry: AskedEntry) -> list[tuple[str | None, str]]:
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

    def _candidates(self, entry: AskedEntry) -> list[GuestInterface]:
        """Give the interfaces that an entry may come to mean."""
        return [
            item
            for item in self._domain.interfaces
            if entry.network in (None, item.network) and entry.mac in (None, item.mac)
        ]

    def _strange_address(self, entry: AskedEntry) -> Address | None:
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
    more = len(missing) - _MOST_TOLD
    shown = missing if more <= 0 else (*missing[:_MOST_TOLD], (str(more), "more"))
    return Hindrance(HindranceKind.NOT_ALLOWED, names=tuple(chain.from_iterable(shown)), origin=origin)


def refusals(entry: AskedEntry, domain: Domain, reason: Hindrance) -> Iterator[Waiting]:
    """Refuse an entry, claim by claim."""
    for claim, origin in entry.every_claim():
        yield Waiting(Owner(domain.name), reason, origin, claim=claim)


def _means(pattern: str, domain: Domain) -> bool:
    """Whether a pattern matches a domain; what can be read as a UUID is one."""
    uuid = as_uuid(pattern)
    return fnmatchcase(domain.name, pattern) if uuid is None else uuid == domain.uuid


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

    def holder(self, entry: AskedEntry, asker: Asker) -> Holder | None:
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


# What is opened for a while.


@dataclass(frozen=True, slots=True)
class Unavailable:
    """What a forward may not take: what a configuration and metadata ask for, assigned ports, and those of processes.

    `live` is what there is. `local` are addresses of the host. `occupied` gives the ports of processes, among them our
    own for forwards on loopback addresses, or `None` where they are not known; entries that are `replaced` had their
    ports before.
    """

    config: Config
    live: frozenset[Exposure] = frozenset()
    local: frozenset[Address] = frozenset()
    assigned: frozenset[tuple[Protocol, int]] = frozenset()
    occupied: Callable[[], Sockets | None] = frozenset
    replaced: frozenset[Origin] = frozenset()

    def hindrances(self, entry: ForwardEntry) -> Iterator[tuple[PortMapping, Hindrance | None]]:
        """Give what is taken of what an entry asks for, and by whom; `None` is a domain that it is assigned to."""
        own = as_uuid(entry.domain)
        occupied = frozenset() if self.replaced else self.occupied()
        in_use = None if occupied is None else PortsInUse(occupied)
        asker, taken = Asker(own or UUID(int=0), entry.domain if own is None else None), Taken(self._entries())
        for mapping in entry.mappings:
            alone = replace(entry, mappings=(mapping,), auto=())
            ports = {(mapping.protocol, port) for port in mapping.host}
            held = taken.holder(alone, asker) or self._live(alone) or self._one_to_one(alone, asker)
            if held is not None:
                yield mapping, Hindrance(HindranceKind.CLAIMED, names=(held.owner.name,), origin=held.origin)
            elif ports & self.assigned:
                yield mapping, None
            elif in_use is None:
                yield mapping, Hindrance(HindranceKind.SOCKETS_UNKNOWN)
            elif in_use.first_of(entry.claims_of(mapping)) is not None:
                yield mapping, Hindrance(HindranceKind.CLAIMED)

    def _entries(self) -> Iterator[Entry]:
        return (entry for entry in self.config.entries if entry.origin not in self.replaced)

    def _live(self, entry: ForwardEntry) -> Holder | None:
        claims = [claim for claim, _ in entry.claims()]
        for item in self.live:
            known = isinstance(item, Forward) and item.origin not in (None, *self.replaced)
            if known and any(overlap(claim, item.claim) for claim in claims):
                return Holder(item.owner, item.origin or entry.origin)
        return None

    def _one_to_one(self, entry: ForwardEntry, asker: Asker) -> Holder | None:
        """Give whose 1:1 address a forward would take a port of: it goes before that, also on every address."""
        public = [(address, holder) for address, holder in self._public(entry.origin) if not asker.has(holder)]
        for claim, _ in entry.claims():
            found = (holder for address, holder in public if _meets(claim, address))
            if (holder := next(found, None)) is not None:
                return holder
        return None

    def _public(self, unknown: Origin) -> Iterator[tuple[Address, Holder]]:
        """Give the addresses of this host that are 1:1 a guest's, or are to be."""
        for entry in self._entries():
            if isinstance(entry, NatEntry) and self._is_here(entry):
                yield entry.public, Holder.of(entry)
        for item in self.live:
            if isinstance(item, Nat) and self._is_here(item):
                yield item.public, Holder(item.owner, item.origin or unknown, item.domain)

    def _is_here(self, nat: NatEntry | Nat) -> bool:
        return nat.assign is not None or nat.public in self.local


def _meets(claim: Claim, address: Address) -> bool:
    """Whether a forward takes something that is for a public address, going by where it listens and by its sources."""
    if claim.address is not None:
        return claim.address == address
    return not claim.sources or Family.of(address) in map(Family.of, claim.sources)


def opened(config: Config, entries: Iterable[ForwardEntry]) -> tuple[Config, dict[Origin, Origin | None]]:
    """Add entries that were opened for a while; of the others, tell where they stand, and what in a file has the ports.

    That is `None` where the configuration has no automatic ports any more, or none of the sets that an entry names.
    """
    claims = Claims(entry for entry in config.forwards if not entry.is_pattern)
    added, gone = list[ForwardEntry](), dict[Origin, Origin | None]()
    for wanted in entries:
        entry = settled(wanted, config.sets)
        if entry is None or (entry.auto and config.daemon.auto_ports is None):
            gone[wanted.origin] = None
            continue
        takers = filter(None, (claims.taker(entry, mapping) for mapping in entry.mappings))
        if (taker := next(takers, None)) is not None:
            gone[entry.origin] = taker.mapping.origin
        else:
            added.append(entry)
    return (replace(config, forwards=(*config.forwards, *added)) if added else config), gone
