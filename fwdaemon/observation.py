"""What each witness said, before anybody put it together: libvirt, the guests' agents, the kernel.

Plain data only. `fwdaemon.snapshot` makes one `Inventory` of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fwdaemon.inventory import Domain, HostAddress, LearnedAddress, Network
from fwdaemon.model import Address


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

    `outer` names the interfaces that lead away from the host; see `fwdaemon.desired.Desired`.
    """

    addresses: tuple[HostAddress, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    bridges: Mapping[str, str] = field(default_factory=dict)
    outer: frozenset[str] = frozenset()
