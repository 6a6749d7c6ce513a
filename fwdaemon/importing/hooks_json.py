"""`hooks.json` of libvirt-hook-qemu: which ports lead to which domain, by address.

The old tool checked the file only where Python's jsonschema was installed, and gave its values to iptables as they
were. What iptables refused never worked, and is left out here too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import json5

from fwdaemon.config.addresses import parse_guest
from fwdaemon.config.lines import KeyPath, LineIndex, lexemes
from fwdaemon.core.text import GrammarError, quote, show
from fwdaemon.core.types import Address, PortRange, Protocol, Subnet
from fwdaemon.importing.findings import (
    BrokenFileError,
    Findings,
    Forward,
    Kind,
    port_range,
    printable,
    read_listen,
    read_name,
    read_port,
    read_sources,
)

# On which line of a JSON text each value stands, since the JSON reader gives values without positions.
#
# This is no second reader: it follows keys and brackets of texts that were accepted, and believes the rest. Where one
# key stands twice, the later one counts, as it does for the reader.
_TOKEN: Final = re.compile(
    r"(?P<newline>\n)"
    r"|(?P<comment>//[^\n]*|/\*.*?\*/)"
    r'|(?P<word>"[^"\\]*(?:\\.[^"\\]*)*"'
    r"|'[^'\\]*(?:\\.[^'\\]*)*'"
    r"|[^\s\"'\[\]{},:/]+)"
    r"|(?P<mark>[][{},:])",
    re.DOTALL,
)


def json_lines(text: str) -> LineIndex:
    """Index a text that the JSON reader has accepted."""
    walk = _Walk()
    for kind, lexeme, line in lexemes(_TOKEN, text):
        if kind in {"word", "mark"}:
            walk.take(kind, lexeme, line)
    return LineIndex(walk.lines)


@dataclass(slots=True)
class _Frame:
    """An open object or array; `step` is the key or the index of what is read in it, `None` before a key."""

    path: KeyPath
    is_array: bool
    step: str | int | None


@dataclass(slots=True)
class _Walk:
    """Where the reading stands; tokens go in, `lines` grows."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    frames: list[_Frame] = field(default_factory=list)

    def take(self, kind: str, lexeme: str, line: int) -> None:
        """Take the next token, which begins on `line`."""
        frame = self.frames[-1] if self.frames else None
        if kind == "word" and frame is not None and frame.step is None:
            frame.step = _key(lexeme)
            self.lines[(*frame.path, frame.step)] = line
        elif kind == "word" or lexeme in "{[":
            self._begin_value(frame, lexeme, line)
        elif lexeme in "}]":
            self.frames.pop()
        elif lexeme == "," and frame is not None:
            frame.step = frame.step + 1 if isinstance(frame.step, int) else None

    def _begin_value(self, frame: _Frame | None, lexeme: str, line: int) -> None:
        path: KeyPath = () if frame is None or frame.step is None else (*frame.path, frame.step)
        if frame is not None and frame.is_array:
            self.lines[path] = line
        if lexeme == "{":
            self.frames.append(_Frame(path, is_array=False, step=None))
        elif lexeme == "[":
            self.frames.append(_Frame(path, is_array=True, step=0))


def _key(lexeme: str) -> str:
    """Give the name a key's lexeme writes; escapes are left to the JSON reader, which knows them."""
    if not lexeme.startswith(('"', "'")):
        return lexeme
    return str(json5.loads(lexeme)) if "\\" in lexeme else lexeme[1:-1]


_POSITION: Final = re.compile(r"<string>:(?P<line>\d+) (?P<said>.*)", re.DOTALL)
_Ports: TypeAlias = tuple[PortRange, PortRange]

_KEYS: Final = ("private_ip", "public_ip", "source_ip", "interface", "port_map", "port_range")
_TELLING: Final = ("private_ip", "port_map", "port_range")
_RANGE_KEYS: Final = ("init_port", "ports_num", "protocol")
_NO_ROUTE: Final = (
    "has no public_ip, and this host has no default route whose address the old tool would have taken;"
    " the forwards answer on every address"
)


def parse(file: Path, text: str, default_listen: Address | None) -> Findings:
    """Read the file; `default_listen` is the address that stands for a `public_ip` left out, if there is one.

    Raises:
        BrokenFileError: it is not JSON, or no object of domains.

    """
    values = _load(file, text)
    if not isinstance(values, dict):
        raise BrokenFileError(file, 1, "is JSON, but no object of domains; give libvirt-hook-qemu's hooks.json")
    if values and not any(map(_is_of_a_domain, values.values())):
        said = "is JSON, but no domain in it has a private_ip or ports; give libvirt-hook-qemu's hooks.json"
        raise BrokenFileError(file, 1, said)
    reader = _Reader(Findings(file, Kind.HOOKS_JSON), json_lines(text), default_listen)
    for name, value in values.items():
        reader.read_domain(name, value)
    if reader.fixed:
        reader.findings.warn(
            reader.fixed[0],
            f"where there is no public_ip, {default_listen} is written: the old tool asked at each start",
        )
    return reader.findings


def _is_of_a_domain(value: object) -> bool:
    """Whether a value has anything that only a domain of hooks.json has."""
    sections = value if isinstance(value, list) else [value]
    return any(isinstance(section, dict) and not section.keys().isdisjoint(_TELLING) for section in sections)


def _load(file: Path, text: str) -> Any:
    try:
        return json5.loads(text)
    except RecursionError:
        raise BrokenFileError(file, 1, "nests brackets too deeply; no hooks.json needs more than five") from None
    except ValueError as error:
        position = _POSITION.fullmatch(str(error))
        if position is None:
            raise BrokenFileError(file, 1, "has a number with too many digits; write a shorter one") from None
        said = printable(position["said"])
        raise BrokenFileError(file, int(position["line"]), f"is not valid JSON: {said}; fix the line") from None


@dataclass(frozen=True, slots=True)
class _Reader:
    """What is known while the file is read; `fixed` are the lines that got the default address."""

    findings: Findings
    lines: LineIndex
    default_listen: Address | None
    fixed: list[int] = field(default_factory=list)

    def read_domain(self, name: str, value: object) -> None:
        """Read one domain: an object, or an array of them."""
        try:
            domain = read_name(name)
        except GrammarError as error:
            self.findings.warn(self.lines.line_of((name,)), f"left out: {error}")
            return
        if isinstance(value, list):
            for index, item in enumerate(value):
                _Section(self, domain, (name, index)).read(item)
        else:
            _Section(self, domain, (name,)).read(value)


@dataclass(frozen=True, slots=True)
class _Common:
    """What all forwards of a section have in common."""

    address: Address
    listen: Address | None
    sources: tuple[Subnet, ...] = ()


@dataclass(frozen=True, slots=True)
class _Section:
    """One object of a domain, and its path in the file."""

    reader: _Reader
    domain: str
    path: KeyPath

    def read(self, value: object) -> None:
        """Read the object; without sound addresses nothing of it is used, as the clients it let in are unknown."""
        if not isinstance(value, dict):
            self._warn("left out: must be an object, not {}; write private_ip and port_map in braces", value)
            return
        for key in value:
            if key not in _KEYS:
                self._warn(f"{quote(key)} left out: libvirt-hook-qemu knew no such key", at=(key,))
        if not value.get("port_map") and not value.get("port_range"):
            self._warn("has no ports; write port_map or port_range")
        elif (common := self._read_addresses(value)) is not None:
            self._read_ports(value, common)

    def _read_ports(self, value: Mapping[str, object], common: _Common) -> None:
        self._remark_interface(value)
        sources = self._read_sources(value)
        if sources is not None:
            self._read_map(value.get("port_map", {}), replace(common, sources=sources))
        self._read_ranges(value.get("port_range", []), common)
        if sources and value.get("port_range"):
            self._warn("source_ip never held for port_range: anyone may still connect there", at=("source_ip",))

    def _read_addresses(self, value: Mapping[str, object]) -> _Common | None:
        if "private_ip" not in value:
            self._warn("left out: has no private_ip; write the guest's address")
            return None
        try:
            return _Common(parse_guest(_text(value["private_ip"], "private_ip")), self._read_listen(value))
        except GrammarError as error:
            self._warn(f"left out: {error}")
            return None

    def _read_listen(self, value: Mapping[str, object]) -> Address | None:
        if "public_ip" in value:
            return read_listen(_text(value["public_ip"], "public_ip"))
        if (listen := self.reader.default_listen) is None:
            self._warn(_NO_ROUTE)
        else:
            self._note(f"has no public_ip: listens on {listen}, the address of the default route's interface")
            self.reader.fixed.append(self._line())
        return listen

    def _remark_interface(self, value: Mapping[str, object]) -> None:
        if "interface" in value:
            self._note("interface left out: it named the guest's side, which is found by itself", at=("interface",))

    def _read_sources(self, value: Mapping[str, object]) -> tuple[Subnet, ...] | None:
        """Give who may connect, anyone where none is named; `None` where that cannot be said."""
        if not value.get("source_ip"):
            return ()
        try:
            return read_sources(_text(value["source_ip"], "source_ip"))
        except GrammarError as error:
            self._warn(f"port_map left out, as it is not known who may connect: {error}", at=("source_ip",))
            return None

    def _read_map(self, value: object, common: _Common) -> None:
        if not isinstance(value, dict):
            self._warn('port_map left out: must be an object, not {}; write {{"tcp": [80]}}', value, at=("port_map",))
            return
        for name, ports in value.items():
            at = ("port_map", name)
            protocol = self._read_protocol(name, at)
            if protocol is not None and not isinstance(ports, list):
                self._warn("left out: must be an array of ports, not {}", ports, at=at)
            elif protocol is not None and isinstance(ports, list):
                for index, item in enumerate(ports):
                    self._add((*at, index), common, protocol, partial(_read_pair, item))

    def _read_ranges(self, value: object, common: _Common) -> None:
        if not isinstance(value, list):
            self._warn("port_range left out: must be an array of objects, not {}", value, at=("port_range",))
            return
        for index, item in enumerate(value):
            at = ("port_range", index)
            if not isinstance(item, dict) or any(key not in item for key in _RANGE_KEYS):
                self._warn(f"left out: must be an object with {', '.join(_RANGE_KEYS)}", at=at)
            elif (protocol := self._read_protocol(item["protocol"], at)) is not None:
                self._add(at, common, protocol, partial(_read_range, item))

    def _read_protocol(self, value: object, at: KeyPath) -> Protocol | None:
        name = value.lower() if isinstance(value, str) else ""
        if name in set(Protocol):
            return Protocol(name)
        if name == "icmp":
            self._warn("icmp left out: it has no ports, so iptables refused the rule and it never worked", at=at)
        else:
            self._warn("left out: {} is no protocol with ports; write tcp, udp or sctp", value, at=at)
        return None

    def _add(
        self, at: KeyPath, common: _Common, protocol: Protocol, read: partial[tuple[PortRange, PortRange]]
    ) -> None:
        try:
            host, guest = read()
        except GrammarError as error:
            self._warn(f"left out: {error}", at=at)
            return
        findings = self.reader.findings
        origin = findings.origin(self._line(*at))
        forward = Forward(self.domain, common.address, host, guest, protocol, origin, common.listen)
        findings.forwards.append(replace(forward, sources=common.sources))

    def _line(self, *at: str | int) -> int:
        return self.reader.lines.line_of((*self.path, *at))

    def _warn(self, text: str, *shown: object, at: KeyPath = ()) -> None:
        self.reader.findings.warn(self._line(*at), self._said(text, *shown))

    def _note(self, text: str, at: KeyPath = ()) -> None:
        self.reader.findings.note(self._line(*at), self._said(text))

    def _said(self, text: str, *shown: object) -> str:
        said = text.format(*map(_shown, shown)) if shown else text
        return f"domain {quote(self.domain)}: {said}"


def _shown(value: object) -> str:
    return "null" if value is None else show(value)


def _text(value: object, key: str) -> str:
    if isinstance(value, str):
        return value
    raise GrammarError(f"{key} must be a string, not {_shown(value)}; write an address in quotes")


def _read_pair(value: object) -> _Ports:
    """Read an element of `port_map`: a port, or the host's and the guest's."""
    ports = value if isinstance(value, list) else [value, value]
    if len(ports) != len(("host", "guest")):
        raise GrammarError(f"{len(ports)} ports in one bracket; write one port, or [host, guest]")
    host, guest = (_number(port) for port in ports)
    return PortRange(host, host), PortRange(guest, guest)


def _read_range(value: Mapping[str, object]) -> _Ports:
    first, count = _number(value["init_port"]), _number(value["ports_num"])
    ports = port_range(first, first + count - 1)
    return ports, ports


def _number(value: object) -> int:
    """Read a port or a number of ports; digits in quotes reached iptables all the same."""
    if isinstance(value, int) and not isinstance(value, bool):
        return read_port(show(value))
    if isinstance(value, str):
        return read_port(value)
    raise GrammarError(f"{_shown(value)} is no port; write a number")
