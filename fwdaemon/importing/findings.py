"""What was found in one file: entries, and remarks on what is different or could not carry over."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import tomlkit

from fwdaemon.config.addresses import parse_listen, parse_source
from fwdaemon.config.model import RouteEntry
from fwdaemon.config.names import as_pattern, parse_domain, parse_network
from fwdaemon.config.ports import LAST_PORT
from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import Address, Family, Origin, PortRange, Protocol, Subnet
from fwdaemon.errors import PortfwdError, Problem
from fwdaemon.rulesets.rules import Box, network_of


class BrokenFileError(PortfwdError):
    """A file is none of the known kinds, or cannot be read as the kind it is; nothing of it is used."""

    def __init__(self, file: Path, line: int, text: str) -> None:
        self.problem = Problem(file, line, text)
        super().__init__(str(self.problem))


@dataclass(frozen=True, slots=True)
class Forward:
    """One port, or one range of equal width on both sides, as an old tool forwarded it.

    `domain` is `None` where the old tool did not name it. `listen` of `None` is every address of the host, empty
    `sources` is anyone. `reason` says why it must not be live, if it must not. `judged` is there where the old rules
    were followed.
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
    reason: str = ""
    judged: "Judged | None" = None

    @property
    def shift(self) -> int:
        """What has to be added to a port of the host to give the guest's."""
        return self.guest.first - self.host.first


@dataclass(frozen=True, slots=True)
class Hole:
    """Packets that a forward would take, though the rule on this line took them; harmless behind a forward of them."""

    packets: Box
    line: int


@dataclass(frozen=True, slots=True)
class Judged:
    """What a forward would take of the packets that old rules were followed for, and what of it was not let in."""

    packets: Box
    holes: tuple[Hole, ...] = ()


@dataclass(frozen=True, slots=True)
class Nat:
    """A public address that was a guest, in and out; `reason` says why it must not be live, if it must not."""

    public: Address
    address: Address
    origin: Origin
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something a person should know; a warning if what was forwarded may differ from before."""

    origin: Origin
    text: str
    is_warning: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What a reader found in `file`, which is of the kind `kind`; the lists grow while it reads.

    `families` are those whose connections pass rules of the file.
    """

    file: Path
    kind: str
    forwards: list[Forward] = field(default_factory=list)
    routes: list[RouteEntry] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    nats: list[Nat] = field(default_factory=list)
    families: set[Family] = field(default_factory=set)

    @property
    def names_domains(self) -> bool:
        """Whether the file itself says for each entry which domain it is for."""
        return not self.nats and all(forward.domain is not None for forward in self.forwards)

    @property
    def says_anything(self) -> bool:
        """Whether there is an entry, or a warning why there is none."""
        return bool(self.forwards or self.nats or self.routes or any(remark.is_warning for remark in self.remarks))

    def origin(self, line: int) -> Origin:
        """Give the place of a line, counted from 1."""
        return Origin(self.file, line)

    def warn(self, line: int, text: str) -> None:
        """Remark that something is left out, or may be different."""
        self.remarks.append(Remark(self.origin(line), text, is_warning=True))

    def warn_once(self, line: int, text: str) -> None:
        """Remark this unless it is among the remarks already, on whatever line."""
        if all(remark.text != text for remark in self.remarks):
            self.warn(line, text)

    def note(self, line: int, text: str) -> None:
        """Remark what is worth a comment but no warning."""
        self.remarks.append(Remark(self.origin(line), text, is_warning=False))

    def in_order(self) -> list[Remark]:
        """Give the remarks by line."""
        return sorted(self.remarks, key=lambda remark: remark.origin.line)


# Values as the old tools wrote them, held to what our configuration takes.
#
# Addresses went to iptables unread, so they may have a prefix length or a netmask, or host bits beyond it. Each reader
# raises `GrammarError` where our configuration cannot say the same.
_LONGEST_PORT = len(str(LAST_PORT))


def printable(text: str) -> str:
    """Give the text for one line of a terminal or a comment, of any length; what cannot be printed is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def read_name(text: str) -> str:
    """Read the name of a domain, as libvirt has it, and give it as our configuration writes it."""
    parse_domain(as_pattern(_valid(text)))
    return as_pattern(text)


def read_network(text: str) -> str:
    """Read the name of a network."""
    return parse_network(_valid(text))


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError(f"{quote(text)} is no valid text; write the name that virsh shows") from None
    return text


def read_listen(text: str) -> Address | None:
    """Read what iptables' `-d` took; `None` is every address."""
    try:
        network = network_of(text)
    except ValueError:
        return parse_listen(text)
    if network.prefixlen == 0:
        return None
    if network.prefixlen < network.max_prefixlen:
        raise GrammarError(f"{quote(text)} is a network; write a forward with the addresses of it that are in use")
    return parse_listen(str(network.network_address))


def read_sources(text: str) -> tuple[Subnet, ...]:
    """Read what iptables' `-s` took: one or more networks, separated by commas."""
    return tuple(_read_source(part.strip()) for part in text.split(","))


def _read_source(text: str) -> Subnet:
    try:
        network = network_of(text)
    except ValueError:
        return parse_source(text)
    return parse_source(str(network))


def read_port(text: str) -> int:
    """Read a port, 1 to 65535, in decimal digits."""
    if text.isascii() and text.isdigit() and len(text) <= _LONGEST_PORT and 1 <= int(text) <= LAST_PORT:
        return int(text)
    raise GrammarError(f"{quote(text)} is no port; write a number from 1 to {LAST_PORT}")


def port_range(first: int, last: int) -> PortRange:
    """Give the ports from `first` to `last`, where that is a range."""
    if 1 <= first <= last <= LAST_PORT:
        return PortRange(first, last)
    raise GrammarError(f"{first} to {last} is no range of ports; write numbers from 1 to {LAST_PORT}")


def read_range(text: str) -> PortRange:
    """Read one port, or a range as `80-90`; raise `GrammarError` where it is none."""
    first, dash, last = text.partition("-")
    start = read_port(first)
    return port_range(start, read_port(last) if dash else start)


# Our configuration as text: entries with the place each of them comes from, and comments on what was left out.
#
# Every value is written by tomlkit, and whatever else comes from outside stands in comments, printable and on one line.
_HEAD: Final = (
    "Made by kvm-portfwd import. `kvm-portfwd check FILE` says whether a configuration is right.",
    "What is left out, or different from before, is listed here.",
)

Keys: TypeAlias = tuple[tuple[str, str | tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Exposure:
    """One element of an entry: `element` of the array `array`, in a `[[table]]` with these other keys.

    Without an array the keys are the whole entry, and `element` is what messages call it.
    `reason` says why it is written commented out, if it is.
    """

    table: str
    keys: Keys
    array: str
    element: str
    origin: Origin
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the configuration, and the exposures that it holds for; none where it is only a comment."""

    text: str
    exposures: tuple[Exposure, ...] = ()


def write(files: Iterable[Findings], exposures: Iterable[Exposure]) -> list[Line]:
    """Write the remarks on each file, then the entries: one for all exposures that differ only in the element."""
    lines = [_comment(text) for text in _HEAD]
    for findings in files:
        lines += _remarks(findings)
    groups: dict[tuple[str, str, Keys], list[Exposure]] = {}
    for exposure in sorted(exposures, key=lambda exposure: bool(exposure.reason)):
        groups.setdefault((exposure.reason, exposure.table, exposure.keys), []).append(exposure)
    for group in groups.values():
        lines += [Line(""), *(_entry(group) if not group[0].reason else _commented_out(group))]
    return lines


def _remarks(findings: Findings) -> Iterator[Line]:
    yield _comment("")
    yield _comment(f"From {findings.file}, {findings.kind}")
    for remark in findings.in_order():
        yield _comment(f"  line {remark.origin.line}: {remark.text}")


def _entry(group: Sequence[Exposure]) -> Iterator[Line]:
    every, first = tuple(group), group[0]
    yield Line(f"[[{first.table}]]" + ("" if first.array else f" # {printable(str(first.origin))}"), every)
    for key, value in first.keys:
        yield Line(f"{key} = {_value(value)}", every)
    if not first.array:
        return
    yield Line(f"{first.array} = [", every)
    for exposure in group:
        yield Line(f"    {_value(exposure.element)}, # {printable(str(exposure.origin))}", (exposure,))
    yield Line("]", every)


def _commented_out(group: Sequence[Exposure]) -> Iterator[Line]:
    yield _comment(f"Left out: {group[0].reason}")
    yield from (_comment(line.text) for line in _entry(group))


def _comment(text: str) -> Line:
    return Line(f"# {printable(text)}".rstrip())


def _value(value: str | tuple[str, ...]) -> str:
    """Write a value as TOML; tomlkit leaves characters in it that a terminal would obey, such as U+009B."""
    text = tomlkit.item(value if isinstance(value, str) else list(value)).as_string()
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08X}" for letter in text)
