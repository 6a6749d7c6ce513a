"""What exposures, or entries that may become some, take of what comes to this host, and from which clients. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from itertools import chain, compress
from operator import attrgetter
from typing import Final, TypeAlias

from fwdaemon.config.model import Config, ForwardEntry
from fwdaemon.config.overlap import families_of_entry
from fwdaemon.core.conflicts import Entry, Holder, ListenerConflict, Order, RuleConflict
from fwdaemon.core.exposures import Claim, Kind, Owner
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Listener, Origin, PortIndex, PortRange, PortSet, Protocol, Subnet
from fwdaemon.rulesets.nat_chains import Field, Scope, Translation, Value, both
from fwdaemon.rulesets.packet import ADMIN, RuleLocation, System, owner_of

EVERY_PORT: Final = PortRange(1, 65535)
_ALL: Final = PortSet([EVERY_PORT])


@dataclass(frozen=True, slots=True)
class Taking:
    """What one exposure of one family takes, for `domain`.

    A `protocol` of `None` is all of them with every port, an `address` of `None` every address of the host. `shared`
    says that what listens on every address would get it otherwise: not so where the address is there for the guest
    alone.
    """

    domain: str
    origin: Origin | None
    family: Family
    protocol: Protocol | None
    address: Address | None
    ports: PortRange
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()
    shared: bool = True
    yields: bool = False

    @property
    def entry(self) -> Entry:
        """What distinguishes it from the takings of other port strings."""
        is_restricted = self.interface is not None or bool(self.sources)
        where = self.protocol, self.address, self.ports, self.interface
        return Entry(self.domain, self.origin, *where, is_restricted, self.yields)


def takings(desired: Desired, local: Collection[Address], watched: PortSet = _ALL) -> Iterator[Taking]:
    """Give what is taken of the ports in `watched`, and what has every port; `local` are the host's addresses.

    A route takes nothing that would be the host's.
    """
    own = frozenset(local) - {nat.public for nat in desired.nats if nat.assign is not None}
    meeting = watched.met_by(map(attrgetter("ports"), desired.forwards))
    others = (found for kind, found in desired.by_kind.items() if kind is not Kind.FORWARD)
    for exposure in chain(compress(desired.forwards, meeting), chain.from_iterable(others)):
        yield from _of_claim(exposure.claim, exposure.owner, exposure.origin, own)


def takings_if_running(config: Config, local: Collection[Address], watched: PortSet = _ALL) -> Iterator[Taking]:
    """Give what would be taken if all domains ran, and had addresses of every family an entry allows."""
    own = frozenset(local) - {nat.public for nat in config.nats if nat.assign is not None}
    claims = [(entry, claim, origin) for entry in config.entries for claim, origin in entry.claims()]
    meeting = watched.met_by(claim.ports or EVERY_PORT for _, claim, _ in claims)
    for entry, claim, origin in compress(claims, meeting):
        for family in families_of_entry(entry) & ({claim.family} if claim.family is not None else frozenset(Family)):
            sources = tuple(source for source in claim.sources if Family.of(source) is family)
            yields = isinstance(entry, ForwardEntry) and entry.is_pattern
            for taking in _of_claim(claim._replace(family=family, sources=sources), entry.owner, origin, own):
                yield replace(taking, yields=yields)


def _of_claim(claim: Claim, owner: Owner, origin: Origin | None, own: Collection[Address]) -> Iterator[Taking]:
    """Give what a claim of one family takes, if anything; `own` are addresses that are there for the host."""
    if claim.subnet is None and claim.family is not None:
        where = claim.family, claim.protocol, claim.address, claim.ports or EVERY_PORT
        shared = claim.address is None or claim.address in own
        yield Taking(owner.name, origin, *where, claim.interface, claim.sources, shared)


# Processes of the host that listen where an exposure takes what comes. Pure.
#
# What an exposure takes never reaches a process of the host: it is translated before the kernel looks for a socket.
# That holds for the addresses of bridges too. A forward of port 53 on every address takes what guests ask dnsmasq at
# the gateway of their network, so libvirt's own dnsmasq counts like any other process; one for the packets of a single
# interface leaves them alone.
_SSH_PORT: Final = 22

_Rank: TypeAlias = tuple[bool, str, int]
_Ports: TypeAlias = tuple[PortRange, Protocol | None]


@dataclass(frozen=True, slots=True)
class ShadowedListeners:
    """An entry and the sockets it takes from, which are never none."""

    entry: Entry
    sockets: tuple[Listener, ...]


def shadowed_listeners(
    takings: Iterable[Taking], sockets: Iterable[Listener], clients: PortRange, guest_subnets: Collection[Subnet]
) -> list[ShadowedListeners]:
    """Find every socket that an exposure takes from; `clients` are the ports the kernel gives to clients."""
    index = PortIndex((PortRange(socket.port, socket.port), socket) for socket in sockets)
    found: defaultdict[Entry, dict[Listener, None]] = defaultdict(dict)
    for taking in takings:
        for socket in index.meeting(taking.ports):
            if _takes_from(taking, socket, guest_subnets) and not _may_be_client(taking, socket, clients):
                found[taking.entry][socket] = None
    return [ShadowedListeners(entry, tuple(sockets)) for entry, sockets in found.items()]


def _takes_from(taking: Taking, socket: Listener, guest_subnets: Collection[Subnet]) -> bool:
    if not _could_take_from(taking, socket):
        return False
    match socket.address:
        case None:
            return taking.shared and socket.device != "lo"
        case address if address.is_loopback or address.is_link_local or address.is_multicast:
            # Never "every address", and no forward can name one.
            return False
        case address if taking.interface is not None and any(address in subnet for subnet in guest_subnets):
            # No packet from another interface is for what guests ask there.
            return False
        case address:
            return taking.address in (None, address)


def _could_take_from(taking: Taking, socket: Listener) -> bool:
    """Whether they agree in everything but the address."""
    if taking.protocol not in (None, socket.protocol) or taking.family not in socket.families:
        return False
    return taking.interface is None or socket.device in (None, taking.interface)


def _may_be_client(taking: Taking, socket: Listener, clients: PortRange) -> bool:
    """Whether it may be a client that waits for an answer: over UDP such a socket looks like a server's.

    Clients come and go by the second, and answers to them are not taken. So where a forward has many ports, those that
    clients use are passed over; one that is named singly is meant.
    """
    return socket.protocol is Protocol.UDP and taking.ports.width > 1 and socket.port in clients


def listener_conflicts(found: Iterable[ShadowedListeners], names: Mapping[int, str]) -> Iterator[ListenerConflict]:
    """Give each with the names of processes by the inodes of their sockets, which may hold anything."""
    for item in sorted(found, key=lambda item: (min(map(_rank, item.sockets)), _rank_of_entry(item.entry))):
        bound = {socket.address or socket.device for socket in item.sockets}
        places = () if bound & {None, item.entry.address} else tuple(sorted(map(str, bound)))
        yield ListenerConflict(item.entry, tuple(_holders(item.sockets, names)), places)


def _holders(sockets: Iterable[Listener], names: Mapping[int, str]) -> Iterable[Holder]:
    """Give each holder once for each port, sshd first: without it no one gets in any more."""

    def name(socket: Listener) -> str:
        return names.get(socket.inode, "")

    def order(socket: Listener) -> tuple[bool, _Rank, str]:
        return not name(socket).startswith("ssh"), _rank(socket), name(socket)

    ordered = sorted(sockets, key=order)
    return dict.fromkeys(Holder(name(socket), socket.protocol, socket.port) for socket in ordered)


def _rank(socket: Listener) -> _Rank:
    return socket.port != _SSH_PORT, socket.protocol, socket.port


def _rank_of_entry(entry: Entry) -> tuple[object, ...]:
    """Order entries by what they take, then by whom it is for; no two have the same place."""
    address, origin = entry.address, entry.origin
    where = (0, 0) if address is None else (address.version, int(address))
    place = ("", 0, "", "") if origin is None else (str(origin.file), origin.line, origin.domain, origin.uuid)
    what = entry.ports, entry.protocol or "", where, entry.interface or "", entry.is_restricted
    return *what, entry.yields, entry.domain, place


# Rules of other tools that translate what an exposure takes, and whose come first.


@dataclass(frozen=True, slots=True)
class ChainLocation:
    """In which rule system our own translation is, and the priority of its chain."""

    system: System
    priority: int

    def order(self, other: Translation) -> Order:
        """Say whose rule comes first.

        Chains of one priority are called in the reverse order of their making (nf_hook_entries_grow), which no listing
        shows; but in the table nat of iptables ours is the first rule of the chain.
        """
        if other.priority != self.priority:
            return Order.THEIRS if other.priority < self.priority else Order.OURS
        return Order.OURS if other.location.system is self.system is System.LEGACY else Order.UNKNOWN


@dataclass(slots=True)
class _Rules:
    """The rules of another tool that were found for an entry, and the ports that are in question.

    Ports come with their protocol, or with none where the entry has but one.
    """

    locations: set[RuleLocation] = field(default_factory=set)
    ports: set[_Ports] = field(default_factory=set)


def rule_conflicts(
    takings: Iterable[Taking], others: Sequence[Translation], ours: ChainLocation, local: Collection[Address]
) -> list[RuleConflict]:
    """Give each entry with each other tool that translates what it takes, the lowest port first.

    `local` are the host's addresses.
    """
    index = PortIndex((ports, other) for other in others for ports in ports_of(other.scope))
    here = {family: tuple(_subnets(local, family)) for family in Family}
    found: dict[tuple[Entry, str, Order], _Rules] = {}
    for taking in takings:
        for other in index.meeting(taking.ports):
            order = ours.order(other)
            if not _concerns(other, taking, order):
                continue
            shared = both(_scope(taking, here[taking.family]), other.scope)
            if shared is not None:
                rules = found.setdefault((taking.entry, owner_of(other.location), order), _Rules())
                rules.locations.add(other.location)
                rules.ports.update(_ports_in_question(taking, shared))
    conflicts = (
        RuleConflict(entry, None if owner == ADMIN else owner, order, _where(rules), _worth_naming(entry, rules.ports))
        for (entry, owner, order), rules in found.items()
    )
    return sorted(conflicts, key=lambda item: (_rank_of_entry(item.entry), item.owner or "", item.order))


def _worth_naming(entry: Entry, ports: Iterable[_Ports]) -> tuple[_Ports, ...]:
    """Sort the ports in question, unless the entry has one alone, or it is all of them."""
    several = (item for item in ports if entry.ports.width > 1 and item[0] != EVERY_PORT)
    return tuple(sorted(several, key=lambda item: (item[0], item[1] or "")))


def _subnets(local: Iterable[Address], family: Family) -> Iterator[Value]:
    """Give the host's addresses of a family that can be reached from elsewhere."""
    yield from (ip_network(item) for item in local if Family.of(item) is family and not item.is_loopback)


def _concerns(other: Translation, taking: Taking, order: Order) -> bool:
    """Whether a rule may be about an exposure.

    One for all addresses, which ours comes before, is not meant for an address that is there for one guest alone.
    """
    if other.location.family not in ("inet", taking.family.word):
        return False
    return taking.shared or order is not Order.OURS or Field.DESTINATION in other.scope


def _scope(taking: Taking, here: tuple[Value, ...]) -> Scope:
    scope: dict[Field, tuple[Value, ...]] = {
        Field.DESTINATION: here if taking.address is None else (ip_network(taking.address),)
    }
    if taking.protocol is not None:
        scope |= {Field.PROTOCOL: (taking.protocol,), Field.PORT: (taking.ports,)}
    if taking.interface is not None:
        scope[Field.INTERFACE] = (taking.interface,)
    if taking.sources:
        scope[Field.SOURCE] = taking.sources
    return scope


def ports_of(scope: Scope) -> Sequence[PortRange]:
    """Give the ports that a scope has, which are all where it names none."""
    found = scope.get(Field.PORT, (EVERY_PORT,))
    return [ports for ports in found if isinstance(ports, PortRange)]


def _ports_in_question(taking: Taking, shared: Scope) -> set[_Ports]:
    named = shared.get(Field.PROTOCOL, ()) if taking.protocol is None else ()
    several: list[Protocol | None] = [protocol for protocol in named if isinstance(protocol, Protocol)]
    return {(ports, protocol) for protocol in several or [None] for ports in ports_of(shared)}


def _where(rules: _Rules) -> str:
    """Name the first of the chains, so that it is the same the next time."""
    location = min(
        rules.locations, key=lambda location: (location.system, location.family, location.table, location.chain)
    )
    return location.chain_name
