"""What openings, or entries that may become some, take of what comes to this host. Pure."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import compress
from operator import attrgetter
from typing import Final, TypeAlias

from fwdaemon.clashes.port_index import PortSet
from fwdaemon.config.contradictions import families_of, families_of_entry
from fwdaemon.config.model import Config, ForwardEntry, Origin
from fwdaemon.desired import Desired, Forward, Nat
from fwdaemon.model import Address, Family, PortRange, Protocol, Subnet
from fwdaemon.naming import shown

LOCALHOST: Final = IPv4Address("127.0.0.1")
EVERY_PORT: Final = PortRange(1, 65535)
_ALL: Final = PortSet([EVERY_PORT])
_UNKNOWN: Final[dict[Family, Address]] = {Family.IPV4: IPv4Address(0), Family.IPV6: IPv6Address(0)}

Entry: TypeAlias = tuple[str, Origin | None, Protocol | None, Address | None, PortRange, str | None]
"""What the takings of one port string have in common, whatever their family."""


@dataclass(frozen=True, slots=True)
class Taking:
    """What one opening of one family takes, for `domain`.

    A `protocol` of `None` is all of them with every port, an `address` of `None` every address of the host. `shared`
    says that what listens on every address would get it otherwise: not so where the address is there for the guest
    alone. `localhost` has it take 127.0.0.1 too.
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
    localhost: bool = False

    @property
    def entry(self) -> Entry:
        """What tells it from the takings of other port strings."""
        return self.domain, self.origin, self.protocol, self.address, self.ports, self.interface

    @property
    def is_restricted(self) -> bool:
        """Whether some connections to its ports are none of its business."""
        return self.interface is not None or bool(self.sources)

    @property
    def is_one_port(self) -> bool:
        """Whether it takes no more than one port."""
        return self.ports.width == 1

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

    def tell(self, what: str) -> str:
        """Make a sentence of it, with the place in the configuration at its end."""
        return f"{self}: {what}" + (f" ({self.origin})" if self.origin else "")

    @property
    def owner(self) -> str:
        """The domain, for people."""
        return shown(self.domain)

    def __str__(self) -> str:
        if self.protocol is None:
            return f"all of {self.address}"
        ports = f"port{'' if self.is_one_port else 's'} {self.ports}/{self.protocol}"
        return ports if self.address is None else f"{ports} of {self.address}"


def takings(desired: Desired, local: Collection[Address], watched: PortSet = _ALL) -> Iterator[Taking]:
    """Give what is taken of the ports in `watched`, and what has every port; `local` are the host's addresses.

    A route takes nothing that would be the host's.
    """
    own = frozenset(local) - {nat.public for nat in desired.nats if nat.assign is not None}
    meeting = watched.met_by(map(attrgetter("ports"), desired.forwards))
    for forward in compress(desired.forwards, meeting):
        yield Taking(
            forward.domain,
            forward.origin,
            forward.family,
            forward.protocol,
            forward.listen,
            forward.ports,
            forward.interface,
            forward.sources,
            shared=forward.listen is None or forward.listen in own,
            localhost=desired.localhost and _answers_on_localhost(forward),
        )
    for nat in desired.nats:
        shared = nat.public in own
        yield Taking(nat.domain, nat.origin, nat.family, None, nat.public, EVERY_PORT, shared=shared)


def _answers_on_localhost(forward: Forward) -> bool:
    everywhere = forward.listen is None and forward.interface is None and forward.family is Family.IPV4
    return everywhere and (not forward.sources or any(LOCALHOST in source for source in forward.sources))


# --- without libvirt -------------------------------------------------------------------------------------------------


def as_if_running(config: Config, guest_subnets: Collection[Subnet] = ()) -> Desired:
    """Give what would be open if all domains ran, with addresses of every family an entry allows."""
    nats = (
        Nat(nat.domain, nat.public, _UNKNOWN[Family.of(nat.public)], nat.assign, origin=nat.origin)
        for nat in config.nats
    )
    forwards = (forward for entry in config.forwards for forward in _forwards(entry))
    return Desired(
        frozenset(forwards),
        frozenset(nats),
        guest_subnets=frozenset(guest_subnets),
        localhost=config.daemon.localhost,
    )


def _forwards(entry: ForwardEntry) -> Iterator[Forward]:
    families = families_of_entry(entry)
    for mapping in entry.mappings:
        for listen in (mapping.listen,) if mapping.listen is not None else entry.listen or (None,):
            for family in families & families_of([] if listen is None else [listen]):
                yield Forward(
                    entry.domain,
                    mapping.protocol,
                    listen,
                    mapping.host,
                    _UNKNOWN[family],
                    mapping.guest,
                    entry.interface,
                    tuple(source for source in entry.sources if Family.of(source) is family),
                    origin=mapping.origin,
                )
