"""What the documentation promises of the first packet of a connection, said plainly and without a look at any rule.

What becomes of it does not depend on packets before, so limits are no part of this: `rate` and `max_open` count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fwdaemon.config.model import Config, Entry, ForwardEntry, NatEntry, PortMapping
from fwdaemon.core.admission import Admission
from fwdaemon.core.types import Address, Subnet
from tests.packets.plan import (
    BANNED,
    BEHIND_GATEWAY,
    BRIDGES,
    HELD,
    HOLDER,
    LINK,
    LINKS,
    LOCAL,
    NAT_NETWORKS,
    NETWORKS,
    UPLINK,
    own_address,
)

# TCP's flags of the first packet of a connection and the answer to it, and of all that follow.
SYN: Final = 0x02
ACK: Final = 0x10


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as `sender` puts it on its link, under the MAC address of `mac`; `flags` are those of TCP."""

    number: int
    sender: str
    mac: str
    source: Address
    source_port: int
    to: Address
    port: int
    protocol: str
    flags: int = SYN


@dataclass(frozen=True, slots=True)
class Fate:
    """Who gets it, and what it looks like there; the host itself is called `host`."""

    where: str
    source: Address
    to: Address
    port: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal by an administrator; one of sources alone is a ban, which holds for everything that is forwarded."""

    port: int | None
    sources: Subnet | None = None
    came_in: str | None = None

    def meets(self, packet: Packet, port: int) -> bool:
        """Whether it is about a packet, which goes to this port of the guest that gets it."""
        return (
            (self.port is None or self.port == port)
            and (self.sources is None or within(packet.source, self.sources))
            and (self.came_in is None or self.came_in == LINK[packet.sender])
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A configuration, what an administrator refuses, and whether the daemon turned forwarding on.

    What libvirt refuses may have been `flushed`. All that was ours may be `gone`, by `kvm-portfwd flush`.
    """

    config: Config
    refusals: tuple[Refusal, ...] = ()
    turned_on: bool = False
    flushed: bool = False
    gone: bool = False


def fate(place: Place, packet: Packet) -> Fate | None:
    """Say what becomes of the first packet of a connection; `None` where it comes to no guest."""
    led = taker(place.config, packet)
    if led and is_kept_out(place.config, led.entry, packet):
        return None
    to, port = (led.target, led.port) if led else (packet.to, packet.port)
    if to in LOCAL:
        return Fate("host", packet.source, to, port)
    if not _passes(place, packet, led, port):
        return None
    return Fate(HOLDER[to], _shown(place.config, packet, led, LINK[HOLDER[to]]), to, port)


# --- where it is led -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Led:
    """What takes a packet, and where that leads; of several, the one with the lowest rank has it."""

    entry: ForwardEntry | NatEntry
    rank: int
    target: Address
    port: int

    @property
    def interface(self) -> str | None:
        """The one it has to come in by, if any will not do."""
        return self.entry.interface if isinstance(self.entry, ForwardEntry) else None

    @property
    def masquerades(self) -> bool:
        """Whether the guest is to see an address of the host."""
        return isinstance(self.entry, ForwardEntry) and self.entry.masquerade


def taker(config: Config, packet: Packet) -> Led | None:
    """One address goes before every address, any forward before a 1:1 NAT; a forged source is not believed."""
    if is_forged(config, packet):
        return None
    came_in = LINK[packet.sender]
    claims = [led for led in claims_on(config, packet) if led.interface in (None, came_in)]
    return min(claims, key=lambda led: led.rank, default=None)


def is_forged(config: Config, packet: Packet) -> bool:
    """Whether the source is of guests, or on a link of the host, by another interface than the one it came in by."""
    if _among(packet.source, BEHIND_GATEWAY):
        return False
    homes = {**LINKS, **NETWORKS, **{route.subnet: BRIDGES[1] for route in config.routes}}
    return any(within(packet.source, home) and LINK[packet.sender] != link for home, link in homes.items())


def claims_on(config: Config, packet: Packet) -> Iterator[Led]:
    """Give all that would take a packet, by whatever interface it came in."""
    for entry in config.forwards:
        if (not entry.sources or _among(packet.source, entry.sources)) and _is_named(config, entry.admission, packet):
            yield from _forwards(entry, packet)
    for nat in config.nats:
        if nat.public == packet.to:
            yield Led(nat, 2, address_of(nat.domain, nat.public), packet.port)


def _forwards(entry: ForwardEntry, packet: Packet) -> Iterator[Led]:
    for mapping in entry.mappings:
        if mapping.protocol == packet.protocol and packet.port in mapping.host:
            listens = [mapping.listen] if mapping.listen else list(entry.listen)
            rank = 0 if packet.to in listens else 1
            if rank == 0 or (not listens and packet.to in LOCAL):
                yield Led(entry, rank, address_of(entry.domain, packet.to), _shifted(mapping, packet.port))


def _shifted(mapping: PortMapping, port: int) -> int:
    return port - mapping.host.first + mapping.guest.first


def address_of(domain: str, like: Address) -> Address:
    """Give a guest's address of the same family as another."""
    return next(address for address in HELD[domain] if address.version == like.version)


# --- who is kept out -------------------------------------------------------------------------------------------------


def is_kept_out(config: Config, entry: Entry, packet: Packet) -> bool:
    """Whether an entry that takes a packet refuses it for its source, or the daemon does so for every entry."""
    asked = [each for each in (config.daemon.barred, entry.admission) if each is not None]
    denied = any(_among(packet.source, each.deny) or _in_sets(config, each.denied, packet) for each in asked)
    return denied or not _is_named(config, entry.admission, packet)


def _is_named(config: Config, asked: Admission | None, packet: Packet) -> bool:
    if asked is None or not (asked.sources or asked.sets):
        return True
    return _among(packet.source, asked.sources) or _in_sets(config, asked.sets, packet)


def _in_sets(config: Config, names: Iterable[str], packet: Packet) -> bool:
    held = {item.name: BANNED if item.external else item.networks for item in config.sets}
    return any(_among(packet.source, held[name]) for name in names)


def _is_kept_from_routes(config: Config, packet: Packet) -> bool:
    """Whether a route keeps it out, where neither libvirt nor others might: guests of its own bridge are no clients.

    From elsewhere, who forges a source that a route names is kept out too; a set that denies does not know who that is.
    """
    routes = [route for route in config.routes if within(packet.to, route.subnet)]
    if not routes or packet.to in LOCAL or LINK[HOLDER[packet.to]] != BRIDGES[1]:
        return False
    (route,) = routes
    asked = route.admission
    if LINK[packet.sender] == BRIDGES[1] and (is_forged(config, packet) or not _is_named(config, asked, packet)):
        return False
    if is_forged(config, packet):
        return asked is not None and bool(asked.sources or asked.sets)
    return is_kept_out(config, route, packet)


# --- whether it passes -----------------------------------------------------------------------------------------------


def _passes(place: Place, packet: Packet, led: Led | None, port: int) -> bool:
    """Bans hold for all, other refusals for what guests open; then ours let it in, or libvirt's, or none decides."""
    came_in, goes_out = LINK[packet.sender], LINK[HOLDER[led.target if led else packet.to]]
    met = [refusal for refusal in place.refusals if refusal.meets(packet, port)]
    if any(refusal.sources for refusal in met):
        return False
    if led:
        return True
    if goes_out == UPLINK and _is_impostor(place.config, packet):
        return False
    if _is_kept_from_routes(place.config, packet):
        return False
    if is_routed(place.config, packet):
        return True
    return not met and _libvirt_lets(place, packet, came_in, goes_out)


def is_refused(place: Place, packet: Packet, port: int, *, ours: bool) -> bool:
    """Whether an administrator refuses a packet of a connection that goes on, which goes to this port of its receiver.

    What is ours, since an exposure let its first packet in, passes all but bans.
    """
    met = [refusal for refusal in place.refusals if refusal.meets(packet, port)]
    return any(refusal.sources or not ours for refusal in met)


def is_let_in(config: Config, packet: Packet) -> bool:
    """Whether an exposure lets in what a packet begins, and no rule of others is asked."""
    led = taker(config, packet)
    return not is_kept_out(config, led.entry, packet) if led else is_routed(config, packet)


def is_routed(config: Config, packet: Packet) -> bool:
    """Whether a route lets it in, or out where libvirt would refuse that."""
    if packet.to in LOCAL:
        return False
    routes = [route.subnet for route in config.routes if not is_kept_out(config, route, packet)]
    enters = LINK[HOLDER[packet.to]] == BRIDGES[1] and _among(packet.to, routes) and not is_forged(config, packet)
    return enters or leaves_by_route(config, packet)


def leaves_by_route(config: Config, packet: Packet) -> bool:
    """Whether a routed guest opens it to the outside, and a route lets it do so: libvirt does for its own subnets."""
    away = packet.to not in LOCAL and LINK[HOLDER[packet.to]] == UPLINK
    let_out = away and LINK[packet.sender] == BRIDGES[1] and not _among(packet.source, NETWORKS)
    return let_out and _among(packet.source, (route.subnet for route in config.routes))


def _is_impostor(config: Config, packet: Packet) -> bool:
    """Whether it has the address of a 1:1 guest, and is not from it as far as bridge and MAC address tell."""
    owners = [nat.domain for nat in config.nats if address_of(nat.domain, nat.public) == packet.source]
    return any(LINK[packet.sender] != LINK[owner] or packet.mac != owner for owner in owners)


def _libvirt_lets(place: Place, packet: Packet, came_in: str, goes_out: str) -> bool:
    """Libvirt lets guests out and to their neighbours, and lets no one in; it says nothing of other interfaces.

    Where forwarding was off before us, no one gets in without its rules, either; here it stays on once we are gone.
    """
    if place.flushed and place.gone:
        return True
    if came_in in BRIDGES and came_in == goes_out:
        return True
    if goes_out in BRIDGES:
        return False
    if came_in in BRIDGES:
        return place.flushed or any(
            within(packet.source, subnet) for subnet, bridge in NETWORKS.items() if bridge == came_in
        )
    return not place.turned_on


# --- which client the receiver sees ----------------------------------------------------------------------------------


def _shown(config: Config, packet: Packet, led: Led | None, goes_out: str) -> Address:
    """The client's own address, but for hairpin, masquerade, and what 1:1 and libvirt's guests open themselves."""
    host = own_address(goes_out, packet.to.version)
    if led and led.masquerades:
        return host
    inner = _among(packet.source, NETWORKS)
    public = public_of(config, packet.source)
    if led:
        return (public or host) if inner else packet.source
    if goes_out == UPLINK and public:
        return public
    home = [subnet for subnet in NAT_NETWORKS if within(packet.source, subnet)]
    return host if home and not within(packet.to, home[0]) else packet.source


def public_of(config: Config, source: Address) -> Address | None:
    """Give what a 1:1 guest leaves with: the first of its public addresses."""
    own = [nat.public for nat in config.nats if address_of(nat.domain, nat.public) == source]
    return min(own, key=int, default=None)


def _among(address: Address, subnets: Iterable[Subnet]) -> bool:
    return any(within(address, subnet) for subnet in subnets)


def within(address: Address, subnet: Subnet) -> bool:
    return address.version == subnet.version and address in subnet
