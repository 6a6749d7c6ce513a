"""Which kind of file a text is, and what was found in it: entries, and remarks on what could not carry over."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Final

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
        return self.host.shift_to(self.guest)


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


# Which kind of file a text is. Its content decides: such files carry any name.
#
# A kind is only what has its full shape, so that no other text is taken for one by a line or two. Lines of an address
# and a name are in many lists, so there, a name such as `hosts` counts too.

# The full shape of texts of nft and firewalld, so that a part of one is not taken for something else.
_FAMILY: Final = r"(?:ip|ip6|inet|arp|bridge|netdev)"
_SHAPE_OF_TABLE: Final = re.compile(rf"(?:(?:add|create)\s+)?table\s+(?:{_FAMILY}\s+)?[\w./\\-]+\s*(?:\{{.*|;.*|)")
_COMMAND: Final = re.compile(
    rf"(?:add|create|insert|delete|destroy|flush)\s+(?:ruleset|table|chain|rule|set|map|element)\b.*"
    rf"|(?:define|redefine)\s+\w+\s*=.*|include\s+\".*|table\s+(?:{_FAMILY}\s+)?[\w./\\-]+.*"
)
_XML: Final = re.compile(r"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<(?P<root>zone|policy|direct)[\s/>]", re.DOTALL)
# Lines of what firewall-cmd lists of zones.
HEAD: Final = re.compile(r"(?P<name>[\w-]+)(?: \((?P<marks>default|active|default, active)\))?")
KEY: Final = re.compile(r" {2}(?P<key>[a-z-]+(?: rules)?):(?: (?P<value>.*))?")
_PART: Final = re.compile(r"\t.*")


def is_nft(lines: Sequence[str]) -> bool:
    """Whether lines without comments and blanks at their ends begin as a text of nft, and make a table somewhere."""
    return _COMMAND.fullmatch(lines[0]) is not None and any(_SHAPE_OF_TABLE.fullmatch(line) for line in lines)


def firewalld_root(text: str) -> str:
    """Give the outermost element of an XML file of firewalld; empty where the text is none."""
    match = _XML.match(text)
    return "" if match is None else match["root"]


def is_firewalld_list(text: str) -> bool:
    """Whether every line of a text belongs to what firewall-cmd lists of zones, from the name of the first one on."""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    return (
        len(lines) > 1
        and HEAD.fullmatch(lines[0]) is not None
        and all(HEAD.fullmatch(line) or KEY.fullmatch(line) or _PART.fullmatch(line) for line in lines)
        and any(line.startswith("  forward-ports:") for line in lines)
    )


_LEADING_COMMENTS: Final = re.compile(r"(?:\s|//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)*")
_NFT_JSON: Final = re.compile(r"\s*\{\s*\"nftables\"\s*:\s*\[")
_HOSTS: Final = re.compile(r"(?i).*hosts(?:file)?(?:\..*)?")
# What JSON may begin with; a heading in brackets, as INI files and TOML have them, is none of it.
_JSON: Final = re.compile(r"\{|\[\s*(?:[]{\"'\d.+-]|\Z)")
_CONFIGURATION: Final = re.compile(r"\[\[\s*(?:forward|nat|route)\s*\]\]\s*(?:#.*)?")
_TABLE: Final = re.compile(r"\*(?:nat|filter|mangle|raw|security)")
_ASSIGNMENT: Final = r"(?m)^\s*(?:export\s+)?{}\s*="
_SHELL: Final = re.compile(r"[{}$`;=()|<>]")


class Kind(StrEnum):
    """A kind of file; the value is what a person calls it."""

    HOOKS_JSON = "hooks.json of libvirt-hook-qemu"
    ROUTED_IPS = "addresses of the routed-ips hook"
    PORTS_SCRIPT = "one domain's file of a bash hook"
    IPTABLES_SAVE = "output of iptables-save"
    NFT_TEXT = "nftables rules as text"
    FIREWALLD_XML = "a file of firewalld"
    FIREWALLD_LIST = "what firewall-cmd lists"
    EMPTY = "nothing but comments"


def recognise(file: Path, text: str) -> Kind:
    """Give the kind of a file.

    Raises:
        BrokenFileError: it is none of them.

    """
    if _NFT_JSON.match(text):
        raise BrokenFileError(file, 1, "is what nft prints with -j; give the output of `nft list ruleset`, without -j")
    return _of_whole(text) or _of_lines(file, text)


def _of_whole(text: str) -> Kind | None:
    """Give the kind of a text that is one thing from its beginning to its end."""
    match = _LEADING_COMMENTS.match(text)
    if match is not None and _JSON.match(text, match.end()):
        return Kind.HOOKS_JSON
    if firewalld_root(text):
        return Kind.FIREWALLD_XML
    return Kind.FIREWALLD_LIST if is_firewalld_list(text) else None


def _of_lines(file: Path, text: str) -> Kind:
    lines = list(_significant(text))
    if _TABLE.fullmatch(lines[0][1]) if lines else _is_of_iptables(text):
        return Kind.IPTABLES_SAVE
    if not lines:
        return Kind.EMPTY
    if is_nft([line for _, line in lines]):
        return Kind.NFT_TEXT
    if all(re.search(_ASSIGNMENT.format(key), text) for key in ("PRIVATE_IP", "PORTS")):
        return Kind.PORTS_SCRIPT
    return _routed_ips(file, lines)


def _routed_ips(file: Path, lines: Sequence[tuple[int, str]]) -> Kind:
    """See that each line can be one of routed-ips; else tell the first that cannot."""
    strange = [(number, line) for number, line in lines if not _is_like_a_route(line)]
    if not strange and _HOSTS.fullmatch(file.name):
        raise BrokenFileError(file, 1, "is a list of hosts by its name; give one of the routed-ips hook another name")
    if not strange:
        return Kind.ROUTED_IPS
    number, line = next((line for line in strange if _CONFIGURATION.fullmatch(line[1])), strange[0])
    if _CONFIGURATION.fullmatch(line):
        raise BrokenFileError(file, number, _ALREADY)
    raise BrokenFileError(file, number, f"{quote(line)} is from no known kind of file; {_REMEDY}")


def _is_like_a_route(line: str) -> bool:
    """Whether a line is an address that can be routed, and one name; /etc/hosts and lists of routes have others too."""
    words = re.sub(r"\s#.*", "", line).split()
    return len(words) == len(("address", "network")) and _can_be_routed(words[0]) and not _SHELL.search(words[1])


def _can_be_routed(word: str) -> bool:
    try:
        network = ip_network(word, strict=False)
    except ValueError:
        return False
    return not (network.is_loopback or network.is_multicast or network.is_link_local)


def _is_of_iptables(text: str) -> bool:
    """Whether a text of comments only is what `iptables-save` prints of tables that it cannot show."""
    return re.search(r"(?m)^# Table `\w+' (?:is|contains) incompatible", text) is not None


def _significant(text: str) -> Iterator[tuple[int, str]]:
    """Yield what is neither blank nor a comment, with its number."""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


_ALREADY: Final = "is of a configuration of kvm-portfwd already; `kvm-portfwd check FILE` says whether it is right"
_REMEDY: Final = (
    "give hooks.json of libvirt-hook-qemu, a routed-ips file, a bash hook's file with PRIVATE_IP= and PORTS=,"
    " the output of iptables-save, nft list ruleset or firewall-cmd --list-all-zones, /etc/nftables.conf, or a zone of"
    " firewalld"
)
