"""What is asked of the host on the way, as plain data, and the one seam through which it is asked. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from typing import Protocol as Interface

from fwdaemon.explain.rules import BaseChain
from fwdaemon.inventory import HostAddress
from fwdaemon.model import Address, Subnet
from fwdaemon.sockets.model import Listener

MAIN_TABLE: Final = 254  # RT_TABLE_MAIN, linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What the kernel says of the way to an address.

    `device` is `None` where there is no way. `local` says that it is the host itself. `subnet` is the destination of
    the route that decides, and `table` where that stands; `kind` is the word of ip-route(8) for one that leads nowhere.
    """

    device: str | None
    gateway: Address | None = None
    local: bool = False
    subnet: Subnet | None = None
    table: int = MAIN_TABLE
    kind: str = ""


class GuestAnswer(StrEnum):
    """What became of a TCP connection from the host to a guest."""

    ANSWERS = "answers"
    REFUSES = "refuses"
    SILENT = "silent"
    UNREACHABLE = "unreachable"


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

    def daemon(self) -> int | None:
        """Give the process number of the daemon, if it runs in this network namespace."""
        ...

    def ask_guest(self, address: Address, port: int) -> GuestAnswer:
        """Open a TCP connection from the host to a guest, and close it."""
        ...
