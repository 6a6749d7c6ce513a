"""What was observed of guests and host, and the inventory that follows from it. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from uuid import UUID

from fwdaemon.core.types import Address, Subnet

# What exists on this host right now: domains, their interfaces, networks, the host's own addresses.
#
# A snapshot is a fact of one moment and never changes afterwards. It says what was observed and who said so; which of
# several claims about a guest's address is believed is decided in `fwdaemon.resolve.addresses`.


class AddressSource(IntEnum):
    """Who told us a guest's address, the most trusted first (a smaller value wins)."""

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
    """An address somebody says a MAC address has."""

    address: Address
    source: AddressSource


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

    The interfaces of others are not looked at, but for those that are on the `move`.
    `rank` counts the URIs ahead of the one that knows it, in the order of the configuration.
    """

    name: str
    uuid: UUID
    running: bool
    interfaces: tuple[GuestInterface, ...] = ()
    move: Move | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Network:
    """A libvirt network. `gateways` are the host's own addresses on its bridge, `subnets` what lies behind it.

    `own_bridge` says that libvirt made the bridge for it; otherwise it is one of the host, which may lead out.
    `forwards` says that libvirt has the host forward packets for it: its mode is nat, route or open. `unfiltered` says
    that libvirt refuses none of them: its mode is open, or the bridge is one of the host.
    """

    name: str
    active: bool
    bridge: str | None
    subnets: tuple[Subnet, ...] = ()
    gateways: tuple[Address, ...] = ()
    own_bridge: bool = True
    forwards: bool = False
    unfiltered: bool = False


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of the host itself, with the subnet it is configured with, on `device`."""

    address: Address
    subnet: Subnet
    device: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything above, of one moment. `uplinks` names the interfaces that lead away from the host; see `Desired`.

    `routed` are subnets that the kernel routes straight to what is plugged into a device, besides those of the host's
    addresses there.
    """

    domains: tuple[Domain, ...] = ()
    networks: tuple[Network, ...] = ()
    host_addresses: tuple[HostAddress, ...] = ()
    uplinks: frozenset[str] = frozenset()
    routed: frozenset[tuple[str, Subnet]] = frozenset()

    @property
    def guest_addresses(self) -> frozenset[Address]:
        """Every address that somebody says a running guest has."""
        interfaces = (interface for domain in self.domains if domain.running for interface in domain.interfaces)
        return frozenset(claim.address for interface in interfaces for claim in interface.learned)


# What each witness said, before anybody put it together: libvirt, the guests' agents, the kernel.
#
# Plain data only. `fwdaemon.resolve.snapshot` makes one `Inventory` of it.


@dataclass(frozen=True, slots=True)
class MacClaim:
    """Somebody says that an interface with this MAC address has this address."""

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
class HostObservation:
    """What the kernel knows; `bridges` gives the bridge of those devices that were asked for and have one.

    `uplinks` names the interfaces that lead away from the host; see `fwdaemon.core.state.Desired`. `routed` is as in
    `fwdaemon.core.inventory.Inventory`.
    """

    addresses: tuple[HostAddress, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    bridges: Mapping[str, str] = field(default_factory=dict)
    uplinks: frozenset[str] = frozenset()
    routed: frozenset[tuple[str, Subnet]] = frozenset()
