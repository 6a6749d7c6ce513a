"""Expands entries that depend on the inventory: patterns of domains, and ports that are assigned. Pure.

A pattern stands for the domains that match it, and `auto:…` for a port that is assigned. Both are expanded to entries
of one domain each with known ports, which are placed like all others.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cache
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from fwdaemon.config.model import Config, ForwardEntry, PortMapping
from fwdaemon.core.exposures import Owner
from fwdaemon.core.inventory import Domain, Hindrance, HindranceKind
from fwdaemon.core.report import Assigned
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Origin, PortRange, Protocol
from fwdaemon.resolve.claims import (
    AllTurns,
    Ask,
    Claims,
    Key,
    Sockets,
    Turn,
    Turns,
    no_sockets,
    of_these_runs,
    refused_claims,
    settle,
)
from fwdaemon.resolve.guests import DomainIndex

# Ports that are assigned.
#
# The search for a free port begins at a hash of domain and guest port. So a domain mostly gets the same port on every
# host with the same pool, in whatever order domains start, and after the record was lost. The lowest free port would
# depend on the history of one host, and a port that is given up would go to another guest at once.
KEPT_FOR_S: Final = 7 * 24 * 3600.0


_User: TypeAlias = tuple[UUID, int]
"""A domain, and one of its ports: it has one port of the host for that, whatever the protocol."""


class AutoPort(NamedTuple):
    """What a port is assigned for."""

    domain: UUID
    guest: int
    protocol: Protocol


class Held(NamedTuple):
    """The port that is assigned, and for how many seconds libvirt has known no such domain."""

    port: int
    gone: float = 0.0


Assignments: TypeAlias = Mapping[AutoPort, Held]


def aged(ports: Assignments, known: Collection[UUID], seconds: float) -> Assignments:
    """Add to the time for which domains are gone, and give up the ports of those gone for longer than `KEPT_FOR_S`."""
    if not any(held.gone or wanted.domain not in known for wanted, held in ports.items()):
        return ports
    counted = {
        wanted: Held(held.port, 0.0 if wanted.domain in known else held.gone + seconds)
        for wanted, held in ports.items()
    }
    return {wanted: held for wanted, held in counted.items() if held.gone < KEPT_FOR_S}


class Pool:
    """Assigns ports of a range, but none that `is_reserved` or `occupied`, which is called once a port is needed.

    Where none is left, domains that are `gone` give theirs up, those first that have been gone for the longest time.
    """

    def __init__(
        self,
        ports: PortRange,
        is_reserved: Callable[[Protocol, int], bool],
        occupied: Callable[[], Sockets | None],
        is_gone: Callable[[UUID], bool] = lambda _: False,
    ) -> None:
        self._ports, self._is_reserved, self._ask, self._is_gone = ports, is_reserved, occupied, is_gone

    def assign(self, wanted: Iterable[AutoPort], known: Assignments) -> Assignments:
        """Give what may be kept of `known`, with a port for each that is wanted where it is known what is free."""
        known = _without(known, {item for item, held in known.items() if not self._may_keep(item, held.port)})
        missing = sorted(set(wanted) - known.keys())
        occupied = self._ask() if missing else None
        if occupied is None:
            return known
        kept, users = dict(known), {held.port: item[:2] for item, held in known.items()}
        spare, in_use, full = None, {(used.protocol, used.port) for used in occupied}, set[Protocol]()
        for item in missing:
            while (port := self._port_for(item, kept, users, in_use, is_full=item.protocol in full)) is None:
                full.add(item.protocol)
                spare = self._spare(kept) if spare is None else spare
                if not spare:
                    break
                del users[_give_up(kept, spare.pop())]
                full.clear()
            if port is not None:
                kept[item] = Held(port)
                users[port] = item[:2]
        return kept

    def _spare(self, kept: Assignments) -> list[_User]:
        """Give the users of ports that are gone, the longest gone last."""
        gone = {item[:2]: held.gone for item, held in kept.items() if self._is_gone(item.domain)}
        return sorted(gone, key=lambda user: (gone[user], user))

    def _may_keep(self, item: AutoPort, port: int) -> bool:
        return port in self._ports and not self._is_reserved(item.protocol, port)

    def _port_for(
        self,
        item: AutoPort,
        kept: Assignments,
        users: Mapping[int, _User],
        in_use: Collection[tuple[Protocol, int]],
        *,
        is_full: bool,
    ) -> int | None:
        """Give the port it has for another protocol, or else the first that is free."""

        def is_free(port: int) -> bool:
            return (item.protocol, port) not in in_use and not self._is_reserved(item.protocol, port)

        siblings = (kept.get(item._replace(protocol=protocol)) for protocol in Protocol)
        own = (held.port for held in siblings if held is not None and is_free(held.port))
        others = () if is_full else (port for port in self._from(item) if port not in users and is_free(port))
        return next(own, None) or next(iter(others), None)

    def _from(self, item: AutoPort) -> Iterator[int]:
        digest = blake2b(item.domain.bytes + item.guest.to_bytes(2, "big"), digest_size=8).digest()
        start, width = int.from_bytes(digest, "big"), self._ports.width
        return (self._ports.first + (start + step) % width for step in range(width))


def _give_up(kept: dict[AutoPort, Held], user: _User) -> int:
    """Take the port of a user from it, and give it."""
    items = [item for item in kept if item[:2] == user]
    return {kept.pop(item).port for item in items}.pop()


@dataclass(frozen=True, slots=True)
class Before:
    """What is known from before: assigned ports, and claims in order; `occupied` gives the sockets of processes."""

    ports: Assignments = field(default_factory=dict)
    turns: AllTurns = ((), ())
    occupied: Callable[[], Sockets | None] = no_sockets

    def of_these_runs(self, domains: Collection[Domain]) -> AllTurns:
        """Give the claims of domains that have not been started anew since."""
        return of_these_runs(self.turns[0], domains), of_these_runs(self.turns[1], domains)


# The expansion of a configuration.
_WANTING: Final = (HindranceKind.NO_FREE_PORT, HindranceKind.SOCKETS_UNKNOWN)
Concerned: TypeAlias = tuple[int, ForwardEntry, Domain]
"""An entry, its number, and a domain that it means."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Entries of one domain each, what they wait for, the ports that are assigned, and of these the new ones."""

    entries: Mapping[Key, ForwardEntry] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    ports: Assignments = field(default_factory=dict)
    assigned: tuple[Assigned, ...] = ()


class Expander:
    """Expands the entries of one configuration on one inventory after another; `turns` are the claims in order."""

    def __init__(self, config: Config, turns: Iterable[Turn] = ()) -> None:
        """Continue a known order of claims."""
        self.config = config
        self._open = tuple((number, entry) for number, entry in enumerate(config.forwards) if entry.is_open)
        self._matches = {
            entry.domain: re.compile(translate(entry.domain)).match for _, entry in self._open if entry.is_pattern
        }
        # Entries of metadata take nothing from these, and may be of domains that do not run.
        written = [entry for entry in config.forwards if self._open and not entry.origin.domain]
        self._fixed = Claims(entry for entry in written if not entry.is_pattern)
        self._reserved = _reserved(written)
        self.turns = tuple(turns)
        self._last: tuple[object, Assignments, Expansion] | None = None

    def expand(
        self,
        domains: Sequence[Domain],
        ports: Assignments,
        occupied: Callable[[], Sockets | None] = no_sockets,
        misread: Collection[str] = (),
        rebooting: Collection[UUID] = frozenset(),
    ) -> Expansion:
        """Expand the entries now; `ports` are assigned already, `occupied` gives those of processes.

        For domains with the UUIDs of `misread`, some elements of the metadata could not be read. Those that are
        `rebooting` keep the ports that they have.
        """
        seen = (
            misread,
            rebooting,
            tuple((domain.name, domain.uuid, domain.running, domain.instance, domain.rank) for domain in domains),
        )
        if self._last is not None and self._last[0] == seen and _are_alike(self._last[1], ports):
            self._last = seen, ports, self._last[2]
            return replace(self._last[2], ports=ports)
        expansion = self._expansion(domains, ports, cache(occupied), misread, rebooting)
        # Where a process has a port that is wanted, or all are wanting, one may have let go of it since.
        is_whole = not any(_is_wanting(item.reason) for item in expansion.waiting)
        self._last = (seen, expansion.ports, replace(expansion, assigned=())) if is_whole else None
        return expansion

    def _expansion(
        self,
        domains: Sequence[Domain],
        ports: Assignments,
        occupied: Callable[[], Sockets | None],
        misread: Collection[str],
        rebooting: Collection[UUID],
    ) -> Expansion:
        index = DomainIndex(domains)
        every = [(number, entry, domain) for number, entry in self._open for domain in self._meant(entry, index)]
        concerned, waiting = _after_files(every)
        assigned = self._assign(concerned, ports, occupied, misread, index.by_uuid)
        entries: dict[Key, ForwardEntry] = {(number, ""): entry for number, entry in self._open if not entry.is_pattern}
        asks = list[Ask]()
        for number, entry, domain in concerned:
            own = _of_domain(entry, domain, assigned)
            key = number, str(domain.uuid) if entry.is_pattern else ""
            entries[key] = own
            if domain.running or domain.uuid in rebooting:
                asks.append(Ask(key, own, domain, (bool(entry.origin.domain), entry.is_pattern)))
                waiting += self._without_port(own, occupied) if domain.running else ()
        waiting += self._settled(asks, entries, occupied)
        waiting += self._unmatched(concerned)
        news = self._news(concerned, ports, assigned)
        return Expansion(entries, tuple(sorted(waiting, key=_where)), assigned, news)

    def _meant(self, entry: ForwardEntry, domains: DomainIndex) -> Iterable[Domain]:
        if entry.is_pattern:
            fits = self._matches[entry.domain]
            return [domain for domain in domains.by_uuid.values() if fits(domain.name)]
        domain = domains.meant(entry.domain)
        return [] if domain is None else [domain]

    def _assign(
        self,
        concerned: Iterable[Concerned],
        ports: Assignments,
        occupied: Callable[[], Sockets | None],
        misread: Collection[str],
        known: Collection[UUID],
    ) -> Assignments:
        """Assign ports to running domains; those that are stopped keep theirs.

        A domain that asks in its metadata keeps only the ports it asks for now: otherwise it could collect the whole
        pool, one request after the other. While one of its elements is misread, it keeps its ports until it asks for
        a new one.
        """
        if self.config.daemon.auto_ports is None:
            return ports
        pool = Pool(self.config.daemon.auto_ports, self._is_reserved, occupied, lambda uuid: uuid not in known)
        running = [(entry, domain) for _, entry, domain in concerned if domain.running]
        wanted = {item for entry, domain in running for item in _wanted(entry, domain)}
        new = {item.domain for item in wanted if item not in ports}
        asking = {domain.uuid for entry, domain in running if entry.origin.domain}
        asking -= {uuid for uuid in asking - new if str(uuid) in misread}
        ports = _without(ports, {item for item in ports if item.domain in asking} - wanted)
        # Where few are left, entries of files go first.
        by_files = [item for entry, domain in running if not entry.origin.domain for item in _wanted(entry, domain)]
        return pool.assign(wanted, pool.assign(by_files, ports) if by_files else ports)

    def _is_reserved(self, protocol: Protocol, port: int) -> bool:
        return bool(self._reserved[protocol][port])

    def _without_port(self, own: ForwardEntry, occupied: Callable[[], Sockets | None]) -> Iterator[Waiting]:
        for mapping in own.auto:
            kind = HindranceKind.SOCKETS_UNKNOWN if occupied() is None else HindranceKind.NO_FREE_PORT
            yield from refused_claims(own, mapping, Hindrance(kind, ports=self.config.daemon.auto_ports))

    def _settled(
        self, asks: Iterable[Ask], entries: dict[Key, ForwardEntry], occupied: Callable[[], Sockets | None]
    ) -> Iterator[Waiting]:
        """Reduce each entry to what it gets; what a file says of one domain by its name is claimed already."""
        turns = Turns(self.turns)
        fixed = {ask.key: self.config.forwards[ask.key[0]].mappings for ask in asks if not ask.key[1]}
        asks = [replace(ask, entry=_lacking(ask.entry, fixed.get(ask.key, ()))) for ask in asks]
        got, refused = settle(asks, Claims(before=self._fixed), turns, occupied)
        for ask in asks:
            mappings = *fixed.get(ask.key, ()), *got.get(ask.key, ())
            entries[ask.key] = replace(ask.entry, mappings=mappings)
        self.turns = turns.noted
        yield from refused

    def _unmatched(self, concerned: Iterable[Concerned]) -> Iterator[Waiting]:
        matched = {number for number, _, domain in concerned if domain.running}
        for number, entry in self._open:
            if entry.is_pattern and number not in matched:
                reason = Hindrance(HindranceKind.NO_RUNNING_DOMAIN)
                yield Waiting(Owner(entry.domain), reason, entry.origin, stopped=True)

    def _news(self, concerned: Iterable[Concerned], before: Assignments, now: Assignments) -> tuple[Assigned, ...]:
        """Give the ports that are new, each with the one it replaces, and where that is claimed now."""
        if before is now:
            return ()
        names = {item: (domain.name, entry) for _, entry, domain in concerned for item in _wanted(entry, domain)}
        fresh = [item for item in sorted(names) if item in now and before.get(item, Held(0)).port != now[item].port]
        return tuple(self._assigned(item, *names[item], before.get(item), now[item].port) for item in fresh)

    def _assigned(self, item: AutoPort, name: str, entry: ForwardEntry, before: Held | None, port: int) -> Assigned:
        claimed = None if before is None else self._claimed_at(item.protocol, before.port)
        moved = None if before is None else before.port
        return Assigned(name, item.protocol, item.guest, port, entry.origin, moved, claimed)

    def _claimed_at(self, protocol: Protocol, port: int) -> Origin | None:
        mappings = (mapping for entry in self.config.forwards for mapping in entry.mappings)
        found = (item.origin for item in mappings if item.protocol is protocol and port in item.host)
        return next(found, None)


def _is_wanting(reason: Hindrance) -> bool:
    """Whether the end of a process alone may end it."""
    return reason.kind in _WANTING or (reason.kind is HindranceKind.CLAIMED and not reason.names)


def _without(ports: Assignments, given_up: Collection[AutoPort]) -> Assignments:
    return {item: held for item, held in ports.items() if item not in given_up} if given_up else ports


def _are_alike(one: Assignments, other: Assignments) -> bool:
    """Whether the same are assigned, for however long their domains have been gone."""
    return one is other or (one.keys() == other.keys() and all(one[item].port == other[item].port for item in one))


def _wanted(entry: ForwardEntry, domain: Domain) -> Iterator[AutoPort]:
    return (AutoPort(domain.uuid, mapping.guest, mapping.protocol) for mapping in entry.auto)


def _after_files(every: Sequence[Concerned]) -> tuple[list[Concerned], list[Waiting]]:
    """Drop automatic ports from metadata that a file gives the same domain; give the entries and what is refused.

    A domain has one assigned port for each port of the guest: metadata would open the file's port on its own terms.
    """
    by_files = dict(
        item
        for _, entry, domain in reversed(every)
        if domain.running and not entry.origin.domain
        for item in zip(_wanted(entry, domain), entry.auto, strict=True)
    )
    kept, refused = list[Concerned](), list[Waiting]()
    for number, entry, domain in every:
        pairs = zip(entry.auto, _wanted(entry, domain), strict=True) if entry.origin.domain else ()
        found = {mapping: by_files[item].origin for mapping, item in pairs if item in by_files}
        kept.append((number, replace(entry, auto=tuple(item for item in entry.auto if item not in found)), domain))
        for mapping, origin in found.items():
            reason = Hindrance(HindranceKind.CLAIMED, names=(domain.name,), origin=origin)
            refused += refused_claims(entry, mapping, reason)
    return kept, refused


def _of_domain(entry: ForwardEntry, domain: Domain, ports: Assignments) -> ForwardEntry:
    """Give the entry for one domain, with the ports that are assigned to that."""
    held = {mapping: ports.get(item) for mapping, item in zip(entry.auto, _wanted(entry, domain), strict=True)}
    known = tuple(mapping.at(item.port) for mapping, item in held.items() if item is not None)
    rest = tuple(mapping for mapping, item in held.items() if item is None)
    own = replace(entry, mappings=(*entry.mappings, *known), auto=rest)
    return replace(own, domain=str(domain.uuid), is_pattern=False, called=domain.name) if entry.is_pattern else own


def _lacking(entry: ForwardEntry, mappings: Collection[PortMapping]) -> ForwardEntry:
    left = tuple(mapping for mapping in entry.mappings if mapping not in mappings)
    return replace(entry, mappings=left)


def _reserved(entries: Iterable[ForwardEntry]) -> Mapping[Protocol, bytearray]:
    """Mark the ports that files name, at whatever address: they are never assigned."""
    marks = {protocol: bytearray(65536) for protocol in Protocol}
    for entry in entries:
        for mapping in entry.mappings:
            host = mapping.host
            marks[mapping.protocol][host.first : host.last + 1] = b"\1" * host.width
    return marks


def _where(waiting: Waiting) -> tuple[Origin, str, str]:
    return waiting.origin, waiting.owner.name, str(waiting.claim)
