"""A bash hook's file for one domain: `PUBLIC_IP=…`, `PRIVATE_IP=…` and `PORTS=tcp:80,tcp:443`. Read, never run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fwdaemon.config.addresses import parse_guest
from fwdaemon.config.text import GrammarError, quote
from fwdaemon.importing.findings import Findings, Forward
from fwdaemon.importing.recognise import Kind
from fwdaemon.importing.values import read_listen, read_name, read_port
from fwdaemon.model import Address, PortRange, Protocol

_KEYS: Final = ("PUBLIC_IP", "PRIVATE_IP", "PORTS")
# An assignment, whose quotes may span lines; or whatever else a line says. No repetition gives anything back, so a text
# of any length is read in one pass.
_STATEMENT: Final = re.compile(
    r"[^\S\n]*+(?:"
    r"(?P<comment>\#[^\n]*+)"
    r"|(?:export[^\S\n]++)?(?P<key>[A-Za-z_]\w*+)[^\S\n]*+=[^\S\n]*+"
    r"""(?:"(?P<double>[^"]*+)"|'(?P<single>[^']*+)'|(?P<plain>[^\n"'#;]*+))[^\S\n]*+(?:\#[^\n]*+)?"""
    r"|(?P<other>[^\n]*+)"
    r")(?:[;\n]|$)"
)


@dataclass(frozen=True, slots=True)
class _Value:
    line: int
    text: str


def parse(file: Path, text: str, name: str | None) -> Findings:
    """Read the file of the domain `name`; `None` where only its address can tell which domain it is."""
    findings = Findings(file, Kind.PORTS_SCRIPT)
    domain = _read_domain(findings, name)
    values = _read_values(findings, text)
    if (address := _read_address(findings, values)) is None or "PORTS" not in values:
        findings.warn(1, "left out: there is no sound PRIVATE_IP=ADDRESS and PORTS=tcp:80,… in it")
        return findings
    try:
        listen = _read_public(findings, values)
    except GrammarError as error:
        findings.warn(values["PUBLIC_IP"].line, f"left out: {error}")
        return findings
    for port in _read_ports(findings, values["PORTS"]):
        findings.forwards.append(Forward(domain, address, *port, findings.origin(values["PORTS"].line), listen))
    return findings


def _read_domain(findings: Findings, name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return read_name(name)
    except GrammarError as error:
        findings.warn(1, f"the file's name is no domain's: {error}")
        return None


def _read_values(findings: Findings, text: str) -> dict[str, _Value]:
    """Read the assignments; of several to one name the last one counts, as in a shell."""
    values: dict[str, _Value] = {}
    for match, line in _statements(text):
        key = match["key"]
        if key in _KEYS:
            if key in values:
                findings.warn(values[key].line, f"{key} left out: line {line} sets it again")
            values[key] = _Value(line, match["double"] or match["single"] or (match["plain"] or "").strip())
        elif key is not None:
            findings.warn(line, f"{quote(key)} left out: only {', '.join(_KEYS)} are read")
        elif match["other"]:
            findings.warn(line, f"left out: {quote(match['other'].strip())} is no plain assignment, and nothing is run")
    return values


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
