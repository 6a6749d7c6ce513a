"""The words the whole program shares: addresses, families, protocols, ports, sockets. Pure data."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from fwdaemon.core.text import shown

Address: TypeAlias = IPv4Address | IPv6Address
Subnet: TypeAlias = IPv4Network | IPv6Network


class Family(IntEnum):
    """An IP version; the value is what `ipaddress` calls `version`."""

    IPV4 = 4
    IPV6 = 6

    @classmethod
    def of(cls, item: Address | Subnet) -> "Family":
        """The family of an address or a subnet."""
        return _FAMILIES[item.version]

    @classmethod
    def called(cls, word: str) -> "Family":
        """The family with this `word`."""
        return _CALLED[word]

    @property
    def word(self) -> str:
        """What nft calls it, and the start of the names of iptables' programs."""
        return "ip" if self is Family.IPV4 else "ip6"

    @property
    def iptables(self) -> str:
        """The program that writes its older rules, without a variant: `ip6tables`."""
        return f"{self.word}tables"

    @property
    def bits(self) -> int:
        """How long its addresses are."""
        return 32 if self is Family.IPV4 else 128

    @property
    def domain(self) -> int:
        """Its number in the kernel, AF_INET or AF_INET6 (linux/socket.h)."""
        return 2 if self is Family.IPV4 else 10


_FAMILIES = {family.value: family for family in Family}
_CALLED = {family.word: family for family in Family}


class Protocol(StrEnum):
    """A transport protocol with ports; the value is its name in configuration, nft and iptables alike."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"

    @property
    def number(self) -> int:
        """Its number in a packet's header."""
        return PROTOCOL_NUMBERS[self.value]


PROTOCOL_NUMBERS: Final[Mapping[str, int]] = {
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "ospf": 89,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udplite": 136,
}
"""The numbers in a packet's header of the protocols that rules name, by each of their names."""
PROTOCOLS: Final[Mapping[int, Protocol]] = {protocol.number: protocol for protocol in Protocol}
"""Protocols with ports by their numbers."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last`, both included, within 1 to 65535; a single port has `first == last`."""

    first: int
    last: int

    @property
    def width(self) -> int:
        """How many ports it spans."""
        return self.last - self.first + 1

    def shift_to(self, guest: "PortRange") -> int:
        """How much higher the ports of a guest are to which these lead, one to one."""
        return guest.first - self.first

    def shifted(self, by: int) -> "PortRange":
        """Give as many ports, so much higher."""
        return PortRange(self.first + by, self.last + by)

    def overlaps(self, other: "PortRange") -> bool:
        """Whether any port is in both."""
        return self.first <= other.last and other.first <= self.last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def show_endpoint(address: Address | None, ports: PortRange | str) -> str:
    """An address and its ports as people write them, `[2001:db8::1]:443`; `*` stands for every local address."""
    return f"*:{ports}" if address is None else f"{_before_port(address)}:{ports}"


@lru_cache(maxsize=256)
def _before_port(address: Address) -> str:
    """Write an address as it stands before a port; a guest has many ports, one after the other."""
    return f"[{address}]" if isinstance(address, IPv6Address) else str(address)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of the host and a TCP port; an unspecified address stands for every one."""

    address: Address
    port: int

    def __str__(self) -> str:
        return show_endpoint(self.address, PortRange(self.port, self.port))


def collapse(subnets: Iterable[Subnet]) -> list[str]:
    """Write subnets of one family without overlaps, in order."""
    return [str(subnet) for subnet in collapse_addresses(subnets)]  # type: ignore[type-var]  # the family is one


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where something was said: on a line of the configuration, or in the metadata of a domain.

    Lines count from 1; in metadata they count the elements. `domain` is that domain's name, any text, and `uuid` its
    UUID; `element` is what its element is called, `forward 2`. `allowed` is the `[[allow]]` that covers what is asked
    for there.
    """

    file: Path
    line: int
    domain: str = ""
    uuid: str = ""
    allowed: "Origin | None" = field(default=None, compare=False)
    element: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.domain:
            return f"domain {shown(self.domain)}, metadata{self.element and f': {self.element}'}"
        return f"{self.file}:{self.line}"


class Until(NamedTuple):
    """When something ends that is there for a while: as soon as one of two clocks says so.

    `wall` is in whole seconds since 1970 (UTC), and that clock may be set. `boottime` is in seconds by
    CLOCK_BOOTTIME of this run of the host, which cannot be set.
    """

    wall: int
    boottime: float


@dataclass(frozen=True, slots=True)
class Gate:
    """A foreign chain of the forward hook that is to let our connections through, `inet filter forward`."""

    family: str
    table: str
    chain: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


class GateFault(StrEnum):
    """What is wrong with a gate that is not open."""

    ABSENT = "absent"
    BEHIND_RULE = "behind-rule"
    AHEAD_OF_BAN = "ahead-of-ban"
    REPEATED = "repeated"
    ALTERED = "altered"
    GUESTS = "guests"


class GuestPath(NamedTuple):
    """A path of libvirt's guests through the host, on which libvirt's own rules decide: in by one, out by the other.

    With `answers` only packets of connections that exist may take it: libvirt lets no others into that network.
    """

    family: Family
    came_in: str
    goes_out: str
    answers: bool = False


# What is known of a socket. Plain data.


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for connections, or for datagrams from any sender.

    It takes what comes in the `families`, to `address`, or to every address of the host where that is `None`. `device`
    is the interface it is bound to. `inode` is how /proc/PID/fd calls it, and `cgroup` the number of the control group
    (version 2) it was opened in, 0 where the kernel does not say.
    """

    protocol: Protocol
    families: frozenset[Family]
    address: Address | None
    port: int
    device: str | None = None
    inode: int = 0
    cgroup: int = 0


# The table that many hosts share, in etcd.


class OnPartition(StrEnum):
    """What becomes of the table's public addresses once etcd has not confirmed our claim for too long."""

    RELEASE = "release"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """The `[fleet]` table, defaults filled in.

    `etcd` are the URLs of its members, `ca` the file of who signed their certificates; without it, the system's
    authorities count. `password_file` holds the password of `user`.
    """

    etcd: tuple[str, ...]
    prefix: str = "/portfwd/v1"
    on_partition: OnPartition = OnPartition.RELEASE
    ca: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FleetState:
    """How it is with etcd: how many of the `members` answer, and what is known.

    `revision` is that of the table in force, `age` how many seconds ago etcd was last heard of, and `entries` how many
    texts the table has. `held` are the public addresses that this host may have now.
    """

    answering: int
    members: int
    revision: int
    age: float | None = None
    entries: int = 0
    held: tuple[Address, ...] = ()


class Job(StrEnum):
    """Work that is done beside all other, as it may take long; some of it is `about` something, named behind it."""

    AGENTS = "agents"  # the URI of their domains
    ANSWERS = "answers"
    CONFIGURATION = "configuration"
    CONFLICTS = "conflicts"
    CONNECTIONS = "connections"
    COUNTERS = "counters"
    EXTERNAL_SETS = "external-sets"
    GROUPS = "groups"
    INVENTORY = "inventory"
    LAST_GOOD = "last-good"
    LIBVIRT = "libvirt"  # a URI
    LOG = "log"
    LOOPBACK = "loopback"
    METRICS = "metrics"
    PROBES = "probes"
    RECONCILE = "reconcile"
    SETS = "sets"
    STATUS = "status"
    SYSTEMD = "systemd"
    TEMPORARY = "temporary"


class Late(NamedTuple):
    """A job that has gone on for longer than it should take, in seconds so far."""

    job: Job
    about: str
    seconds: float


# What has to do with a range of ports is found without looking at everything.
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
        """Say of each range whether it has one of them; there may be thousands, nearly all of one port."""
        marks, ends = self._marks, map(attrgetter("first", "last"), ranges)
        return [marks[first] > 0 if first == last else marks.find(1, first, last + 1) >= 0 for first, last in ends]


class Presence(IntEnum):
    """What libvirt has in a rule system; the more, the surer it is that its rules are there and not elsewhere."""

    NOTHING = 0
    CHAINS = 1  # in a table of iptables'
    TABLE = 2  # one of its own


class Stamp(NamedTuple):
    """Something of a rule system that is another after a change; only if `certain`, it is so after each."""

    value: object
    certain: bool


class ConnectionLog(NamedTuple):
    """That connections are logged, with so many leading bits of their clients' addresses."""

    ipv4: int = 32
    ipv6: int = 128

    def cut(self, client: Address) -> Address | Subnet:
        """Give what is logged of a client's address."""
        length = self.ipv4 if Family.of(client) is Family.IPV4 else self.ipv6
        return client if length == client.max_prefixlen else ip_network((int(client), length), strict=False)


FlowKey: TypeAlias = tuple[object, ...]
"""What is looked up to find who may carry a connection: of a guest with ports or its public address, or of a subnet."""


def subnet_key(address: Address, length: int) -> FlowKey:
    """Give the key of a subnet with a prefix of that length, by any address in it."""
    return Family.of(address), length, int(address) >> (address.max_prefixlen - length)
