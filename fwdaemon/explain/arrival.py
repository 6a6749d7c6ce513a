"""How the connection's first packet comes to the host: to which address, from which client, by which interface. Pure.

What the user left out is chosen: an address that an entry names or that faces outside, and a client behind it.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from fwdaemon.config.model import Config, Entry, PortMapping
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.inventory import HostAddress
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet, show_endpoint
from fwdaemon.errors import PortfwdError
from fwdaemon.explain.report import World
from fwdaemon.resolve.segments import homes
from fwdaemon.rulesets.packet import Packet, Surroundings
from fwdaemon.rulesets.rules import network_of

# What the user asks about: `198.51.100.7:443/tcp`, `[2001:db8::1]:80`, `:80`, and from where. Pure.
_FORM = re.compile(
    r"(?:(?:\[(?P<six>[^]]*)\]|\*|(?P<four>[^]:/[*]*)):)?(?P<port>[0-9]{1,5})(?:/(?P<protocol>[A-Za-z]+))?", re.ASCII
)
# What is meant as an address, or a network; any other word is the name of a domain.
_ADDRESS: Final = re.compile(r"[0-9.]*|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[^/]*|[^/]*/.*", re.DOTALL)
_LAST_PORT = 65535
_BROADCAST: Final = IPv4Address("255.255.255.255")
_SIX: Final = 6


class UsageError(PortfwdError):
    """The words on the command line cannot be understood."""


@dataclass(frozen=True, slots=True)
class Request:
    """A connection; without `address` to any of the host's, without `source` or `domain` from somewhere outside."""

    protocol: Protocol
    port: int
    address: Address | None = None
    source: Address | None = None
    domain: str = ""

    def __str__(self) -> str:
        return f"{self.protocol} {show_endpoint(self.address, PortRange(self.port, self.port))}"


def parse_request(text: str, source: str | None = None) -> Request:
    """Read the words of the command line; raise `UsageError`."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise UsageError(f"{text!r} is not ADDRESS:PORT[/tcp|udp|sctp]; {_right_form(text)}")
    port = int(form["port"])
    if not 1 <= port <= _LAST_PORT:
        raise UsageError(f"{port} is not a port; write one from 1 to {_LAST_PORT}")
    address = _address(form["four"], IPv4Address) or _address(form["six"], IPv6Address)
    if address is not None:
        _refuse_unheld(address, port)
    if source is not None and _ADDRESS.fullmatch(source) is None:
        return Request(_protocol(form["protocol"]), port, address, domain=source)
    client = None if source is None else _source(source)
    if address is not None and client is not None and address.version != client.version:
        raise UsageError(f"{client} and {address} are of different families, so neither can connect to the other")
    return Request(_protocol(form["protocol"]), port, address, client)


def _right_form(text: str) -> str:
    """Say what to write for what cannot be read as a connection."""
    with suppress(ValueError):
        return f"write the port too, {show_endpoint(ip_address(text.strip('[]')), PortRange(80, 80))}"
    return "write an IPv6 address in brackets" if text.count(":") > 1 else "write one such as 198.51.100.7:443 or :443"


def _refuse_unheld(address: Address, port: int) -> None:
    """Refuse an address that no machine has for itself alone, or that nothing forwards."""
    if address.is_unspecified:
        raise UsageError(f"{address} stands for every address; write :{port} to ask about one of them")
    if address.is_multicast or address == _BROADCAST:
        raise UsageError(f"{address} is a group's, to which no one can connect; write an address that one machine has")
    if address.version == _SIX and address.is_link_local:
        raise UsageError(f"{address} is valid on one link only, and no entry takes it; write another address")


def _address(text: str | None, kind: type[IPv4Address | IPv6Address]) -> Address | None:
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{text!r} is not an IP address; a name would have to be looked up first") from None


def _protocol(text: str | None) -> Protocol:
    try:
        return Protocol((text or Protocol.TCP).lower())
    except ValueError:
        raise UsageError(f"{text!r} is not one of tcp, udp and sctp") from None


def _source(text: str) -> Address | None:
    """Read an address; of a network, take the first one that a client could have, and of all addresses any."""
    if "%" in text:
        raise UsageError(
            f'--from {text!r} names an interface after "%"; --from takes an address that is valid on any link'
        )
    try:
        if "/" not in text:
            return ip_address(text)
        network = network_of(text)
    except ValueError:
        raise UsageError(f"--from {text!r} is neither an address nor a network") from None
    if network.prefixlen == 0:
        return None
    return network[0] if network.num_addresses == 1 else network[1]


# Anywhere outside; only the way there is asked for. The first is documentation's (RFC 5737), the second the head of
# global unicast (RFC 4291).
_ANYWHERE: Final[Mapping[Family, Address]] = {
    Family.IPV4: IPv4Address("192.0.2.1"),
    Family.IPV6: IPv6Address("2000::1"),
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection as it comes to the host.

    `source` is `None` for a client outside, for which `stand_in` is an address that the kernel can be asked about.
    `came_in` is empty for a connection that the host itself opens.
    """

    protocol: Protocol
    address: Address
    port: int
    source: Address | None
    stand_in: Address
    came_in: str

    @property
    def family(self) -> Family:
        """The family of both ends."""
        return Family.of(self.address)

    @property
    def from_host(self) -> bool:
        """Whether the host itself opens it."""
        return not self.came_in

    @property
    def client(self) -> str:
        """Who connects, for people."""
        if self.from_host:
            return "this host itself"
        return f"{self.source or 'a client outside'} through {self.came_in}"

    def as_from(self, source: Address) -> "Arrival":
        """Give the same connection from a client with this address."""
        return replace(self, source=source, stand_in=source)

    def packet(self) -> Packet:
        """Give its first packet."""
        wanted = self.address, self.port
        return Packet(
            self.family, self.protocol, self.source, self.address, self.port, wanted=wanted, came_in=self.came_in
        )

    def __str__(self) -> str:
        return f"{self.protocol} {show_endpoint(self.address, PortRange(self.port, self.port))}"


def arrive(request: Request, preferred: Iterable[Address], bridges: Collection[str], world: World) -> Arrival:
    """Say how a connection comes in; `preferred` are addresses to choose from, `bridges` lead to guests.

    Raises:
        PortfwdError: the host has no address to connect to.

    """
    held = world.addresses()
    address = request.address or _chosen(request, preferred, held, world)
    family, source = Family.of(address), request.source
    if source is None and address.is_loopback:
        source = address
    if source is not None and (source.is_loopback or any(source == own.address for own in held)):
        return Arrival(request.protocol, address, request.port, source, source, "")
    outside = _outside(address, held, bridges)
    if source is not None:
        back = world.route(source)
        came_in = (outside if back.gateway is not None else None) or back.device or outside
        return Arrival(request.protocol, address, request.port, source, source, came_in or "unknown")
    away = world.route(_ANYWHERE[family])
    came_in = outside or away.device or "unknown"
    gateway = away.gateway if away.device == came_in else None
    stand_in = gateway or _neighbour_on(came_in, family, held) or _ANYWHERE[family]
    return Arrival(request.protocol, address, request.port, None, stand_in, came_in)


def between_others(arrival: Arrival, world: World) -> tuple[Arrival, str] | None:
    """Say how what is for another machine comes in, and by which device it leaves, where it would cross the host."""
    route = world.route(arrival.address)
    client = arrival.source or _ANYWHERE[arrival.family]
    came_in = world.route(client).device if arrival.came_in == route.device else arrival.came_in
    if arrival.from_host or route.local or route.device is None or came_in in (None, "lo", route.device):
        return None
    return replace(arrival, came_in=came_in, stand_in=client), route.device


def behind_others(arrival: Arrival, desired: Desired) -> Iterator[Subnet]:
    """Give the subnets of which all that is sent comes in by another interface than a connection did."""
    for home in homes(arrival.family, desired):
        ways = [each.interfaces for each in (home, *home.parts)]
        if all(way is not None and arrival.came_in not in way for way in ways):
            yield home.subnet


def surroundings(
    arrival: Arrival, held: Sequence[HostAddress], world: World, behind: Iterable[Subnet] = ()
) -> Surroundings:
    """Gather what rules ask of the host; `behind` are subnets behind other links than the client's."""
    local: dict[Address, frozenset[str]] = {}
    for own in held:
        local[own.address] = local.get(own.address, frozenset()) | {own.device}
    inner = tuple(own.subnet for own in held if own.device != arrival.came_in and not own.address.is_link_local)
    return Surroundings(local, (*inner, *behind), world.route(arrival.stand_in).device)


def device_of(address: Address, held: Sequence[HostAddress]) -> str | None:
    """Give the interface that holds an address of the host."""
    return next((own.device for own in held if own.address == address), None)


def facing(address: Address, held: Sequence[HostAddress]) -> HostAddress | None:
    """Give an address of the host in whose subnet, on a link, an address would be."""
    return next(
        (
            own
            for own in held
            if own.subnet.version == address.version and address in own.subnet and own.subnet.num_addresses > 1
        ),
        None,
    )


def _chosen(request: Request, preferred: Iterable[Address], held: Sequence[HostAddress], world: World) -> Address:
    """Choose an address: one that an entry names, or else one that faces outside."""
    versions = {request.source.version} if request.source is not None else {family.value for family in Family}
    faces = {family: world.route(_ANYWHERE[family]).device for family in Family if family in versions}
    usable = [own for own in held if not (own.address.is_loopback or own.address.is_link_local)]
    outside = [own.address for own in usable if own.device == faces.get(Family.of(own.address))]
    found = [*preferred, *outside, *(own.address for own in usable)]
    address = next((address for address in found if address.version in versions), None)
    if address is None:
        raise PortfwdError("this host has no address to connect to; name one, ADDRESS:PORT")
    return address


def _outside(address: Address, held: Sequence[HostAddress], bridges: Collection[str]) -> str | None:
    """Give the interface that faces a client outside, where the address shows it."""
    holder = device_of(address, held)
    if holder is None and (own := facing(address, held)) is not None:
        holder = own.device
    return None if holder is None or holder == "lo" or holder in bridges else holder


def _neighbour_on(device: str, family: Family, held: Sequence[HostAddress]) -> Address | None:
    """Give an address that some other host on a link could have."""
    taken = {own.address for own in held}
    for own in held:
        if own.device == device and Family.of(own.address) is family and own.subnet.num_addresses > len(taken) + 1:
            return next(address for address in own.subnet.hosts() if address not in taken)
    return None


# Which entry of the configuration claims a connection, and which comes near. Pure.


@dataclass(frozen=True, slots=True)
class Claim:
    """An entry that claims an address and port; a forward does so by one of its mappings.

    Empty `listen` means every address of the host.
    """

    entry: Entry
    mapping: PortMapping | None = None
    listen: tuple[Address, ...] = ()

    @property
    def origin(self) -> Origin:
        """Where in the configuration it is written."""
        return self.mapping.origin if self.mapping is not None else self.entry.origin

    @property
    def everywhere(self) -> bool:
        """Whether it is a forward on every address."""
        return self.mapping is not None and not self.listen

    @property
    def interface(self) -> str | None:
        """The interface that packets have to come in by."""
        return self.entry.interface

    @property
    def sources(self) -> tuple[Subnet, ...]:
        """Who may connect; anyone if it is empty."""
        return self.entry.sources

    def admits(self, arrival: Arrival) -> bool:
        """Whether its client may connect; one whose address is not known may if any may."""
        if not self.sources:
            return True
        mine = [subnet for subnet in self.sources if Family.of(subnet) is arrival.family]
        return any(arrival.source is None or arrival.source in subnet for subnet in mine)

    def fits(self, arrival: Arrival) -> bool:
        """Whether it can lead there in that family: not if the guest's address is written, and is of the other."""
        return self.entry.address is None or Family.of(self.entry.address) is arrival.family

    def takes_from(self, arrival: Arrival) -> bool:
        """Whether it takes what came in there."""
        return self.interface in (None, arrival.came_in)

    def __str__(self) -> str:
        return self.entry.format(self.listens_at())

    def listens_at(self) -> str:
        """Write where a forward listens, `udp 198.51.100.7:53`."""
        if self.mapping is None:
            return ""
        locations = [show_endpoint(address, self.mapping.host) for address in self.listen or (None,)]
        return f"{self.mapping.protocol} {' and '.join(locations)}"


def claims_on(config: Config, arrival: Arrival) -> list[Claim]:
    """List the claims on a connection's address and port, for any clients; the one that goes first first."""
    forwards = [claim for claim in _forwards(config) if _is_meant(claim, arrival.protocol, arrival.port)]
    return [
        *(claim for claim in forwards if arrival.address in claim.listen),
        *(claim for claim in forwards if claim.everywhere and not arrival.address.is_link_local),
        *(Claim(entry) for entry in config.entries if _takes_whole(entry, arrival)),
    ]


def preferred_addresses(config: Config, request: Request, held: Sequence[HostAddress]) -> Iterator[Address]:
    """Give the addresses that are meant by a port alone, if entries name them."""
    meant = [claim for claim in _forwards(config) if _is_meant(claim, request.protocol, request.port)]
    for claim in meant:
        yield from claim.listen
    bound = {claim.interface for claim in meant if claim.everywhere}
    if meant and None not in bound:
        yield from (own.address for own in held if own.device in bound and not own.address.is_link_local)


def exposure_of(claim: Claim, desired: Desired, arrival: Arrival) -> Exposure | None:
    """Give what is to be live now for a claim on that connection."""

    def serves(exposure: Exposure) -> bool:
        if exposure.family is not arrival.family or exposure.origin != claim.origin:
            return False
        return exposure.claim.takes(arrival.protocol, arrival.address, arrival.port)

    return next(filter(serves, desired.exposures), None)


def endpoint(exposure: Exposure, arrival: Arrival) -> tuple[Address, int]:
    """Give the address and port of the guest that an exposure leads a connection to."""
    return exposure.endpoint(arrival.address, arrival.port)


def nearest(config: Config, arrival: Arrival) -> Claim | None:
    """Give the forward whose writer may have thought that it claims this connection."""
    return min(_forwards(config), key=lambda claim: _distance(claim, arrival), default=None)


def _forwards(config: Config) -> Iterator[Claim]:
    for entry in config.forwards:
        for mapping in entry.mappings:
            yield Claim(entry, mapping, tuple(filter(None, entry.listens_on(mapping))))


def _is_meant(claim: Claim, protocol: Protocol, port: int) -> bool:
    return claim.mapping is not None and claim.mapping.protocol is protocol and port in claim.mapping.host


def _takes_whole(entry: Entry, arrival: Arrival) -> bool:
    """Whether it is for every port of the address."""
    claims = (claim for claim, _ in entry.claims() if claim.ports is None)
    return any(claim.takes(arrival.protocol, arrival.address, arrival.port) for claim in claims)


def _distance(claim: Claim, arrival: Arrival) -> tuple[int, bool]:
    ports = claim.mapping.host if claim.mapping is not None else PortRange(1, 1)
    away = max(ports.first - arrival.port, arrival.port - ports.last, 0)
    return away, claim.mapping is None or claim.mapping.protocol is not arrival.protocol
