"""What a valid configuration says, as plain data: for a `Config`, all rules of the grammar hold."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

from fwdaemon.core.admission import Admission, SourceSet
from fwdaemon.core.bans import BEHIND
from fwdaemon.core.exposures import Claim, Kind, Owner
from fwdaemon.core.text import shown
from fwdaemon.core.types import (
    Address,
    ConnectionLog,
    Endpoint,
    Family,
    FleetSettings,
    Gate,
    Origin,
    PortRange,
    Protocol,
    Subnet,
    Until,
)

# The tables, and the keys that each may have.
ENTRIES: Final = ("forward", "nat", "route")
ARRAYS: Final = (*ENTRIES, "allow", "set")
SETTINGS: Final = ("control", "daemon", "fleet", "metrics")
TABLES: Final = tuple(sorted((*ARRAYS, *SETTINGS)))
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "forward": (
        *("address", "deny", "domain", "interface", "listen", "log", "log_anonymize", "mac", "masquerade", "max_open"),
        *("network", "ports", "rate", "sources"),
    ),
    "nat": ("address", "assign", "deny", "domain", "mac", "network", "public", "sources"),
    "route": ("addresses", "deny", "network", "proxy", "sources"),
    "set": ("addresses", "external", "file", "name"),
    "allow": ("assign", "domains", "listen", "max", "networks", "ports", "public"),
    "daemon": (
        *("auto_ports", "backend", "behind", "deny", "gates", "ip_forward", "keep_guests_online", "label", "libvirt"),
        *("localhost", "on_stop", "resync", "uplinks"),
    ),
    "metrics": ("listen", "textfile"),
    "control": ("group",),
    "fleet": ("ca", "etcd", "on_partition", "password_file", "prefix", "user"),
}

NamedSets: TypeAlias = tuple[tuple[str, Origin], ...]
"""Names of sets, each with the place where it is written."""


class BackendChoice(StrEnum):
    """Which of the kernel's rule systems holds our rules; `AUTO` follows libvirt's own."""

    AUTO = "auto"
    NFTABLES = "nftables"
    IPTABLES = "iptables"


class OnStop(StrEnum):
    """What happens to the rules when the daemon stops."""

    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """The `[daemon]` table, defaults filled in. Without `uplinks`, they are those that routes lead out by.

    Without `auto_ports`, no entry has ports of `auto:…`. What `barred` denies, in sets of `named`, gets in nowhere.
    """

    libvirt: tuple[str, ...] = ("qemu:///system",)
    backend: BackendChoice = BackendChoice.AUTO
    resync: timedelta = timedelta(seconds=30)
    on_stop: OnStop = OnStop.KEEP
    ip_forward: bool = True
    localhost: bool = False
    keep_guests_online: bool = False
    label: int = 25
    gates: tuple[Gate, ...] = ()
    uplinks: frozenset[str] = frozenset()
    behind: tuple[str, ...] = BEHIND
    auto_ports: PortRange | None = None
    barred: Admission | None = None
    named: NamedSets = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The `[control]` table, defaults filled in. `group` names whose members may read the status, besides root."""

    group: str = "libvirt"


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """The `[metrics]` table; nothing is measured for others where both keys are left out.

    `textfile` is a file for the textfile collector of Prometheus' node exporter, `listen` is where HTTP is served.
    """

    textfile: Path | None = None
    listen: Endpoint | None = None
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One element of `ports`, for one protocol: `tcp+udp` becomes two of these.

    `host` and `guest` have the same width and are mapped one to one, in order. `listen` is the address written inside
    the port string itself, if one is. `auto` says that `host` was assigned.
    """

    host: PortRange
    guest: PortRange
    protocol: Protocol
    listen: Address | None
    origin: Origin
    auto: bool = False

    @property
    def shift(self) -> int:
        """How much higher the guest's ports are than the host's."""
        return self.host.shift_to(self.guest)


@dataclass(frozen=True, slots=True)
class AutoMapping:
    """One `auto:PORT` of `ports`, for one protocol: each domain has a port of the host of its own for it.

    `listen` is as in `PortMapping`.
    """

    guest: int
    protocol: Protocol
    listen: Address | None
    origin: Origin

    def at(self, port: int) -> PortMapping:
        """Give what it is once it has a port."""
        ports = PortRange(port, port), PortRange(self.guest, self.guest)
        return PortMapping(*ports, self.protocol, self.listen, self.origin, auto=True)


@dataclass(frozen=True, slots=True)
class ForwardEntry:
    """One `[[forward]]`, or, with `called`, what one of the domains asks for that fit its pattern.

    `domain` is a libvirt name or UUID, and may be any text; with `is_pattern`, it is a shell pattern of names. `called`
    is the name of a domain that `domain` gives by its UUID. Empty `listen` means every local address, empty `sources`
    anyone. At most one of `network` and `mac` is set; `mac` is in lower case with colons. Where `listen` is set, no
    mapping has a listening address of its own. With `masquerade` the guest sees an address of the host instead of the
    client's. `auto` are the ports that are not written, but assigned. `admission` is what is asked of who connects
    besides `sources`, of which there are none where it takes a set to say who they are; it names the sets of `named`.
    One that was opened for a while ends at `until`; `log` says how its connections are written to the journal.
    """

    kind: ClassVar[Kind] = Kind.FORWARD

    domain: str
    mappings: tuple[PortMapping, ...]
    origin: Origin
    listen: tuple[Address, ...] = ()
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()
    address: Address | None = None
    network: str | None = None
    mac: str | None = None
    masquerade: bool = False
    auto: tuple[AutoMapping, ...] = ()
    is_pattern: bool = False
    called: str | None = None
    admission: Admission | None = None
    named: NamedSets = field(default=(), compare=False)
    until: Until | None = None
    log: ConnectionLog | None = None

    @property
    def owner(self) -> Owner:
        """The domain it is for: by name where that is known, as in metadata, and else as written."""
        return Owner(self.called or self.origin.domain or self.domain)

    @property
    def number(self) -> int:
        """For how many it counts: a port string for two protocols is two forwards."""
        return len(self.mappings) + len(self.auto)

    @property
    def is_open(self) -> bool:
        """Whether it takes an inventory to say what it asks for."""
        return self.is_pattern or bool(self.auto)

    def claims(self) -> Iterator[tuple[Claim, Origin]]:
        """Give what packets it is for, each with its place in the configuration; automatic ports are not known."""
        for mapping in self.mappings:
            for claim in self.claims_of(mapping):
                yield claim, mapping.origin

    def every_claim(self) -> Iterator[tuple[Claim, Origin]]:
        """Give those too that have no port yet."""
        yield from self.claims()
        for mapping in self.auto:
            for claim in self.claims_of(mapping):
                yield claim, mapping.origin

    def claims_of(self, mapping: PortMapping | AutoMapping) -> Iterator[Claim]:
        """Give what packets one of its mappings is for, at each of the addresses it listens on."""
        ports, auto = (mapping.host, mapping.auto) if isinstance(mapping, PortMapping) else (None, True)
        for listen in self.listens_on(mapping):
            where = None if listen is None else Family.of(listen), mapping.protocol, listen, ports, None
            yield Claim(self.kind, *where, self.interface, self.sources, self.masquerade, auto)

    def listens_on(self, mapping: PortMapping | AutoMapping, family: Family | None = None) -> list[Address | None]:
        """Give the addresses that one of its mappings listens on, of one family or both; `None` is every address."""
        written = (mapping.listen,) if mapping.listen is not None else self.listen or (None,)
        return [address for address in written if address is None or family in (None, Family.of(address))]

    def format(self, listens: str) -> str:
        """Say what it does with what comes there."""
        return f"forwards {listens} to {shown(self.owner.name)}{', masqueraded' if self.masquerade else ''}"


@dataclass(frozen=True, slots=True)
class NatEntry:
    """One `[[nat]]`: maps the address `public` one-to-one to a guest, in and out.

    `domain`, `address`, `network` and `mac` are as in `ForwardEntry`; `address` has the family of `public`. `assign` is
    the interface that is to hold `public` while the guest runs.
    """

    kind: ClassVar[Kind] = Kind.NAT
    number: ClassVar[int] = 1
    is_pattern: ClassVar[bool] = False
    is_open: ClassVar[bool] = False
    interface: ClassVar[None] = None
    sources: ClassVar[tuple[Subnet, ...]] = ()
    masquerade: ClassVar[bool] = False

    domain: str
    public: Address
    origin: Origin
    assign: str | None = None
    address: Address | None = None
    network: str | None = None
    mac: str | None = None
    admission: Admission | None = None
    named: NamedSets = field(default=(), compare=False)

    @property
    def owner(self) -> Owner:
        """The domain it is for, as written; in metadata, the domain itself."""
        return Owner(self.origin.domain or self.domain)

    def claims(self) -> Iterator[tuple[Claim, Origin]]:
        """Give what packets it is for, each with its place in the configuration."""
        yield Claim(self.kind, Family.of(self.public), address=self.public), self.origin

    every_claim = claims

    def format(self, _: str) -> str:
        """Say what it does with what comes there."""
        return f"makes {self.public} the guest {shown(self.domain)}"


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """One element of `addresses` in a `[[route]]`; `subnet` of a single address has the full prefix length.

    `network` is a libvirt network's name, exactly as written. `proxy` is the interface on which the host is to answer
    ARP or neighbour discovery for these addresses.
    """

    kind: ClassVar[Kind] = Kind.ROUTE
    number: ClassVar[int] = 1
    is_open: ClassVar[bool] = False
    interface: ClassVar[None] = None
    sources: ClassVar[tuple[Subnet, ...]] = ()
    masquerade: ClassVar[bool] = False
    address: ClassVar[None] = None

    network: str
    subnet: Subnet
    origin: Origin
    proxy: str | None = None
    admission: Admission | None = None
    named: NamedSets = field(default=(), compare=False)

    @property
    def owner(self) -> Owner:
        """The network it is for, as written."""
        return Owner(self.network, "network")

    def claims(self) -> Iterator[tuple[Claim, Origin]]:
        """Give what packets it is for, each with its place in the configuration."""
        yield Claim(self.kind, Family.of(self.subnet), subnet=self.subnet), self.origin

    every_claim = claims

    def format(self, _: str) -> str:
        """Say what it does with what comes there."""
        return f"routes {self.subnet} to network {shown(self.network)}"


GuestEntry: TypeAlias = ForwardEntry | NatEntry
"""What leads to an interface of a domain."""

Entry: TypeAlias = GuestEntry | RouteEntry


@dataclass(frozen=True, slots=True)
class SetEntry:
    """One `[[set]]`: a name for its `addresses`, each at its place, or those in a `file`, or what others put there."""

    name: str
    origin: Origin
    addresses: Mapping[Subnet, Origin] = field(default_factory=dict)
    file: Path | None = None
    external: bool = False


DEFAULT_MAX: Final = 20  # of an `[[allow]]` that sets none


@dataclass(frozen=True, slots=True)
class AllowEntry:
    """One `[[allow]]`: what running domains may ask for in their own metadata.

    `domains` are shell patterns and UUIDs. Empty `networks` are all of libvirt's, empty `listen` every local address;
    empty `ports` and `public` are none. `assign` holds public addresses, of which, and of ports, a domain has `most`.
    """

    domains: tuple[str, ...]
    origin: Origin
    networks: tuple[str, ...] = ()
    listen: tuple[Address, ...] = ()
    ports: tuple[PortRange, ...] = ()
    public: tuple[Subnet, ...] = ()
    assign: str | None = None
    most: int = DEFAULT_MAX


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration: the main file and its drop-ins, in name order, and what is in the files of `sets`.

    `ignored` are files among the drop-ins whose names are not those of drop-ins.
    """

    daemon: DaemonSettings
    forwards: tuple[ForwardEntry, ...]
    nats: tuple[NatEntry, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    control: ControlSettings = ControlSettings()
    metrics: MetricsSettings = MetricsSettings()
    ignored: tuple[Path, ...] = field(default=(), compare=False)
    allows: tuple[AllowEntry, ...] = ()
    sets: tuple[SourceSet, ...] = ()
    fleet: FleetSettings | None = None

    @classmethod
    def of(
        cls,
        daemon: DaemonSettings,
        entries: Iterable[Entry],
        control: ControlSettings,
        metrics: MetricsSettings,
        allows: Iterable[AllowEntry] = (),
    ) -> "Config":
        """Make it of entries of all kinds; those of one kind keep their order."""
        given = tuple(entries)
        return cls(
            daemon,
            tuple(entry for entry in given if isinstance(entry, ForwardEntry)),
            tuple(entry for entry in given if isinstance(entry, NatEntry)),
            tuple(entry for entry in given if isinstance(entry, RouteEntry)),
            control,
            metrics,
            allows=tuple(allows),
        )

    def with_entries(self, entries: Iterable[Entry]) -> "Config":
        """Give the same with other entries."""
        other = Config.of(self.daemon, entries, self.control, self.metrics)
        return replace(self, forwards=other.forwards, nats=other.nats, routes=other.routes)

    @property
    def guest_entries(self) -> tuple[GuestEntry, ...]:
        """Those that lead to guests, each to one."""
        return (*(entry for entry in self.forwards if not entry.is_pattern), *self.nats)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them."""
        return (*self.forwards, *self.nats, *self.routes)
