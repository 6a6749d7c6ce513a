"""What is asked of the host on the way, as plain data, and the one seam through which it is asked. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from typing import Protocol as Interface

from fwdaemon.core.inventory import HostAddress
from fwdaemon.core.types import Address, Family, Listener, Subnet
from fwdaemon.rulesets.packet import BaseChain

MAIN_TABLE: Final = 254  # RT_TABLE_MAIN, linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What the kernel says of the way to an address.

    `device` is `None` where there is no way. `local` says that it is the host itself. `subnet` is the destination of
    the route that decides, and `table` where that stands; `kind` is the word of ip-route(8) for one that leads nowhere.
    `rule` is one of policy routing that does so, as ip-rule(8) writes it.
    """

    device: str | None
    gateway: Address | None = None
    local: bool = False
    subnet: Subnet | None = None
    table: int = MAIN_TABLE
    kind: str = ""
    rule: str = ""


class GuestAnswer(StrEnum):
    """What became of a TCP connection from the host to a guest."""

    ANSWERS = "answers"
    REFUSES = "refuses"
    SILENT = "silent"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Sighting:
    """An answer of a guest, seen on an interface of the host.

    `to_host` says that its frame was sent to the host itself, and not to another machine behind the same bridge.
    `by_port` says that the port which was asked answered, or something about it; otherwise it answers a ping.
    """

    device: str
    to_host: bool
    by_port: bool


@dataclass(frozen=True, slots=True)
class FarAnswer:
    """How a guest answers a client off its link.

    `sent` says that the questions left the host. `wanted` are addresses that the guest looked for by ARP, and where.
    """

    sent: bool
    seen: frozenset[Sighting] = frozenset()
    wanted: frozenset[tuple[str, Address]] = frozenset()


class World(Interface):
    """The host, asked only for what the walk comes to. Everything blocks.

    Each method may raise `PortfwdError` where the kernel or a program does not answer.
    """

    def addresses(self) -> Sequence[HostAddress]:
        """List the host's own addresses."""
        ...

    def route(self, to: Address, source: Address | None = None, came_in: str | None = None) -> RouteAnswer:
        """Ask where a packet goes: one of the host's own, or with both arguments one that came in from elsewhere."""
        ...

    def gateway_on(self, device: str, family: Family) -> Address | None:
        """Give a gateway that any routing table knows behind a device."""
        ...

    def listeners(self) -> Sequence[Listener]:
        """List the sockets of the host's own processes in this network namespace."""
        ...

    def holder(self, listener: Listener) -> str | None:
        """Name the process that holds a socket, where that can be told."""
        ...

    def chains(self) -> Sequence[BaseChain]:
        """List every base chain of every rule system."""
        ...

    def sysctl(self, name: str) -> str:
        """Read a setting, `net.ipv4.ip_forward`; empty where there is no such thing."""
        ...

    def bridge_of(self, device: str) -> str | None:
        """Give the bridge that a device is plugged into."""
        ...

    def in_hairpin_mode(self, device: str) -> bool:
        """Whether a bridge port may send a frame back where it came from."""
        ...

    def is_up(self, device: str) -> bool | None:
        """Whether a device is switched on; `None` where there is none of that name."""
        ...

    def is_inner(self, device: str) -> bool:
        """Whether a device leads to containers, or nowhere: a veth, a bridge of these or of nothing, a dummy."""
        ...

    def daemon(self) -> int | None:
        """Give the process number of the daemon, if it runs in this network namespace."""
        ...

    def is_on_link(self, address: Address) -> bool:
        """Whether another machine on the host's own link answers for an address."""
        ...

    def ask_guest(self, address: Address, port: int) -> GuestAnswer:
        """Open a TCP connection from the host to a guest, and close it."""
        ...

    def ask_from_afar(self, address: Address, port: int, device: str, source: Address) -> FarAnswer:
        """Ask a guest behind a device by TCP and by ping, as a client with this source, and watch how it answers."""
        ...
