"""What was observed of guests and host, the inventory that follows from it, and what entries miss in it. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum, auto
from typing import NamedTuple
from uuid import UUID

from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet

# What exists on this host right now: domains, their interfaces, networks, the host's own addresses.
#
# A snapshot is a fact of one moment and never changes afterwards. It says what was observed and who said so; which of
# several claims about a guest's address is believed is decided in `fwdaemon.resolve.addresses`.


class AddressSource(IntEnum):
    """The source of a guest's address, the most trusted first (a smaller value wins)."""

    CONFIGURATION = 1
    RESERVATION = 2
    LEASE = 3
    AGENT = 4
    NEIGHBOUR = 5

    def __str__(self) -> str:
        return _SOURCE_NAMES[self]


_SOURCE_NAMES = {
    AddressSource.CONFIGURATION: "configuration",
    AddressSource.RESERVATION: "DHCP reservation",
    AddressSource.LEASE: "DHCP lease",
    AddressSource.AGENT: "guest agent",
    AddressSource.NEIGHBOUR: "neighbour table",
}


@dataclass(frozen=True, slots=True, order=True)
class LearnedAddress:
    """An address that a source says a MAC address has."""

    address: Address
    source: AddressSource


class Place(NamedTuple):
    """Where an interface of a guest is, as far as it is said; see `GuestInterface`."""

    mac: str | None = None
    network: str | None = None
    bridge: str | None = None


class Attachment(Enum):
    """How an interface leads out of its guest; whatever is neither of the others may be a bridge's port."""

    PORT = "port"
    MACVTAP = "macvtap"
    USER_MODE = "user mode"


@dataclass(frozen=True, slots=True)
class GuestInterface:
    """A network interface of a running domain.

    `network` is the libvirt network's name, `bridge` the host bridge it is plugged into, `device` the host's side of
    it (`vnet0`); any of them is `None` where there is none. `learned` holds every address claimed for `mac`. `parent`
    is the interface of the host that macvtap is built on.
    """

    mac: str
    network: str | None
    bridge: str | None
    device: str | None
    learned: tuple[LearnedAddress, ...] = ()
    attachment: Attachment = Attachment.PORT
    parent: str | None = None

    @property
    def place(self) -> Place:
        """Where it is, whatever it has learned."""
        return Place(self.mac, self.network, self.bridge)


@dataclass(frozen=True, slots=True)
class Element:
    """One element of what a definition asks for; the `name` of one of another namespace has that in braces before it.

    `inside` names what stands between its tags, where nothing belongs.
    """

    name: str
    attributes: tuple[tuple[str, str], ...] = ()
    inside: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a running domain asks for in its metadata, as written there; `fault` says why nothing was read."""

    elements: tuple[Element, ...] = ()
    fault: str = ""


class Move(Enum):
    """How a domain migrates that does not run here.

    `HERE`: its copy is being received. `ARRIVED`: its copy is complete, but paused, and has not run here; only the
    other host knows when that host lets go of it. `AWAY`: it was handed over, and comes back if the other host cannot
    take it. `GONE`: the other host has it for good.
    """

    HERE = auto()
    ARRIVED = auto()
    AWAY = auto()
    GONE = auto()


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain libvirt knows. `running` says that its CPUs run on this host, and includes paused.

    `returning` says of one that was running that it may be rebooting, as far as libvirt says how it ended.
    The interfaces of others are not looked at, but for those that are on the `move`.
    `rank` counts the URIs ahead of the one that knows it, in the order of the configuration. `metadata` is what its
    definition asks for; of a domain that has ended, what it asked for last. `instance` is libvirt's number of this run
    of it, -1 while it does not run: of two at one URI, the later run mostly has the higher one.
    """

    name: str
    uuid: UUID
    running: bool
    interfaces: tuple[GuestInterface, ...] = ()
    move: Move | None = None
    returning: bool = False
    rank: int = 0
    metadata: Metadata | None = None
    instance: int = field(default=-1, compare=False)


@dataclass(frozen=True, slots=True)
class Network:
    """A libvirt network. `gateways` are the host's own addresses on its bridge, `subnets` what lies behind it.

    `own_bridge` says that libvirt made the bridge for it; otherwise it is one of the host, which may lead out.
    `forwards` says that libvirt has the host forward packets for it: its mode is nat, route or open. `unfiltered` says
    that libvirt refuses none of them: its mode is open, or the bridge is one of the host. `closed` are the families in
    which it lets no one in from elsewhere: both of an isolated network, and those that are hidden behind the host.
    `uuid` is `None` where it is not known, `rank` is as in `Domain`.
    """

    name: str
    active: bool
    bridge: str | None
    subnets: tuple[Subnet, ...] = ()
    gateways: tuple[Address, ...] = ()
    own_bridge: bool = True
    forwards: bool = False
    unfiltered: bool = False
    closed: frozenset[Family] = frozenset()
    uuid: UUID | None = None
    rank: int = 0


class Occupied(NamedTuple):
    """A port of the host that a process waits on, at one address or at every one of the `families`.

    `device` is the interface that it is bound to. One that is `passing` is not assigned, but may be claimed: a client
    has it, or it is at an address that no forward is for.
    """

    protocol: Protocol
    address: Address | None
    port: int
    families: frozenset[Family] = frozenset(Family)
    device: str | None = None
    passing: bool = False


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of the host itself, with the subnet it is configured with, on `device`."""

    address: Address
    subnet: Subnet
    device: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything above, of one moment. `uplinks` names the interfaces that lead away from the host; see `Desired`.

    `namesakes` are networks that are called as another one of an earlier URI, which has the name.

    `occupied` are the ports that processes of the host wait on, `lent` the addresses that we assigned to interfaces:
    both are read only where metadata of domains asks for any. `occupied` is `None` where the kernel does not say.

    `routed` are subnets that the kernel routes straight to what is plugged into a device, besides those of the host's
    addresses there. `links` are as in `Desired`.
    """

    domains: tuple[Domain, ...] = ()
    networks: tuple[Network, ...] = ()
    host_addresses: tuple[HostAddress, ...] = ()
    uplinks: frozenset[str] = frozenset()
    routed: frozenset[tuple[str, Subnet]] = frozenset()
    namesakes: tuple[Network, ...] = ()
    links: frozenset[tuple[Subnet, str]] = frozenset()
    occupied: frozenset[Occupied] | None = frozenset()
    lent: frozenset[tuple[str, Address]] = frozenset()

    @property
    def every_network(self) -> tuple[Network, ...]:
        """All networks, with those that entries do not mean: guests may be on any of them."""
        return self.networks + self.namesakes

    @property
    def guest_addresses(self) -> frozenset[Address]:
        """Every address that any source says a running guest has."""
        interfaces = (interface for domain in self.domains if domain.running for interface in domain.interfaces)
        return frozenset(claim.address for interface in interfaces for claim in interface.learned)


# Why an entry has no exposure, or not in each family, as data: `fwdaemon.audit.causes` puts it into words.


class HindranceKind(StrEnum):
    """What hinders an entry; the values are stable, for programs that read the status."""

    NO_ANSWER = "no-answer"
    NO_SUCH_DOMAIN = "no-such-domain"
    NOT_RUNNING = "domain-not-running"
    ARRIVING = "arriving"
    ARRIVED = "arrived"
    HANDED_OVER = "handed-over"
    NO_SUCH_NETWORK = "no-such-network"
    NETWORK_NOT_ACTIVE = "network-not-active"
    NO_BRIDGE = "no-bridge"
    BRIDGE_NAME = "bridge-name"
    NO_INTERFACE = "no-interface"
    SEVERAL_INTERFACES = "several-interfaces"
    NO_FITTING_INTERFACE = "no-fitting-interface"
    USER_MODE = "user-mode"
    MACVTAP = "macvtap"
    NO_ADDRESS = "no-address"
    NO_SUBNET = "no-subnet"
    SUBNETS_UNKNOWN = "subnets-unknown"
    ADDRESS_OF_HOST = "address-of-host"
    ADDRESS_OF_SUBNET = "address-of-subnet"
    ADDRESS_SPECIAL = "address-special"
    ADDRESS_OUTSIDE = "address-outside"
    ADDRESS_OF_ANOTHER = "address-of-another"
    ADDRESS_CONTESTED = "address-contested"
    HELD_ELSEWHERE = "held-elsewhere"
    CLAIMED = "claimed"
    ASSIGNED = "assigned"
    NO_FREE_PORT = "no-free-port"
    SOCKETS_UNKNOWN = "sockets-unknown"
    NO_RUNNING_DOMAIN = "no-running-domain"
    NOT_ALLOWED = "not-allowed"
    NOT_OWN = "not-own-address"
    MISREAD = "misread"
    NO_CLAIM = "no-claim"
    CLAIMED_BY_HOST = "claimed-by-host"
    NOT_REMOVED = "not-removed"

    @property
    def is_refusal(self) -> bool:
        """Whether a request of a pattern or of metadata is refused, so that waiting alone changes nothing."""
        return self in _REFUSALS


_REFUSALS = frozenset(
    {
        HindranceKind.NOT_ALLOWED,
        HindranceKind.CLAIMED,
        HindranceKind.ASSIGNED,
        HindranceKind.NO_FREE_PORT,
        HindranceKind.SOCKETS_UNKNOWN,
        HindranceKind.NOT_OWN,
        HindranceKind.MISREAD,
    }
)

_CLAIMED = frozenset(
    {
        HindranceKind.ADDRESS_OF_HOST,
        HindranceKind.ADDRESS_OF_SUBNET,
        HindranceKind.ADDRESS_SPECIAL,
        HindranceKind.ADDRESS_OUTSIDE,
        HindranceKind.ADDRESS_OF_ANOTHER,
        HindranceKind.ADDRESS_CONTESTED,
    }
)


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What hinders an entry, with as much as its words need: of two that are equal, one is said.

    `address` is what is claimed by `source`, or what no interface fits; `places` are the interfaces it is about, or the
    one that is missed. `names` are other domains, the network or the parent of macvtap, `subnets` the guest's own.
    `ports` are those that are claimed at `origin`, or of which none is free. Of what is not allowed, `origin` is the
    `[[allow]]` that comes closest, and `names` are each key of it that does not cover a value, followed by that; of
    many, the first ones and then how many `more`. Of what is claimed or assigned already, they are where, and by which
    domain, if by any that is known. Of what is to be removed, they are why the last pass failed.
    """

    kind: HindranceKind
    address: Address | None = None
    source: AddressSource | None = None
    family: Family | None = None
    names: tuple[str, ...] = ()
    subnets: tuple[Subnet, ...] = ()
    places: tuple[Place, ...] = ()
    ports: PortRange | None = None
    origin: Origin | None = None

    @property
    def is_claimed(self) -> bool:
        """Whether an address is named, and not believed: that says more than that there is none."""
        return self.kind in _CLAIMED


# What each witness said, before `fwdaemon.resolve.snapshot` makes one `Inventory` of it. Plain data.


@dataclass(frozen=True, slots=True)
class MacClaim:
    """A claim that the interface with this MAC address has this address."""

    mac: str
    learned: LearnedAddress


@dataclass(frozen=True, slots=True)
class ObservedDomain:
    """A domain whose interfaces have learned nothing yet.

    `instance` is libvirt's number of this run of it, -1 while it does not run; `agent_connected` says whether its guest
    agent is there to be asked.
    """

    domain: Domain
    instance: int = -1
    agent_connected: bool = False


@dataclass(frozen=True, slots=True)
class ObservedNetwork:
    """A network and its DHCP server's reservations and leases, of several for one MAC address the newest first."""

    network: Network
    claims: tuple[MacClaim, ...] = ()


@dataclass(frozen=True, slots=True)
class LibvirtObservation:
    """All that one libvirt connection knows."""

    domains: tuple[ObservedDomain, ...] = ()
    networks: tuple[ObservedNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the kernel's neighbour table: `mac` answered for `address` on `device`."""

    device: str
    mac: str
    address: Address


@dataclass(frozen=True, slots=True)
class HijackedAddress:
    """An address that the configuration or a DHCP server gave to domain `owner`, and that another machine answers for.

    `rightful` is the entry as it was before; `taker` is the domain that answers, `None` where no guest here does.
    """

    rightful: Neighbour
    owner: str
    taker: str | None


@dataclass(frozen=True, slots=True)
class HostObservation:
    """What the kernel knows; `bridges` gives the bridge of those devices that were asked for and have one.

    `uplinks` names the interfaces that lead away from the host; see `fwdaemon.core.state.Desired`, also of `links`.
    `routed` is as in `fwdaemon.core.inventory.Inventory`.
    """

    addresses: tuple[HostAddress, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    bridges: Mapping[str, str] = field(default_factory=dict)
    uplinks: frozenset[str] = frozenset()
    routed: frozenset[tuple[str, Subnet]] = frozenset()
    links: frozenset[tuple[Subnet, str]] = frozenset()
