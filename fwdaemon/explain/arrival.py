"""How the connection's first packet comes to the host: to which address, from whom, through which interface. Pure.

What the user left out is chosen: an address that an entry names or that faces outside, and a client behind it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from fwdaemon.errors import PortfwdError
from fwdaemon.explain.facts import World
from fwdaemon.explain.packet import Packet, Surroundings
from fwdaemon.explain.request import Request
from fwdaemon.inventory import HostAddress
from fwdaemon.model import Address, Family, PortRange, Protocol, show_endpoint

# Anywhere outside; only the way there is asked for. The first is documentation's (RFC 5737), the second the head of
# global unicast (RFC 4291).
_ANYWHERE: Final[Mapping[Family, Address]] = {
    Family.IPV4: IPv4Address("192.0.2.1"),
    Family.IPV6: IPv6Address("2000::1"),
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection as it comes to the host.

    `source` is `None` for somebody outside, for whom `stand_in` is an address that the kernel can be asked about.
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
    """Tell how a connection comes in; `preferred` are addresses to choose from, `bridges` lead to guests.

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


def surroundings(arrival: Arrival, held: Sequence[HostAddress], world: World) -> Surroundings:
    """Gather what rules ask of the host."""
    local: dict[Address, frozenset[str]] = {}
    for own in held:
        local[own.address] = local.get(own.address, frozenset()) | {own.device}
    inner = tuple(own.subnet for own in held if own.device != arrival.came_in and not own.address.is_link_local)
    return Surroundings(local, inner, world.route(arrival.stand_in).device)


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
    """Give the interface that faces a client outside, where the address tells."""
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
