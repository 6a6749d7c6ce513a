"""What exists on this host right now: domains, their interfaces, networks, the host's own addresses.

A snapshot is a fact of one moment and never changes afterwards. It says what was observed and who said so; which of
several claims about a guest's address is believed is decided in `fwdaemon.addresses`.
"""

from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from fwdaemon.model import Address, Subnet


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


@dataclass(frozen=True, slots=True)
class GuestInterface:
    """A network interface of a running domain.

    `network` is the libvirt network's name, `bridge` the host bridge it is plugged into, `device` the host's side of
    it (`vnet0`); any of them is `None` where there is none. `learned` holds every address claimed for `mac`.
    """

    mac: str
    network: str | None
    bridge: str | None
    device: str | None
    learned: tuple[LearnedAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain libvirt knows. `running` includes paused; the interfaces of others are not looked at."""

    name: str
    uuid: UUID
    running: bool
    interfaces: tuple[GuestInterface, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A libvirt network. `gateways` are the host's own addresses on its bridge, `subnets` what lies behind it."""

    name: str
    active: bool
    bridge: str | None
    subnets: tuple[Subnet, ...] = ()
    gateways: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of the host itself, with the subnet it is configured with, on `device`."""

    address: Address
    subnet: Subnet
    device: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything above, of one moment. `outer` names the interfaces that lead away from the host; see `Desired`."""

    domains: tuple[Domain, ...] = ()
    networks: tuple[Network, ...] = ()
    host_addresses: tuple[HostAddress, ...] = ()
    outer: frozenset[str] = frozenset()

    @property
    def guest_addresses(self) -> frozenset[Address]:
        """Every address that somebody says a running guest has."""
        interfaces = (interface for domain in self.domains if domain.running for interface in domain.interfaces)
        return frozenset(claim.address for interface in interfaces for claim in interface.learned)
