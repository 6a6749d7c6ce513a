"""Grants what domains ask for in their metadata: files go first, then domains in the order of their starts. Pure.

Nothing is taken from a file where addresses and sources overlap, nor from a domain that has been live for longer. The
time of a request does not count, as it is not recorded: a domain that has run for longer takes a port from one that
asked for it earlier. Of two domains of one hypervisor, the one with the lower number was started earlier; that is so
for a daemon that starts later, too.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Final, TypeAlias
from uuid import UUID

from fwdaemon.config.metadata import Lack, Reading, allowed, cost, lacks, read_metadata
from fwdaemon.config.model import AllowEntry, Config, ForwardEntry, GuestEntry, NatEntry
from fwdaemon.core.exposures import Claim, Kind, Owner
from fwdaemon.core.inventory import Domain, GuestInterface, Hindrance, HindranceKind, HostAddress, Inventory, Move
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Origin, PortRange, Protocol
from fwdaemon.resolve.claims import Asker, Taken
from fwdaemon.resolve.expansion import Assignments, Sockets
from fwdaemon.resolve.guests import as_uuid, nameless

_NOT_LIVE: Final = (None, Move.GONE)
_MOST_PROBLEMS: Final = 3
_MOST_LACKS: Final = 3
_NO_PORTS: Final[Assignments] = {}


@dataclass(frozen=True, slots=True)
class Grants:
    """What metadata asks for, decided: the configuration with what is `given` to domains; the rest is `refused`.

    `taken` are the ports given to live domains: none of them is to be assigned. `misread` are the UUIDs of domains with
    elements that could not be read.
    """

    config: Config
    given: tuple[GuestEntry, ...] = ()
    refused: tuple[Waiting, ...] = ()
    taken: frozenset[tuple[Protocol, int]] = frozenset()
    misread: frozenset[str] = frozenset()

    def occupied(self, sockets: Callable[[], Sockets]) -> Callable[[], Sockets]:
        """Add the ports of live domains to those of processes: none of either is assigned."""
        return lambda: {*sockets(), *self.taken}


class Allocator:
    """Allocates on one inventory after another; where nothing changed, the answer is the same object."""

    def __init__(self) -> None:
        self._grants: Grants | None = None
        self._config: Config | None = None
        self._files = Taken()
        self._facts: tuple[object, ...] = ()
        self._local: frozenset[Address] = frozenset()
        self._wishes: dict[UUID, tuple[Domain, Wishes]] = {}

    def settle(self, config: Config, inventory: Inventory, ports: Assignments = _NO_PORTS) -> Grants:
        """Give the grants on this inventory; `ports` are those that are assigned."""
        if self._grants is None or config is not self._config:
            self._config, self._facts, self._wishes = config, (), {}
            self._files, self._grants = Taken(config.entries), Grants(config)
        asking = tuple(domain for domain in inventory.domains if domain.metadata is not None)
        held = frozenset((item.protocol, found.port) for item, found in ports.items() if asking)
        unnamed = nameless(asking, inventory.domains)
        of_host = inventory.host_addresses, inventory.lent, inventory.occupied
        facts = asking, unnamed, [domain.instance for domain in asking], of_host, held
        if facts != self._facts:
            self._facts = facts
            share = self._shared(config, asking, inventory, Share(self._files, inventory, held, unnamed))
            given, refused = tuple(_joined(share.given)), tuple(share.refused)
            if (given, refused) != (self._grants.given, self._grants.refused):
                self._grants = Grants(_with(config, given), given, refused, misread=_misread(refused))
            if share.taken != self._grants.taken:
                self._grants = replace(self._grants, taken=share.taken)
        return self._grants

    def _shared(self, config: Config, asking: Collection[Domain], inventory: Inventory, share: "Share") -> "Share":
        local = frozenset(host.address for host in inventory.host_addresses)
        known = self._wishes if local == self._local else {}
        sets = [item.name for item in config.sets]
        self._local = local
        self._wishes = {
            domain.uuid: item
            if (item := known.get(domain.uuid)) is not None and item[0] == domain
            else (domain, wishes(domain, config.allows, local, config.daemon.auto_ports, sets))
            for domain in asking
        }
        for domain in sorted(asking, key=_seniority):
            share.deal(domain, self._wishes[domain.uuid][1])
        return share


def _with(config: Config, given: Iterable[GuestEntry]) -> Config:
    forwards = tuple(entry for entry in given if isinstance(entry, ForwardEntry))
    nats = tuple(entry for entry in given if isinstance(entry, NatEntry))
    return replace(config, forwards=config.forwards + forwards, nats=config.nats + nats)


def _misread(refused: Iterable[Waiting]) -> frozenset[str]:
    return frozenset(item.origin.uuid for item in refused if item.reason.kind is HindranceKind.MISREAD)


def grants(config: Config, inventory: Inventory, ports: Assignments = _NO_PORTS) -> Grants:
    """Give the grants on a host like `inventory` where `ports` are assigned."""
    return Allocator().settle(config, inventory, ports)


def _seniority(domain: Domain) -> tuple[int, int, str]:
    """Sort by the age of the run, not of the request; of several hypervisors, that of the first URI comes first."""
    return domain.rank, domain.instance, str(domain.uuid)


def _is_live(domain: Domain) -> bool:
    return domain.running or domain.move not in _NOT_LIVE


# What a domain asks for, as far as a policy covers it.


@dataclass(frozen=True, slots=True)
class Wish:
    """One claim of a definition, for a single port string, that `allow` covers; `cost` counts against its `max`."""

    entry: GuestEntry
    allow: AllowEntry
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


class _Judge:
    """Judges what one domain asks for."""

    def __init__(
        self, domain: Domain, allows: Iterable[AllowEntry], local: Collection[Address], pool: PortRange | None
    ) -> None:
        self._domain, self._allows, self._local, self._pool = domain, tuple(allows), local, pool

    def judge(self, entry: GuestEntry) -> Iterator[Wish | Waiting]:
        """Give the wish with the policy that covers it, or its refusals."""
        if (strange := self._strange_address(entry)) is not None:
            yield from refusals(entry, self._domain, Hindrance(HindranceKind.NOT_OWN, strange))
            return
        lacking = []
        for allow in self._allows:
            missing = tuple(self._lacks(entry, allow))
            if not missing:
                yield Wish(allowed(entry, allow), allow, cost(entry))
                return
            lacking.append((allow.origin, missing))
        yield from refusals(entry, self._domain, _not_allowed(lacking))

    def _lacks(self, entry: GuestEntry, allow: AllowEntry) -> Iterator[Lack]:
        """Give what a policy does not cover of an entry with one port string."""
        if not any(_means(pattern, self._domain) for pattern in allow.domains):
            yield "domains", self._domain.name
        if allow.networks:
            strange = [item for item in self._candidates(entry) if item.network not in allow.networks]
            yield from dict.fromkeys(("networks", item.network or item.bridge or item.mac) for item in strange)
        yield from lacks(entry, allow, self._local, self._pool)

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


class Share:
    """What has been given so far; `unnamed` are domains that entries do not mean by their name."""

    def __init__(self, files: Taken, inventory: Inventory, held: Sockets, unnamed: Collection[UUID]) -> None:
        self.given: list[GuestEntry] = []
        self.refused: list[Waiting] = []
        self._files, self._taken, self._unnamed = files, Taken(), unnamed
        self._local = frozenset(host.address for host in inventory.host_addresses)
        self._own = {host.address for host in inventory.host_addresses if not _is_lent(host, inventory)}
        self._occupied: defaultdict[tuple[Protocol, int], set[Address | None]] = defaultdict(set)
        for item in inventory.occupied:
            self._occupied[item.protocol, item.port].add(item.address)
        for place in held:
            self._occupied[place].add(None)
        self._used = {protocol: sorted(port for of, port in self._occupied if of is protocol) for protocol in Protocol}
        self._spent: defaultdict[tuple[UUID, Origin], int] = defaultdict(int)

    @property
    def taken(self) -> frozenset[tuple[Protocol, int]]:
        """The ports given to live domains."""
        return self._taken.ports

    def deal(self, domain: Domain, wished: Wishes) -> None:
        """Grant the wishes of a domain that are free; those of one that does not run keep nothing from others."""
        for wish in wished:
            if isinstance(wish, Waiting):
                self.refused.append(wish)
            elif _is_live(domain):
                self._give(domain, wish)
            else:
                self.given.append(wish.entry)

    def _give(self, domain: Domain, wish: Wish) -> None:
        hindrance = self._too_much(domain, wish) or self._taken_by(domain, wish.entry)
        if hindrance is not None:
            self.refused += refusals(wish.entry, domain, hindrance)
            return
        self._spent[domain.uuid, wish.allow.origin] += wish.cost
        self._taken.take(wish.entry)
        self.given.append(wish.entry)

    def _taken_by(self, domain: Domain, entry: GuestEntry) -> Hindrance | None:
        if entry.public in self._own if isinstance(entry, NatEntry) else self._is_occupied(entry):
            return Hindrance(HindranceKind.CLAIMED)
        asker = Asker(domain.uuid, None if domain.uuid in self._unnamed else domain.name)
        for taken in (self._files, self._taken):
            if (holder := taken.holder(entry, asker, self._local)) is not None:
                return Hindrance(HindranceKind.CLAIMED, names=(holder.owner.name,), origin=holder.origin)
        return None

    def _is_occupied(self, entry: ForwardEntry) -> bool:
        """Whether a process of the host listens on one of the ports, at an address where the entry would too."""
        return any(
            claim.address is None or not found.isdisjoint((None, claim.address))
            for claim, _ in entry.claims()
            if claim.protocol is not None and claim.ports is not None
            for port in _within(claim.ports, self._used[claim.protocol])
            if (found := self._occupied[claim.protocol, port])
        )

    def _too_much(self, domain: Domain, wish: Wish) -> Hindrance | None:
        allow = wish.allow
        if self._spent[domain.uuid, allow.origin] + wish.cost <= allow.most:
            return None
        return Hindrance(HindranceKind.NOT_ALLOWED, names=("max", str(allow.most)), origin=allow.origin)


def _is_lent(host: HostAddress, inventory: Inventory) -> bool:
    """Whether an interface has an address only because we assigned it for a guest."""
    return host.subnet.prefixlen == host.subnet.max_prefixlen and (host.device, host.address) in inventory.lent


def _within(ports: PortRange, used: list[int]) -> list[int]:
    return used[bisect_left(used, ports.first) : bisect_right(used, ports.last)]


def _joined(entries: Iterable[GuestEntry]) -> list[GuestEntry]:
    """Join the port strings of one element again."""
    found: list[GuestEntry] = []
    for entry in entries:
        last = found[-1] if found else None
        if isinstance(last, ForwardEntry) and isinstance(entry, ForwardEntry) and last.origin == entry.origin:
            found[-1] = replace(last, mappings=last.mappings + entry.mappings, auto=last.auto + entry.auto)
        else:
            found.append(entry)
    return found
