"""What exposures, or entries that may become some, take of what comes to this host. Pure."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from operator import attrgetter, itemgetter
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from fwdaemon.config.model import Config, ForwardEntry
from fwdaemon.config.overlap import families_of_entry
from fwdaemon.core.exposures import Claim, Kind, Owner
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family, Listener, Origin, PortRange, Protocol, Subnet

# Finds what has to do with a range of ports without looking at everything. Pure.
_T = TypeVar("_T")

# What has more ports than this is looked at each time: else it would have to be looked for far below each port.
_WIDE: Final = 64
_HIGHEST: Final = 65535


class PortIndex(Generic[_T]):
    """Items by the ports that each of them has."""

    def __init__(self, items: Iterable[tuple[PortRange, _T]]) -> None:
        ordered = sorted(items, key=itemgetter(0))
        self._wide = [item for item in ordered if item[0].width > _WIDE]
        self._narrow = [item for item in ordered if item[0].width <= _WIDE]
        self._firsts = [ports.first for ports, _ in self._narrow]

    def meeting(self, ports: PortRange) -> Iterator[_T]:
        """Give the items that have any of these ports."""
        begin = bisect_left(self._firsts, ports.first - _WIDE + 1)
        end = bisect_right(self._firsts, ports.last)
        for found, item in self._narrow[begin:end]:
            if found.last >= ports.first:
                yield item
        for found, item in self._wide:
            if found.overlaps(ports):
                yield item


class PortSet:
    """Ports by their numbers; whether a range has one of them is found without looking at each, however wide it is."""

    def __init__(self, ranges: Iterable[PortRange]) -> None:
        self._marks = bytearray(_HIGHEST + 1)
        for ports in ranges:
            self._marks[ports.first : ports.last + 1] = b"\1" * ports.width

    def met_by(self, ranges: Iterable[PortRange]) -> list[bool]:
        """Tell of each range whether it has one of them; there may be thousands, nearly all of one port."""
        marks, ends = self._marks, map(attrgetter("first", "last"), ranges)
        return [marks[first] > 0 if first == last else marks.find(1, first, last + 1) >= 0 for first, last in ends]


EVERY_PORT: Final = PortRange(1, 65535)
_ALL: Final = PortSet([EVERY_PORT])


@dataclass(frozen=True, slots=True)
class Entry:
    """What the takings of one port string have in common, whatever their family; see `Taking`.

    Where it `is_restricted`, some connections to its ports are none of its business. Where it `yields`, as a pattern
    does, it takes nothing from a process that was there first.
    """

    domain: str
    origin: Origin | None
    protocol: Protocol | None
    address: Address | None
    ports: PortRange
    interface: str | None
    is_restricted: bool
    yields: bool = False

    @property
    def noun(self) -> str:
        """What it takes, in one word."""
        return "datagrams" if self.protocol is Protocol.UDP else "connections"

    def show_port(self, protocol: Protocol, port: int) -> str:
        """Name one of its ports, with the protocol only where it takes several."""
        return f"{port}/{protocol}" if self.protocol is None else str(port)

    def reaching(self, whence: str) -> str:
        """Say what reaches whom: `connections from outside`, or only those that a restricted forward takes."""
        return f"the {self.noun} that the forward takes" if self.is_restricted else f"{self.noun} {whence}"

    def sentence(self, what: str) -> str:
        """Make a sentence of it, with the place in the configuration at its end."""
        return f"{self}: {what}" + (f" ({self.origin})" if self.origin else "")

    @property
    def owner(self) -> str:
        """The domain, for people."""
        return shown(self.domain)

    def __str__(self) -> str:
        if self.protocol is None:
            return f"all of {self.address}"
        ports = f"port{'' if self.ports.width == 1 else 's'} {self.ports}/{self.protocol}"
        return ports if self.address is None else f"{ports} of {self.address}"


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
        """What tells it from the takings of other port strings."""
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


# How several things are named in one sentence. Pure.
_MOST: Final = 3


def listed(items: Sequence[str]) -> str:
    """Name at most three, and say how many more there are: `a, b, c and 4 more`."""
    more = [f"{len(items) - _MOST} more"] if len(items) > _MOST else []
    *first, last = [*items[:_MOST], *more]
    return f"{', '.join(first)} and {last}" if first else last


# Processes of the host that listen where an exposure takes what comes. Pure.
#
# What an exposure takes never reaches a process of the host: it is translated before the kernel looks for a socket.
# That holds for the addresses of bridges too. A forward of port 53 on every address takes what guests ask dnsmasq at
# the gateway of their network, so libvirt's own dnsmasq counts like any other process; one for the packets of a single
# interface leaves them alone.
_SSH_PORT: Final = 22

_Rank: TypeAlias = tuple[bool, str, int]


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
            # Whom guests ask there, no packet from another interface is for.
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


class Holder(NamedTuple):
    """A process, by the name and number that the kernel tells, and one of its sockets."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class ListenerConflict:
    """An entry and the processes that it takes from; `places` are where they listen, unless that is where it does."""

    entry: Entry
    holders: tuple[Holder, ...]
    places: tuple[str, ...]

    def sentence(self) -> str:
        """See `fwdaemon.core.report.Conflict`."""
        entry, who = self.entry, self._who()
        verb = "listens" if len(who) == 1 else "listen"
        place, whence = (f" on {listed(self.places)}", "there") if self.places else ("", "from outside")
        follows = f"{entry.reaching(whence)} will reach {entry.owner} instead"
        if entry.yields:
            follows = f"no domain {entry.owner} is given the port before that ends"
        return entry.sentence(f"{listed(who)} of the host {verb} there{place}; {follows}")

    def _who(self) -> Sequence[str]:
        """Name each holder once, or once for each port of several."""
        if self.entry.ports.width == 1:
            return list(dict.fromkeys(shown(holder.name) for holder in self.holders))
        show = self.entry.show_port
        return [f"{shown(name)} at port {show(protocol, port)}" for name, protocol, port in self.holders]


def conflicts(found: Iterable[ShadowedListeners], names: Mapping[int, str]) -> Iterator[ListenerConflict]:
    """Give each with the names of processes by the inodes of their sockets, which may hold anything."""
    for item in sorted(found, key=lambda item: (min(map(_rank, item.sockets)), str(item.entry))):
        bound = {socket.address or socket.device for socket in item.sockets}
        places = () if bound & {None, item.entry.address} else tuple(sorted(map(str, bound)))
        yield ListenerConflict(item.entry, tuple(_holders(item.sockets, names)), places)


def _holders(sockets: Iterable[Listener], names: Mapping[int, str]) -> Iterable[Holder]:
    """Give each holder once for each port, sshd first: without it nobody gets in any more."""

    def name(socket: Listener) -> str:
        return names.get(socket.inode, "a process")

    def order(socket: Listener) -> tuple[bool, _Rank, str]:
        return not name(socket).startswith("ssh"), _rank(socket), name(socket)

    ordered = sorted(sockets, key=order)
    return dict.fromkeys(Holder(name(socket), socket.protocol, socket.port) for socket in ordered)


def _rank(socket: Listener) -> _Rank:
    return socket.port != _SSH_PORT, socket.protocol, socket.port
