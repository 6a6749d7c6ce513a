"""Grants what domains ask for in their metadata: files go first, then the older claim (`claims.Turns`). Pure.

Nothing is taken from a file where addresses and sources overlap, nor from a live domain that has it. A process of the
host goes before what is asked for anew, and not before what was given earlier.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Final, TypeAlias
from uuid import UUID

from fwdaemon.config.exposures import AskedEntry
from fwdaemon.config.model import AllowEntry, AutoMapping, Config, ForwardEntry, NatEntry, PortMapping
from fwdaemon.core.inventory import (
    Domain,
    Hindrance,
    HindranceKind,
    HostAddress,
    Inventory,
    Network,
    Occupied,
)
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Address, Origin, PortRange, Protocol
from fwdaemon.resolve.claims import Bid, PortsInUse, Sockets, Turn, Turns, located, of_these_runs
from fwdaemon.resolve.expansion import Assignments
from fwdaemon.resolve.guests import nameless
from fwdaemon.resolve.wishes import Asker, Taken, Wish, Wishes, is_live, refusals, wishes

_NO_PORTS: Final[Assignments] = {}
Owners: TypeAlias = Mapping[tuple[Protocol, int], UUID]
"""To which domain a port is assigned."""


@dataclass(frozen=True, slots=True)
class Grants:
    """What metadata asks for, decided: the configuration with what is `given` to domains; the rest is `refused`.

    `taken` are the ports given to live domains: none of them is to be assigned. `misread` are the UUIDs of domains with
    elements that could not be read.
    """

    config: Config
    given: tuple[AskedEntry, ...] = ()
    refused: tuple[Waiting, ...] = ()
    taken: frozenset[tuple[Protocol, int]] = frozenset()
    misread: frozenset[str] = frozenset()

    def occupied(
        self, sockets: Callable[[], Sockets | None], networks: Collection[Network]
    ) -> Callable[[], Sockets | None]:
        """Add the ports of live domains to those of processes: none of either is assigned."""
        of_domains = [Occupied(protocol, None, port, passing=True) for protocol, port in self.taken]

        def every() -> Sockets | None:
            of_processes = sockets()
            return None if of_processes is None else [*located(of_processes, networks), *of_domains]

        return every


class Allocator:
    """Allocates on one inventory after another; where nothing changed, the answer is the same object.

    `turns` are the claims in order, the oldest first.
    """

    def __init__(self, turns: Iterable[Turn] = ()) -> None:
        """Continue a known order of claims."""
        self.turns = tuple(turns)
        self._grants: Grants | None = None
        self._config: Config | None = None
        self._files: Taken | None = None
        self._facts: tuple[object, ...] = ()
        self._local: frozenset[Address] = frozenset()
        self._wishes: dict[UUID, tuple[Domain, Wishes]] = {}
        self._held: tuple[Assignments, Owners] = {}, {}

    def settle(
        self,
        config: Config,
        inventory: Inventory,
        ports: Assignments = _NO_PORTS,
        rebooting: Collection[UUID] = frozenset(),
    ) -> Grants:
        """Give the grants on this inventory; `ports` are assigned, and `rebooting` domains keep what they have."""
        if self._grants is None or config is not self._config:
            self._config, self._facts, self._wishes = config, (), {}
            self._files, self._grants = None, Grants(config)
        asking = tuple(domain for domain in inventory.domains if domain.metadata is not None)
        held = self._held_by(ports) if asking else {}
        unnamed = nameless(asking, inventory.domains)
        of_host = inventory.host_addresses, inventory.lent, inventory.occupied
        facts = asking, unnamed, [domain.instance for domain in asking], of_host, held, rebooting
        if facts == self._facts:
            return self._grants
        share = Share(self._of_files(config, asking), inventory, held, unnamed, Turns(self.turns))
        for domain, wished in self._asked(config, asking, inventory):
            share.ask(domain, wished, live=is_live(domain) or domain.uuid in rebooting)
        share.deal()
        self._facts, self.turns = facts, share.turns
        self._grants = _granted(config, self._grants, share)
        return self._grants

    def _of_files(self, config: Config, asking: Collection[Domain]) -> Taken:
        """Give what files claim; as long as no domain asks for anything, thousands of claims take no memory."""
        if self._files is None and asking:
            self._files = Taken(config.entries)
        return self._files or Taken()

    def _held_by(self, ports: Assignments) -> Owners:
        """Give the ports that are assigned; where thousands are, that takes a while, so it is kept."""
        if self._held[0] is not ports:
            self._held = ports, {(item.protocol, found.port): item.domain for item, found in ports.items()}
        return self._held[1]

    def _asked(
        self, config: Config, asking: Collection[Domain], inventory: Inventory
    ) -> Iterator[tuple[Domain, Wishes]]:
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
        for domain in sorted(asking, key=_place):
            yield domain, self._wishes[domain.uuid][1]


def _granted(config: Config, before: Grants, share: "Share") -> Grants:
    """Give what was dealt; the same objects as far as it is what was granted before."""
    given, refused = tuple(share.given(spread=_has_public(config))), tuple(share.refused)
    if (given, refused) != (before.given, before.refused):
        before = Grants(_with(config, given), given, refused, misread=_misread(refused))
    return before if share.taken == before.taken else replace(before, taken=share.taken)


def _has_public(config: Config) -> bool:
    """Whether guests may have an address of their own: a claim on every address is for none of these."""
    return bool(config.nats) or any(allow.public for allow in config.allows)


def _with(config: Config, given: Iterable[AskedEntry]) -> Config:
    forwards = tuple(entry for entry in given if isinstance(entry, ForwardEntry))
    nats = tuple(entry for entry in given if isinstance(entry, NatEntry))
    return replace(config, forwards=config.forwards + forwards, nats=config.nats + nats)


def _misread(refused: Iterable[Waiting]) -> frozenset[str]:
    return frozenset(item.origin.uuid for item in refused if item.reason.kind is HindranceKind.MISREAD)


def grants(config: Config, inventory: Inventory, ports: Assignments = _NO_PORTS, turns: Iterable[Turn] = ()) -> Grants:
    """Give the grants on a host like `inventory` where `ports` are assigned, and claims have this order."""
    return Allocator(of_these_runs(turns, inventory.domains)).settle(config, inventory, ports)


def _place(domain: Domain) -> tuple[int, int, str]:
    """Put domains in an order that depends on nothing else."""
    return domain.rank, domain.instance, str(domain.uuid)


# Who gets it.


class Share:
    """Deals out what is asked for; `unnamed` are domains that entries do not mean by their name."""

    def __init__(
        self, files: Taken, inventory: Inventory, held: Owners, unnamed: Collection[UUID], turns: Turns
    ) -> None:
        self.refused: list[Waiting] = []
        self._taken, self._unnamed, self._turns = Taken(before=files), unnamed, turns
        self._asked: list[tuple[Bid, int, Wish, Asker]] = []
        self._given: list[tuple[int, AskedEntry]] = []
        self._askers: dict[str, Asker] = {}
        self._local = [host.address for host in inventory.host_addresses if not _is_special(host.address)]
        self._own = {host.address for host in inventory.host_addresses if not _is_lent(host, inventory)}
        known = None if inventory.occupied is None else located(inventory.occupied, inventory.every_network)
        self._used = None if known is None else PortsInUse(known)
        self._owners, self._names = held, {domain.uuid: domain.name for domain in inventory.domains}
        self._held = PortsInUse(Occupied(protocol, None, port) for protocol, port in held)
        self._spent: defaultdict[tuple[UUID, Origin], int] = defaultdict(int)

    @property
    def taken(self) -> frozenset[tuple[Protocol, int]]:
        """The ports given to live domains."""
        return self._taken.ports

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The claims in order, with what came of them."""
        return self._turns.noted

    def ask(self, domain: Domain, wished: Wishes, *, live: bool) -> None:
        """Take in the wishes of a domain; those of one that is not live keep nothing from others."""
        asker = Asker(domain.uuid, None if domain.uuid in self._unnamed else domain.name)
        if live:
            self._turns.keep(domain, [wish.claim for wish in wished if isinstance(wish, Waiting) and wish.claim])
        for wish in wished:
            number = len(self._asked) + len(self._given)
            if isinstance(wish, Waiting):
                self.refused.append(wish)
            elif live:
                self._asked.append((Bid.of(domain, wish.entry), number, wish, asker))
                self._askers[str(domain.uuid)] = asker
            else:
                self._given.append((number, wish.ways[0][1]))

    def deal(self) -> None:
        """Grant what is free, the older claim first."""
        for bid, number, wish, asker in sorted(self._asked, key=lambda item: (*self._turns.before(item[0]), item[1])):
            found = self._found(bid, wish, asker)
            self._turns.note(bid, has=not isinstance(found, Hindrance))
            if isinstance(found, Hindrance):
                self.refused += refusals(wish.entry, bid.domain, found)
                continue
            self._spent[asker.uuid, found[0].origin] += wish.cost
            self._taken.take(wish.entry)
            self._given.append((number, found[1]))

    def given(self, *, spread: bool) -> Iterator[AskedEntry]:
        """Give what was granted, element by element.

        With `spread`, what is asked for on every address is given on each that is not 1:1 another guest's.
        """
        public = self._taken.public()
        others = sorted({address for address in self._local if address not in public}, key=_in_order)
        taken = [(address, public[address]) for address in dict.fromkeys(self._local) if address in public]
        for entry in _joined(entry for _, entry in sorted(self._given, key=itemgetter(0))):
            asker = self._askers.get(entry.domain) if spread and _is_everywhere(entry) else None
            if asker is None or not isinstance(entry, ForwardEntry):
                yield entry
            elif left := (*others, *(address for address, holder in taken if asker.has(holder))):
                yield replace(entry, listen=left)
            else:
                reason = Hindrance(HindranceKind.CLAIMED)
                self.refused += (Waiting(entry.owner, reason, origin, claim=claim) for claim, origin in entry.claims())

    def _found(self, bid: Bid, wish: Wish, asker: Asker) -> tuple[AllowEntry, AskedEntry] | Hindrance:
        """Give the policy to grant it by, and what is granted, or why it is not."""
        spent = self._spent
        way = next((way for way in wish.ways if spent[asker.uuid, way[0].origin] + wish.cost <= way[0].most), None)
        if way is None:
            largest = max((allow for allow, _ in wish.ways), key=lambda allow: allow.most)
            return Hindrance(HindranceKind.NOT_ALLOWED, names=("max", str(largest.most)), origin=largest.origin)
        return self._taken_by(wish.entry, asker, had=self._turns.has(bid)) or way

    def _taken_by(self, entry: AskedEntry, asker: Asker, *, had: bool) -> Hindrance | None:
        if isinstance(entry, NatEntry):
            if entry.public in self._own:
                return Hindrance(HindranceKind.CLAIMED)
        elif (hindrance := self._assigned(entry) or self._occupied(entry, had=had)) is not None:
            return hindrance
        holder = self._taken.holder(entry, asker)
        if holder is None:
            return None
        return Hindrance(HindranceKind.CLAIMED, names=(holder.owner.name,), origin=holder.origin)

    def _assigned(self, entry: ForwardEntry) -> Hindrance | None:
        """Say whether a port is an automatic one, also of the domain itself: a file may be what it has it by."""
        if (port := self._held.first_of(claim for claim, _ in entry.claims())) is None:
            return None
        owners = {owner for (_, assigned), owner in self._owners.items() if assigned == port}
        names = tuple(sorted(self._names[owner] for owner in owners if owner in self._names))
        return Hindrance(HindranceKind.ASSIGNED, names=names, ports=PortRange(port, port))

    def _occupied(self, entry: ForwardEntry, *, had: bool) -> Hindrance | None:
        """Say whether a process of the host was there first; what the domain had already is not taken from it."""
        claims = [claim for claim, _ in entry.claims()]
        if had or not claims:
            return None
        if self._used is None:
            return Hindrance(HindranceKind.SOCKETS_UNKNOWN)
        return None if self._used.first_of(claims) is None else Hindrance(HindranceKind.CLAIMED)


def _is_special(address: Address) -> bool:
    """Whether an address of the host is never one of "every address"."""
    return address.is_loopback or address.is_link_local


def _in_order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _is_everywhere(entry: AskedEntry) -> bool:
    """Whether an entry listens on every address; `_joined` keeps those apart."""
    if not isinstance(entry, ForwardEntry):
        return False
    mappings: tuple[PortMapping | AutoMapping, ...] = (*entry.mappings, *entry.auto)
    return any(None in entry.listens_on(mapping) for mapping in mappings)


def _is_lent(host: HostAddress, inventory: Inventory) -> bool:
    """Whether an interface has an address only because we assigned it for a guest."""
    return host.subnet.prefixlen == host.subnet.max_prefixlen and (host.device, host.address) in inventory.lent


def _joined(entries: Iterable[AskedEntry]) -> list[AskedEntry]:
    """Join the port strings of one element again that listen alike, and are allowed by one policy."""
    found: dict[tuple[object, ...], AskedEntry] = {}
    for number, entry in enumerate(entries):
        listen = entry.listen if isinstance(entry, ForwardEntry) else number
        key = entry.origin, entry.origin.allowed, _is_everywhere(entry), listen
        last = found.setdefault(key, entry)
        if last is not entry and isinstance(last, ForwardEntry) and isinstance(entry, ForwardEntry):
            found[key] = replace(last, mappings=last.mappings + entry.mappings, auto=last.auto + entry.auto)
    return list(found.values())
