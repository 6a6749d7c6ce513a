"""What a valid configuration says, as plain data.

Parsing and checking are in the modules beside this one; whoever holds a `Config` may rely on every rule of the grammar.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from fwdaemon.model import Address, PortRange, Protocol, Subnet


class BackendChoice(StrEnum):
    """Which of the kernel's rule systems holds our rules; `AUTO` follows libvirt's own."""

    AUTO = "auto"
    NFTABLES = "nftables"
    IPTABLES = "iptables"


class OnStop(StrEnum):
    """What becomes of the rules when the daemon stops."""

    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where in the configuration something was said; lines count from 1."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Gate:
    """A foreign chain of the forward hook that is to let our connections through, `inet filter forward`."""

    family: str
    table: str
    chain: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """The `[daemon]` table, defaults filled in."""

    libvirt: tuple[str, ...] = ("qemu:///system",)
    backend: BackendChoice = BackendChoice.AUTO
    resync: timedelta = timedelta(seconds=30)
    on_stop: OnStop = OnStop.KEEP
    ip_forward: bool = True
    mark: int = 0x02000000
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One element of `ports`, for one protocol: `tcp+udp` becomes two of these.

    `host` and `guest` have the same width and are mapped one to one, in order. `listen` is the address written inside
    the port string itself, if one is.
    """

    host: PortRange
    guest: PortRange
    protocol: Protocol
    listen: Address | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class ForwardEntry:
    """One `[[forward]]`.

    `domain` is a libvirt name or UUID, exactly as written, and may be any text. Empty `listen` means every local
    address, empty `sources` anyone. At most one of `network` and `mac` is set; `mac` is in lower case with colons.
    Where `listen` is set, no mapping has a listening address of its own.
    """

    domain: str
    mappings: tuple[PortMapping, ...]
    origin: Origin
    listen: tuple[Address, ...] = ()
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()
    address: Address | None = None
    network: str | None = None
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration: the main file and its drop-ins, in name order."""

    daemon: DaemonSettings
    forwards: tuple[ForwardEntry, ...]
