"""What must be true on the host, worked out from the model alone. Pure.

This knows nothing of how the product places forwards: it says in its own words what the contract with the user says.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import collapse_addresses, ip_network

from tests.chaos.admission import OFFICE, OFFICE4
from tests.chaos.model import NETWORKS, Domain, Entry, World

ANY = "*"


@dataclass(frozen=True, slots=True, order=True)
class Exposure:
    """One translation the kernel must hold; `protocol` and ports are empty and 0 for a whole address.

    `limits` is what is asked of each source, as the configuration says it.
    """

    version: int
    protocol: str
    listen: str
    first: int
    width: int
    source: str
    target: str
    target_port: int
    limits: str = ""


def live_exposures(world: World) -> frozenset[Exposure]:
    """Every translation that must be there, and there must be no other."""
    return frozenset(
        exposure
        for entry in world.wanted
        if _is_live(entry, world)
        for exposure in _exposures(entry, world.domains[entry.domain])
    )


def _is_live(entry: Entry, world: World) -> bool:
    domain = world.domains[entry.domain]
    return domain.running and world.networks[domain.network] and (entry.by_uuid or domain.name == entry.domain)


def _exposures(entry: Entry, domain: Domain) -> Iterator[Exposure]:
    target, source = domain.address(entry.version), _named(entry.source)
    if entry.public:
        yield Exposure(entry.version, "", entry.public, 0, 0, source, target, 0)
    for port in entry.ports:
        there = target, port.guest
        listens = port.listen or ANY, port.first, port.width
        yield Exposure(entry.version, port.protocol, *listens, source, *there, entry.limits)


def _named(source: str | None) -> str:
    return OFFICE4 if source == f"set:{OFFICE}" else source or ANY


def public_addresses(world: World) -> frozenset[str]:
    """The addresses that the host must hold for 1:1 guests, and no others of them."""
    return frozenset(exposure.listen for exposure in live_exposures(world) if not exposure.protocol)


def guest_subnets(world: World, version: int) -> frozenset[str]:
    """Where connections that turn back into a guest network come from and go to."""
    thirds = [NETWORKS[name] for name in world.active_networks]
    return collapsed(f"192.168.{third}.0/24" if version == 4 else f"2001:db8:{third}::/64" for third in thirds)


def collapsed(subnets: Iterable[str]) -> frozenset[str]:
    """Write the same addresses with as few subnets as possible."""
    return frozenset(str(subnet) for subnet in collapse_addresses(ip_network(subnet) for subnet in subnets))  # type: ignore[type-var]  # of one family


def answering(world: World, protocol: str, address: str, port: int, source: str) -> tuple[Domain, int] | None:
    """Who must answer a client at `source`, and on which port: the most specific live claim that admits it."""
    version = 6 if ":" in address else 4
    if source in world.denied:
        return None
    claims = [
        exposure for exposure in live_exposures(world) if exposure.version == version and _admits(exposure, source)
    ]
    for listen in (address, ANY):
        for claim in claims:
            # Of a 1:1 address every port is the guest's; a forward on every address goes before it.
            ports = range(claim.first, claim.first + claim.width)
            if (claim.protocol, claim.listen) == (protocol, listen) and port in ports:
                return _holder(world, claim.target), claim.target_port + port - claim.first
    whole = next((claim for claim in claims if not claim.protocol and claim.listen == address), None)
    return (_holder(world, whole.target), port) if whole else None


def _admits(exposure: Exposure, source: str) -> bool:
    # The only restriction any entry has is the first three bytes of an address.
    return exposure.source == ANY or source.rpartition(".")[0] == exposure.source.rpartition(".")[0]


def _holder(world: World, target: str) -> Domain:
    return next(domain for domain in world.domains.values() if target in (domain.address4, domain.address6))
