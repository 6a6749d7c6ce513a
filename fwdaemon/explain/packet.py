"""The first packet of a connection, and the answer to it, as rules see them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from fwdaemon.explain.truth import Truth, told
from fwdaemon.model import Address, Family, Protocol, Subnet

# Programs that do not ask for one get no port below 1024 (ip-sysctl.rst, ip_local_port_range), nor does NAT give one.
CLIENT_PORTS: Final = (1024, 65535)


class System(StrEnum):
    """A rule system of the kernel, by the programs that write to it."""

    NFTABLES = "nftables"
    IPTABLES_NFT = "iptables-nft"
    LEGACY = "iptables-legacy"


class State(StrEnum):
    """What connection tracking says of a packet; the values are nft's words."""

    NEW = "new"
    ESTABLISHED = "established"
    # Not looked at yet: chains before priority -200 see this, and both rule systems then say "invalid".
    UNSEEN = "invalid"
    UNTRACKED = "untracked"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule stands.

    `number` is nft's handle, or the position in a chain of iptables from 1; 0 is the chain's policy. `text` is the rule
    as its own program lists it, raw: names in it may hold anything.
    """

    system: System
    family: str
    table: str
    chain: str
    number: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet. `None` is what nobody can tell; for `source` it is a client somewhere outside.

    `came_in` and `goes_out` are interfaces, empty where there is none. `wanted` is where the connection's first packet
    was sent before anybody translated it, and `translated_by` the rule that did. `mark` is the packet's, `connmark` the
    connection's. `renamed` says that it leaves under another source, to which the answer will go.
    """

    family: Family
    protocol: Protocol
    source: Address | None
    destination: Address | None
    port: int | None
    wanted: tuple[Address, int]
    source_port: int | None = None
    came_in: str = ""
    goes_out: str = ""
    state: State = State.NEW
    mark: int | None = 0
    connmark: int | None = 0
    translated_by: Place | None = None
    renamed: bool = False

    @property
    def tracked(self) -> bool:
        """Whether connection tracking knows a connection it belongs to."""
        return self.state in (State.NEW, State.ESTABLISHED)

    @property
    def to_client(self) -> bool:
        """Whether its port is one that a client chose, and nobody knows."""
        return self.state is State.ESTABLISHED and self.port is None

    def sent_to(self, destination: Address | None, port: int | None, by: Place) -> "Packet":
        """Give the packet as a DNAT makes it."""
        return replace(self, destination=destination, port=port, translated_by=by)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What matches ask of the host besides the packet.

    `local` has each address of the host with its interfaces. `inner` are subnets no client outside is in. `way_back` is
    the interface the host would send an answer out of.
    """

    local: dict[Address, frozenset[str]]
    inner: tuple[Subnet, ...] = ()
    way_back: str | None = None

    def within(self, address: Address | None, subnet: Subnet) -> Truth:
        """Tell whether an address, or a client somewhere outside, is in a subnet."""
        if address is not None:
            return told(address.version == subnet.version and address in subnet)
        if subnet.prefixlen == 0:
            return Truth.YES
        return Truth.NO if _lies_within(subnet, self.inner) else Truth.UNKNOWN

    def type_of(self, address: Address | None) -> str | None:
        """Give the kernel's word for a kind of address, as the FIB sees it; `None` where it cannot be told."""
        if address is None:
            return None
        if address in self.local or address.is_loopback:
            return "local"
        return "multicast" if address.is_multicast else "unicast"


def _lies_within(subnet: Subnet, others: Iterable[Subnet]) -> bool:
    return any(
        subnet.version == other.version and subnet.subnet_of(other)  # type: ignore[arg-type]  # the family is one
        for other in others
    )


def among_client_ports(first: int, last: int) -> Truth:
    """Tell whether a port that some client chose is in a range."""
    if first <= CLIENT_PORTS[0] and last >= CLIENT_PORTS[1]:
        return Truth.YES
    return Truth.NO if last < CLIENT_PORTS[0] else Truth.UNKNOWN
