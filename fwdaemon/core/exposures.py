"""Exposures: whatever makes something reachable, which is a port forward, a 1:1 NAT or a route. Plain data.

A kind says by itself what it is for, where it leads, whose it is and how that is shown. How it is written as rules is
the business of the backends.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address, ip_network
from operator import attrgetter
from typing import ClassVar, Final, NamedTuple, TypeAlias

from fwdaemon.core.admission import Admission
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet, Until, show_endpoint


class Owner(NamedTuple):
    """Whose an exposure is: a `domain` or a libvirt `network`; `name` is any text."""

    name: str
    kind: str = "domain"


class Kind(StrEnum):
    """What an exposure is."""

    FORWARD = "forward"
    NAT = "nat"
    ROUTE = "route"

    @property
    def noun(self) -> str:
        """What people call one."""
        return "1:1 address" if self is Kind.NAT else self.value


class Claim(NamedTuple):
    """What packets an exposure, or an entry that may become some, is for.

    `address` is the listening or the public one, `None` for every local address; a `protocol` of `None` is all of them
    with every port. `subnet` is a route's, and what goes there is never for the host itself. A `family` of `None` is
    both; empty `sources` let anyone in. The ports of one that is `auto` are assigned: it has
    none yet where `ports` is `None`, and is for nothing until then.
    """

    kind: Kind
    family: Family | None = None
    protocol: Protocol | None = None
    address: Address | None = None
    ports: PortRange | None = None
    subnet: Subnet | None = None
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()
    masquerade: bool = False
    auto: bool = False

    def takes(self, protocol: Protocol | None, address: Address, port: int) -> bool:
        """Whether it is for what goes to an address of the host and a port, from any sender."""
        if self.auto and self.ports is None:
            return False
        if self.subnet is not None:
            return self.subnet.version == address.version and address in self.subnet
        fits = self.protocol in (None, protocol) and (self.ports is None or port in self.ports)
        return fits and self.address in (None, address)

    def __str__(self) -> str:
        """Write where it listens, for people and the audit: `tcp 198.51.100.7:8443`, `all of 198.51.100.8`."""
        if self.subnet is not None:
            return f"route {self.subnet}"
        if self.auto and self.ports is None:
            return f"{self.protocol} {show_endpoint(self.address, 'auto')}"
        if self.ports is None:
            return "metadata" if self.address is None else f"all of {self.address}"
        return f"{self.protocol} {show_endpoint(self.address, self.ports)}"


class Destination(NamedTuple):
    """Where an exposure leads: a guest's address, with its ports where they are named, or the bridge of a network."""

    address: Address | None = None
    ports: PortRange | None = None
    bridge: str | None = None

    def __str__(self) -> str:
        """Write it for people and the audit: `192.168.122.50:443`."""
        if self.bridge is not None:
            return self.bridge
        return str(self.address) if self.ports is None else show_endpoint(self.address, self.ports)


class _Exposure:
    """What all kinds answer: others ask an exposure, and not of which kind it is."""

    __slots__ = ()

    admission: Admission | None

    @property
    def claim(self) -> Claim:
        """What packets it is for."""
        raise NotImplementedError

    @property
    def destination(self) -> Destination:
        """Where it leads."""
        raise NotImplementedError

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        raise NotImplementedError

    @property
    def counted_as(self) -> str:
        """Name in plain letters what its limits count in: all that one entry opens for one guest has the same name."""
        claim, asked = self.claim, self.admission
        alone = () if asked is not None and asked.entry else (str(claim), claim.interface, *map(str, claim.sources))
        named = (*self.owner, asked.entry if asked is not None else "", *alone)
        return blake2s(repr(named).encode(), digest_size=6).hexdigest()

    def listens_at(self) -> str:
        """Where it listens, for people and the audit: `tcp 198.51.100.7:8443`."""
        return str(self.claim)

    def leads_to(self) -> str:
        """Where it leads, for people and the audit: `192.168.122.50:443`."""
        return str(self.destination)


class _Translated(_Exposure):
    """What leads to a guest of a domain by translation."""

    __slots__ = ()

    domain: str
    target: Address

    @property
    def shift(self) -> int:
        """How much higher the guest's ports are than those it listens on."""
        return 0

    @property
    def family(self) -> Family:
        """The family of both sides."""
        return Family.of(self.target)

    @property
    def owner(self) -> Owner:
        """The domain it leads to."""
        return Owner(self.domain)

    @property
    def guest(self) -> Address | None:
        """The address that its packets are given; `None` where they keep theirs."""
        return self.target

    def endpoint(self, _: Address, port: int) -> tuple[Address, int]:
        """Where it leads what goes to an address and a port that it claims."""
        return self.target, port + self.shift


class ConnectionLog(NamedTuple):
    """That connections are logged, with so many leading bits of their clients' addresses."""

    ipv4: int = 32
    ipv6: int = 128

    def cut(self, client: Address) -> Address | Subnet:
        """Give what is logged of a client's address."""
        length = self.ipv4 if Family.of(client) is Family.IPV4 else self.ipv6
        return client if length == client.max_prefixlen else ip_network((int(client), length), strict=False)


@dataclass(frozen=True, slots=True)
class LoggedConnection:
    """A connection of a forward that began, or with `ended` one that did.

    `client` sent it to `listen`, from a port that is `None` where only a part of the address is logged, and `target` is
    the guest's side. `number` is the kernel's for it. It took so many `seconds`, `None` where its begin is not known,
    and carried `size` bytes both ways, `None` where the kernel does not count.
    """

    ended: bool
    owner: Owner
    protocol: Protocol
    client: Address | Subnet
    client_port: int | None
    listen: tuple[Address, int]
    target: tuple[Address, int]
    number: int
    seconds: float | None = None
    size: int | None = None


Renaming: TypeAlias = tuple[Address, Address]
"""A guest, and the public address under which what it opens leaves the host."""


@dataclass(frozen=True, slots=True)
class Forward(_Translated):
    """One live forward of one family: packets to `listen` and `ports` go to `target` and `target_ports`.

    `listen` is `None` for every local address. Empty `sources` let anyone in; otherwise all are of this forward's
    family. With `masquerade` the guest sees an address of the host instead of the client's. `domain` is the name
    libvirt knows, any text. `bridge` is where the guest is plugged in, and `bridge_port` the host's side of its
    interface; others, as after a reboot, do not make it another forward. `auto` says that `ports` were assigned.
    `admission` says who of them may not connect, or how often. One that is there for a while has its end in `until`.
    With `log`, its connections are written to the journal.
    """

    # Whether guests open connections under its addresses.
    outward: ClassVar[bool] = False

    domain: str
    protocol: Protocol
    listen: Address | None
    ports: PortRange
    target: Address
    target_ports: PortRange
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()
    masquerade: bool = False
    bridge: str | None = field(default=None, compare=False)
    bridge_port: str | None = field(default=None, compare=False)
    origin: Origin | None = field(default=None, compare=False)
    auto: bool = field(default=False, compare=False)
    admission: Admission | None = None
    until: Until | None = None
    log: ConnectionLog | None = None

    def __hash__(self) -> int:
        """Hash what distinguishes forwards and is hashed fast: sets of thousands are made of them, even of one port."""
        listen = 0 if self.listen is None else int(self.listen)
        source = int(self.sources[0].network_address) if self.sources else 0
        return hash((self.domain, self.ports.first, self.ports.last, self.interface, listen, source))

    @property
    def shift(self) -> int:
        """How much higher the guest's ports are than those it listens on."""
        return self.ports.shift_to(self.target_ports)

    @property
    def claim(self) -> Claim:
        """What packets it is for."""
        where = self.family, self.protocol, self.listen, self.ports, None
        return Claim(Kind.FORWARD, *where, self.interface, self.sources, self.masquerade, self.auto)

    def listens_at(self) -> str:
        """Say what its claim says, without making one: thousands are sorted by it."""
        return f"{self.protocol} {show_endpoint(self.listen, self.ports)}"

    @property
    def destination(self) -> Destination:
        """Where it leads."""
        return Destination(self.target, self.target_ports)

    def leads_to(self) -> str:
        """Say what its destination says, in the same way."""
        return show_endpoint(self.target, self.target_ports)


@dataclass(frozen=True, slots=True)
class Nat(_Translated):
    """One live 1:1 NAT: `public` maps one-to-one to the guest at `target`: all protocols and ports, in and out.

    `assign` is the interface of the host that is to hold `public`. `mac` is what the guest's own packets come from.
    Where the `admission` names some who may connect, all others are refused: nothing else answers at that address. The
    rest is as in `Forward`.
    """

    outward: ClassVar[bool] = True
    interface: ClassVar[None] = None
    masquerade: ClassVar[bool] = False

    domain: str
    public: Address
    target: Address
    assign: str | None = None
    bridge: str | None = field(default=None, compare=False)
    bridge_port: str | None = field(default=None, compare=False)
    origin: Origin | None = field(default=None, compare=False)
    mac: str | None = field(default=None, compare=False)
    admission: Admission | None = None

    @property
    def claim(self) -> Claim:
        """What packets it is for."""
        return Claim(Kind.NAT, self.family, address=self.public)

    @property
    def renaming(self) -> Renaming:
        """By what the connections that the guest opens are known."""
        return self.target, self.public

    @property
    def destination(self) -> Destination:
        """Where it leads."""
        return Destination(self.target)


@dataclass(frozen=True, slots=True)
class Route(_Exposure):
    """One live route: `subnet` lies behind `bridge`, which belongs to the libvirt network `network`.

    `proxy` is the interface on which the host is to answer for these addresses. `let_out` says that libvirt does not
    refuse what these addresses open; otherwise only a gate lets that out.
    """

    outward: ClassVar[bool] = True
    interface: ClassVar[None] = None
    masquerade: ClassVar[bool] = False
    guest: ClassVar[None] = None
    bridge_port: ClassVar[None] = None

    network: str
    subnet: Subnet
    bridge: str
    proxy: str | None = None
    origin: Origin | None = field(default=None, compare=False)
    let_out: bool = field(default=False, compare=False)
    admission: Admission | None = None

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return Family.of(self.subnet)

    @property
    def owner(self) -> Owner:
        """The network it leads to."""
        return Owner(self.network, "network")

    @property
    def claim(self) -> Claim:
        """What packets it is for."""
        return Claim(Kind.ROUTE, self.family, subnet=self.subnet)

    @property
    def destination(self) -> Destination:
        """Where it leads."""
        return Destination(bridge=self.bridge)

    def endpoint(self, address: Address, port: int) -> tuple[Address, int]:
        """Where it leads what goes to an address and a port that it claims."""
        return address, port


Exposure: TypeAlias = Forward | Nat | Route


# Thousands of forwards are looked at by what is written in C: a line of Python for each takes ten times as long.
FAMILIES: Final[Mapping[type, Family]] = {IPv4Address: Family.IPV4, IPv6Address: Family.IPV6}
_target = attrgetter("target")


def by_family(forwards: Collection[Forward]) -> Mapping[Family, list[Forward]]:
    """Give forwards apart by their families, in the order they have here."""
    found: dict[type, list[Forward]] = {kind: [] for kind in FAMILIES}
    for forward, kind in zip(forwards, map(type, map(_target, forwards)), strict=True):
        found[kind].append(forward)
    return {family: found[kind] for kind, family in FAMILIES.items()}


def in_order(exposures: Collection[Exposure]) -> list[Exposure]:
    """Give exposures in the order in which the audit lists them."""
    return sorted(exposures, key=lambda exposure: (exposure.owner, exposure.listens_at()))
