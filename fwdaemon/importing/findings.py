"""What was found in one file: entries, and remarks on what is different or could not carry over."""

from dataclasses import dataclass, field
from pathlib import Path

from fwdaemon.config.model import Origin, RouteEntry
from fwdaemon.errors import PortfwdError, Problem
from fwdaemon.model import Address, PortRange, Protocol, Subnet


class BrokenFileError(PortfwdError):
    """A file is none of the known kinds, or cannot be read as the kind it is; nothing of it is used."""

    def __init__(self, file: Path, line: int, text: str) -> None:
        self.problem = Problem(file, line, text)
        super().__init__(str(self.problem))


@dataclass(frozen=True, slots=True)
class Forward:
    """One port, or one range of equal width on both sides, as an old tool forwarded it.

    `domain` is `None` where the old tool did not name it. `listen` of `None` is every address of the host, empty
    `sources` is anyone.
    """

    domain: str | None
    address: Address
    host: PortRange
    guest: PortRange
    protocol: Protocol
    origin: Origin
    listen: Address | None = None
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()


@dataclass(frozen=True, slots=True)
class Remark:
    """Something a person should know; a warning if what was forwarded may differ from before."""

    origin: Origin
    text: str
    is_warning: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What a reader found in `file`, which is of the kind `kind`; the lists grow while it reads."""

    file: Path
    kind: str
    forwards: list[Forward] = field(default_factory=list)
    routes: list[RouteEntry] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def origin(self, line: int) -> Origin:
        """Give the place of a line, counted from 1."""
        return Origin(self.file, line)

    def warn(self, line: int, text: str) -> None:
        """Remark that something is left out, or may be different."""
        self.remarks.append(Remark(self.origin(line), text, is_warning=True))

    def note(self, line: int, text: str) -> None:
        """Remark what is worth a comment but no warning."""
        self.remarks.append(Remark(self.origin(line), text, is_warning=False))

    def in_order(self) -> list[Remark]:
        """Give the remarks by line."""
        return sorted(self.remarks, key=lambda remark: remark.origin.line)
