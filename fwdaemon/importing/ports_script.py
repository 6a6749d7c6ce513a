"""A bash hook's file for one domain: `PUBLIC_IP=…`, `PRIVATE_IP=…` and `PORTS=tcp:80,tcp:443`. Read, never run.

The hook reads assignments from it and makes the rules itself. A file with anything else in it may forward less than its
assignments say, so nothing of it is live.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from fwdaemon.config.addresses import parse_guest, parse_routed
from fwdaemon.config.model import RouteEntry
from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import Address, PortRange, Protocol, Subnet
from fwdaemon.importing.findings import Findings, Forward, Kind, read_listen, read_name, read_network, read_port

_KEYS: Final = ("PUBLIC_IP", "PRIVATE_IP", "PORTS")
# An assignment, whose quotes may span lines; or whatever else a line says. No repetition gives anything back, so a text
# of any length is read in one pass.
_STATEMENT: Final = re.compile(
    r"[^\S\n]*+(?:"
    r"(?P<comment>\#[^\n]*+)"
    r"|(?P<export>export[^\S\n]++)?(?P<key>[A-Za-z_]\w*+)(?P<before>[^\S\n]*+)=(?P<after>[^\S\n]*+)"
    r"""(?:"(?P<double>[^"]*+)"|'(?P<single>[^']*+)'|(?P<plain>[^\n"'#;]*+))[^\S\n]*+(?:\#[^\n]*+)?"""
    r"|(?P<other>[^\n]*+)"
    r")(?:[;\n]|$)"
)
# What a shell would run or work out, so that a value may hold more or less than it shows; in quotes, and without.
_WORKED_OUT: Final = re.compile(r"`|\$[({]|\\")
_RUN: Final = re.compile(r"`|\$[({]|[&|()<>\\]")
# Commands that change no assignment.
_HARMLESS: Final = re.compile(r"set(?:\s+-[aeux]+|\s+-[eux]*o\s+pipefail)+|export(?:\s+[A-Za-z_]\w*)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Value:
    line: int
    text: str


def parse_ports_script(file: Path, text: str, name: str | None) -> Findings:
    """Read the file of the domain `name`; `None` where only its address can tell which domain it is."""
    findings = Findings(file, Kind.PORTS_SCRIPT)
    domain = _read_domain(findings, name)
    values, unread = _read_values(findings, text)
    if (address := _read_address(findings, values)) is None or "PORTS" not in values:
        findings.warn(1, "left out: there is no valid PRIVATE_IP=ADDRESS and PORTS=tcp:80,… in it")
        return findings
    try:
        listen = _read_public(findings, values)
    except GrammarError as error:
        findings.warn(values["PUBLIC_IP"].line, f"left out: {error}")
        return findings
    origin = findings.origin(values["PORTS"].line)
    reason = _UNKNOWN.format(unread) if unread else ""
    for port in _read_ports(findings, values["PORTS"]):
        findings.forwards.append(Forward(domain, address, *port, origin, listen, reason=reason))
    return findings


_UNKNOWN: Final = (
    "what line {} does is not known, and less may have been forwarded; give all that iptables-save prints while the"
    " guest runs"
)


def _read_domain(findings: Findings, name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return read_name(name)
    except GrammarError as error:
        findings.warn(1, f"the file's name is no domain's: {error}")
        return None


def _read_values(findings: Findings, text: str) -> tuple[dict[str, _Value], int]:
    """Read the assignments, and tell the first line that is none; of several to one name the last counts."""
    values: dict[str, _Value] = {}
    unread: list[int] = []
    for match, line in _statements(text):
        key = match["key"]
        if (said := _not_understood(match)) is not None:
            unread.append(line)
            findings.warn(line, f"left out: {quote(said)} is no plain assignment, and nothing is run")
        elif key in _KEYS:
            if key in values:
                findings.warn(values[key].line, f"{key} left out: line {line} sets it again")
            values[key] = _Value(line, match["double"] or match["single"] or (match["plain"] or "").strip())
        elif key is not None:
            findings.warn(line, f"{quote(key)} left out: only {', '.join(_KEYS)} are read")
    return values, min(unread, default=0)


def _not_understood(match: re.Match[str]) -> str | None:
    """Give a statement that may change what the assignments say; `None` where it cannot."""
    if match["key"] is not None:
        plain = (match["plain"] or "").strip()
        is_worked_out = _RUN.search(plain) or _WORKED_OUT.search(match["double"] or "")
        is_strange = is_worked_out or _runs_command(match, plain) or _goes_on(match)
        return match.group().strip(" \t\r\n;") if is_strange else None
    other = (match["other"] or "").strip()
    return other if other and not _HARMLESS.fullmatch(other) else None


def _runs_command(match: re.Match[str], plain: str) -> bool:
    """Whether a shell takes a word of the value for a command: a blank ends an assignment."""
    has_value = plain or match["double"] is not None or match["single"] is not None
    if match["before"]:
        return match["export"] is not None
    return bool((match["after"] and has_value) or len(plain.split()) > 1)


def _goes_on(match: re.Match[str]) -> bool:
    """Whether a `#` without a blank before it is of the value, and begins no comment."""
    text, end = match.string, match.end("plain")
    if match["plain"] is None:
        end = max(match.end("double"), match.end("single")) + 1
    return text[end : end + 1] == "#" and not text[end - 1].isspace()


def _statements(text: str) -> Iterator[tuple[re.Match[str], int]]:
    line = 1
    for match in _STATEMENT.finditer(text):
        yield match, line
        line += match.group().count("\n")


def _read_address(findings: Findings, values: dict[str, _Value]) -> Address | None:
    if "PRIVATE_IP" not in values:
        return None
    try:
        return parse_guest(values["PRIVATE_IP"].text)
    except GrammarError as error:
        findings.warn(values["PRIVATE_IP"].line, str(error))
        return None


def _read_public(findings: Findings, values: dict[str, _Value]) -> Address | None:
    if "PUBLIC_IP" in values:
        return read_listen(values["PUBLIC_IP"].text)
    findings.warn(1, "has no PUBLIC_IP; the forwards answer on every address of the host")
    return None


def _read_ports(findings: Findings, value: _Value) -> Iterator[tuple[PortRange, PortRange, Protocol]]:
    for word in re.split(r"[\s,]+", value.text.strip(" \t\n,")):
        protocol, _, port = word.partition(":")
        try:
            number = read_port(port)
        except GrammarError:
            findings.warn(value.line, f"{quote(word)} left out: it is not of the form tcp:80")
            continue
        if protocol.lower() in set(Protocol):
            yield PortRange(number, number), PortRange(number, number), Protocol(protocol.lower())
        else:
            findings.warn(value.line, f"{quote(word)} left out: {quote(protocol)} is not tcp, udp or sctp")


# `/etc/sysconfig/routed-ips` of the routed-ips hook: lines of an address, or a subnet, and a libvirt network's name.
#
# The old hook passed over every line with more than these two words, and over names with anything but letters, digits
# and `_`.
_COMMENT: Final = re.compile(r"\s#.*")
_TAKEN_BEFORE: Final = re.compile(r"\S+\s+\w+")
_PASSED_OVER: Final = "as more than an address and a name of letters, digits and _"
_WORDS: Final = 2
_TAKEN: Final = "the second column is taken for libvirt networks, which `virsh net-list --all` lists"
# What no provider routes to a host; lists of guests with their names are of such.
_PRIVATE: Final = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


def parse_routed_ips(file: Path, text: str) -> Findings:
    """Read the file; each line that cannot be a route becomes a warning."""
    findings = Findings(file, Kind.ROUTED_IPS)
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            _read_line(findings, number, stripped)
    _remark_networks(findings)
    return findings


def _remark_networks(findings: Findings) -> None:
    """Say what the names are taken for; a warning where the file looks like a list of hosts."""
    private = next((route for route in findings.routes if _is_private(route.subnet)), None)
    if private is not None:
        findings.warn(
            private.origin.line, f"{private.subnet.network_address} is private, as in a list of hosts: {_TAKEN}"
        )
    elif findings.routes:
        findings.note(findings.routes[0].origin.line, _TAKEN)


def _is_private(subnet: Subnet) -> bool:
    return any(subnet.version == each.version and subnet.subnet_of(each) for each in _PRIVATE)  # type: ignore[arg-type]  # the family is one


def _read_line(findings: Findings, number: int, line: str) -> None:
    words = _COMMENT.sub("", line).split()
    if len(words) != _WORDS:
        findings.warn(number, f"left out: {quote(line)} is not an address and a network, as in 203.0.113.7 public")
        return
    if _TAKEN_BEFORE.fullmatch(line) is None:
        findings.warn(number, f"left out: the old hook passed over {quote(line)}, {_PASSED_OVER}")
        return
    try:
        findings.routes.append(RouteEntry(read_network(words[1]), parse_routed(words[0]), findings.origin(number)))
    except GrammarError as error:
        findings.warn(number, f"left out: {error}")
