"""Which entry of the configuration claims a connection, and which comes near. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fwdaemon.config.model import Config, ForwardEntry, NatEntry, Origin, PortMapping, RouteEntry
from fwdaemon.desired import Desired, Forward, Nat, Opening
from fwdaemon.explain.arrival import Arrival
from fwdaemon.explain.request import Request
from fwdaemon.inventory import HostAddress
from fwdaemon.model import Address, Family, PortRange, Protocol, Subnet, show_endpoint
from fwdaemon.naming import shown

Entry: TypeAlias = ForwardEntry | NatEntry | RouteEntry


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
        return self.entry.interface if isinstance(self.entry, ForwardEntry) else None

    @property
    def sources(self) -> tuple[Subnet, ...]:
        """Who may connect; anyone if it is empty."""
        return self.entry.sources if isinstance(self.entry, ForwardEntry) else ()

    def admits(self, arrival: Arrival) -> bool:
        """Whether its client may connect; one whose address is not known may if anybody may."""
        if not self.sources:
            return True
        mine = [subnet for subnet in self.sources if Family.of(subnet) is arrival.family]
        return any(arrival.source is None or arrival.source in subnet for subnet in mine)

    def fits(self, arrival: Arrival) -> bool:
        """Whether it can lead there in that family: not if the guest's address is written, and is of the other."""
        written = None if isinstance(self.entry, RouteEntry) else self.entry.address
        return written is None or Family.of(written) is arrival.family

    def takes_from(self, arrival: Arrival) -> bool:
        """Whether it takes what came in there."""
        return self.interface in (None, arrival.came_in)

    def __str__(self) -> str:
        match self.entry:
            case NatEntry() as entry:
                return f"makes {entry.public} the guest {shown(entry.domain)}"
            case RouteEntry() as entry:
                return f"routes {entry.subnet} to network {shown(entry.network)}"
            case ForwardEntry() as entry:
                return f"forwards {self.listens_at()} to {shown(entry.domain)}"

    def listens_at(self) -> str:
        """Write where a forward listens, `udp 198.51.100.7:53`."""
        if self.mapping is None:
            return ""
        places = [show_endpoint(address, self.mapping.host) for address in self.listen or (None,)]
        return f"{self.mapping.protocol} {' and '.join(places)}"


def claims_on(config: Config, arrival: Arrival) -> list[Claim]:
    """List the claims on a connection's address and port, whoever may connect; the one that goes first first."""
    forwards = [claim for claim in _forwards(config) if _is_meant(claim, arrival.protocol, arrival.port)]
    return [
        *(claim for claim in forwards if arrival.address in claim.listen),
        *(claim for claim in forwards if claim.everywhere and not arrival.address.is_link_local),
        *(Claim(entry) for entry in config.nats if entry.public == arrival.address),
        *(Claim(entry) for entry in config.routes if _holds(entry.subnet, arrival.address)),
    ]


def preferred_addresses(config: Config, request: Request, held: Sequence[HostAddress]) -> Iterator[Address]:
    """Give the addresses that somebody means who asks for a port alone, if entries tell."""
    meant = [claim for claim in _forwards(config) if _is_meant(claim, request.protocol, request.port)]
    for claim in meant:
        yield from claim.listen
    bound = {claim.interface for claim in meant if claim.everywhere}
    if meant and None not in bound:
        yield from (own.address for own in held if own.device in bound and not own.address.is_link_local)


def opening_of(claim: Claim, desired: Desired, arrival: Arrival) -> Opening | None:
    """Give what is to be live now for a claim on that connection."""

    def serves(opening: Opening) -> bool:
        if opening.family is not arrival.family or opening.origin != claim.origin:
            return False
        if not isinstance(opening, Forward):
            return True
        where = opening.listen in (None, arrival.address)
        return where and opening.protocol is arrival.protocol and arrival.port in opening.ports

    return next(filter(serves, desired.openings), None)


def endpoint(opening: Opening, arrival: Arrival) -> tuple[Address, int]:
    """Give the address and port of the guest that an opening leads a connection to."""
    match opening:
        case Forward():
            return opening.target, opening.target_ports.first + arrival.port - opening.ports.first
        case Nat():
            return opening.target, arrival.port
    return arrival.address, arrival.port


def nearest(config: Config, arrival: Arrival) -> Claim | None:
    """Give the forward whose writer may have thought that it claims this connection."""
    return min(_forwards(config), key=lambda claim: _distance(claim, arrival), default=None)


def _forwards(config: Config) -> Iterator[Claim]:
    for entry in config.forwards:
        for mapping in entry.mappings:
            yield Claim(entry, mapping, (mapping.listen,) if mapping.listen is not None else entry.listen)


def _is_meant(claim: Claim, protocol: Protocol, port: int) -> bool:
    return claim.mapping is not None and claim.mapping.protocol is protocol and port in claim.mapping.host


def _holds(subnet: Subnet, address: Address) -> bool:
    return subnet.version == address.version and address in subnet


def _distance(claim: Claim, arrival: Arrival) -> tuple[int, bool]:
    ports = claim.mapping.host if claim.mapping is not None else PortRange(1, 1)
    away = max(ports.first - arrival.port, arrival.port - ports.last, 0)
    return away, claim.mapping is None or claim.mapping.protocol is not arrival.protocol
