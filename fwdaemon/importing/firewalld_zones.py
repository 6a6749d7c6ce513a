"""Zones of firewalld as plain data, whichever way they were written (firewalld.zone(5), firewalld.richlanguage(5))."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from xml.parsers import expat

from fwdaemon.importing.findings import HEAD, KEY, printable
from fwdaemon.rulesets.rules import network_of

_YES: Final = ("yes", "true", "1")


@dataclass(frozen=True, slots=True)
class End:
    """A source or a destination that a rich rule names; `unknown` is what stands there instead of an address."""

    address: str = ""
    inverted: bool = False
    unknown: str = ""

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> "End":
        """Read the attributes of `<source …/>` or `<destination …/>`."""
        inverted = attributes.get("invert", "no").lower() in _YES
        if "address" in attributes:
            return cls(attributes["address"], inverted)
        others = (f"{key} {attributes[key]}" for key in ("mac", "ipset") if key in attributes)
        return cls("", inverted, " ".join(others) or "nothing")

    @property
    def doubt(self) -> str:
        """What of it is not followed, if anything."""
        if self.unknown:
            return self.unknown
        try:
            network_of(self.address)
        except ValueError:
            return self.address or "nothing"
        return ""


@dataclass(frozen=True, slots=True)
class ForwardPort:
    """A forward-port; those of rich rules may be for some sources and destinations only.

    `limited` says that a limit goes with it. `text` is for messages.
    """

    line: int
    text: str
    port: str
    protocol: str
    to_port: str = ""
    to_address: str = ""
    rich: bool = False
    priority: int = 0
    family: str = ""
    source: End | None = None
    destination: End | None = None
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rich rule that refuses connections, for some sources only where it names one; `text` is for messages."""

    line: int
    text: str
    family: str = ""
    source: End | None = None


@dataclass(slots=True)
class Zone:
    """A zone, or a policy; `line` is where it begins, and `unread` has what of it is not understood.

    `default` is the default zone where its listing names it: then `takes_rest` says of that zone that it is in use.
    `ingress` and `egress` are the zones that a policy is between. Direct rules are a policy, too.
    """

    name: str
    line: int
    target: str = ""
    ingress: list[str] = field(default_factory=list)
    egress: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)
    sources: list[End] = field(default_factory=list)
    forwards: list[ForwardPort] = field(default_factory=list)
    priority: str = "0"
    is_policy: bool = False
    is_direct: bool = False
    default: str = ""
    takes_rest: bool = False
    unread: list[tuple[int, str]] = field(default_factory=list)


def forward_port(line: int, attributes: Mapping[str, str], text: str) -> ForwardPort:
    """Make a forward-port of the attributes of its element."""
    return ForwardPort(
        line,
        text,
        attributes.get("port", ""),
        attributes.get("protocol", ""),
        attributes.get("to-port", ""),
        attributes.get("to-addr", ""),
    )


# What `firewall-cmd --list-all`, `--list-all-zones` and `--list-all-policies` print.
_PORT: Final = re.compile(
    r"port=(?P<port>[^:]*):proto=(?P<protocol>[^:]*):toport=(?P<to_port>[^:]*):toaddr=(?P<to_addr>\S*)"
)
_PRIORITY: Final = re.compile(r"-?[0-9]{1,5}")
_REFUSING: Final = frozenset({"drop", "reject"})


def parse_listing(text: str) -> list[Zone]:
    """Read the zones of a listing; a line that has no place in one is kept as `unread`."""
    zones: list[Zone] = []
    key = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if (head := HEAD.fullmatch(line.rstrip())) is not None:
            zones.append(Zone(head["name"], number, takes_rest=head["marks"] == "default, active"))
        elif zones:
            match = KEY.fullmatch(line.rstrip())
            key = key if match is None else match["key"]
            _read(zones[-1], key, line.strip() if match is None else (match["value"] or "").strip(), number)
    default = next((zone.name for zone in zones if zone.takes_rest), "")
    for zone in zones:
        zone.default = default
    return zones


def _read(zone: Zone, key: str, value: str, line: int) -> None:
    match key:
        case "interfaces":
            zone.interfaces += value.split()
        case "sources":
            zone.sources += map(_source, value.split())
        case "forward-ports":
            zone.forwards += _ports(zone, value, line)
        case "rich rules" if value:
            zone.forwards += _rich(zone, value, line)
        case "ingress-priority" | "priority":
            zone.priority = value
        case "target":
            zone.target = value
        case "ingress-zones":
            zone.is_policy = True
            zone.ingress += value.split()
        case "egress-zones":
            zone.egress += value.split()


def _source(text: str) -> End:
    if text.startswith("ipset:"):
        return End(unknown=f"ipset {text[6:]}")
    return End(unknown=f"mac {text}") if re.fullmatch(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", text) else End(text)


def _ports(zone: Zone, value: str, line: int) -> Iterator[ForwardPort]:
    for word in value.split():
        match = _PORT.fullmatch(word)
        if match is None:
            zone.unread.append((line, word))
        else:
            yield ForwardPort(line, word, match["port"], match["protocol"], match["to_port"], match["to_addr"])


def _rich(zone: Zone, text: str, line: int) -> Iterator[ForwardPort]:
    """Read a rich rule in its own language."""
    try:
        words = shlex.split(text)
    except ValueError:
        zone.unread.append((line, text))
        return
    parts = _parts(words)
    if _REFUSING & parts.keys():
        source = End.of(parts["source"]) if "source" in parts else None
        zone.refusals.append(Refusal(line, text, parts.get("rule", {}).get("family", ""), source))
    if "forward-port" not in parts:
        return
    forward = forward_port(line, parts.get("forward-port", {}), text)
    rule = parts.get("rule", {})
    priority = rule.get("priority", "0")
    yield replace(
        forward,
        rich=True,
        priority=int(priority) if _PRIORITY.fullmatch(priority) else 0,
        family=rule.get("family", ""),
        source=End.of(parts["source"]) if "source" in parts else None,
        destination=End.of(parts["destination"]) if "destination" in parts else None,
        limited="limit" in parts,
    )


def _parts(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Give the attributes of each element; a limit that only goes with a log says nothing of the rule."""
    found: dict[str, dict[str, str]] = {}
    name = ""
    for word in words:
        key, is_attribute, value = word.partition("=")
        if is_attribute:
            found.setdefault(name, {})[key] = value
        elif word.upper() == "NOT":
            found.setdefault(name, {})["invert"] = "yes"
        elif word != "limit" or name not in ("log", "nflog", "audit"):
            name = word
            found.setdefault(name, {})
    return found


# Files of firewalld: `/etc/firewalld/zones/*.xml`, `policies/*.xml`, and `direct.xml`.
ROOTS: Final = ("zone", "policy", "direct")
# Where firewalld puts a policy that names no priority.
_USUAL: Final = {"policy": "-1", "direct": "-1"}
_DIRECT: Final = ("rule", "passthrough")


class BrokenXmlError(ValueError):
    """A text is no XML; `line` is where."""

    def __init__(self, line: int, said: str) -> None:
        self.line = line
        super().__init__(said)


def parse_zone(text: str, name: str) -> Zone:
    """Read the file of a zone; raise `BrokenXmlError` where it is none."""
    parser = expat.ParserCreate()
    reader = _Reader(parser, name)
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.EntityDeclHandler = reader.refuse
    try:
        parser.Parse(text.encode(), True)  # noqa: FBT003  expat knows it by position only
    except expat.ExpatError as error:
        raise BrokenXmlError(error.lineno, f"is not valid XML: {printable(expat.ErrorString(error.code))}") from None
    if reader.zone is None:
        raise BrokenXmlError(1, "has neither a zone nor a policy of firewalld in it")
    return reader.zone


@dataclass(slots=True)
class _Rich:
    """A rich rule while it is read."""

    attributes: Mapping[str, str]
    line: int
    refuses: str = ""
    forward: ForwardPort | None = None
    source: End | None = None
    destination: End | None = None
    limited: bool = False


@dataclass(slots=True)
class _Direct:
    """A direct rule while it is read; its own text follows its attributes."""

    line: int
    tag: str
    attributes: Mapping[str, str]
    text: str = ""

    @property
    def may_refuse(self) -> bool:
        """Whether a connection to a guest may come to it and end there."""
        chain = self.attributes.get("chain", "").partition("_")[0]
        match self.attributes.get("table"):
            case "filter":
                return chain not in ("INPUT", "OUTPUT") and self.text.split()[-2:] != ["-j", "ACCEPT"]
            case "nat":
                return chain not in ("POSTROUTING", "OUTPUT")
        return True


@dataclass(slots=True)
class _Reader:
    parser: expat.XMLParserType
    name: str
    zone: Zone | None = None
    rich: _Rich | None = None
    direct: _Direct | None = None
    path: list[str] = field(default_factory=list)

    def refuse(self, *_declared: object) -> None:
        """Refuse entities: no zone has any."""
        raise BrokenXmlError(self.parser.CurrentLineNumber, "declares entities; a zone of firewalld has none")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Take an element."""
        line = self.parser.CurrentLineNumber
        self.path.append(tag)
        if len(self.path) == 1:
            self._root(tag, attributes, line)
        elif self.path[0] == "direct":
            self.direct = _Direct(line, tag, attributes) if tag in _DIRECT else self.direct
        elif self.zone is not None and tag == "rule":
            self.rich = _Rich(attributes, line)
        elif self.rich is not None:
            self._in_rich(self.rich, tag, attributes, line)
        elif self.zone is not None:
            _in_zone(self.zone, tag, attributes, line)

    def _root(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        if tag not in ROOTS:
            raise BrokenXmlError(line, f"<{printable(tag)}> is neither a zone nor a policy of firewalld")
        priority = attributes.get("ingress-priority", attributes.get("priority", _USUAL.get(tag, "0")))
        everywhere = ["ANY"] if tag == "direct" else []
        self.zone = Zone(
            self.name,
            line,
            attributes.get("target", ""),
            everywhere,
            list(everywhere),
            priority=priority,
            is_policy=tag != "zone",
            is_direct=tag == "direct",
        )

    def data(self, text: str) -> None:
        """Take what stands between elements."""
        if self.direct is not None:
            self.direct.text += text

    def end(self, tag: str) -> None:
        """Leave an element."""
        self.path.pop()
        if self.zone is None:
            return
        if tag == "rule" and self.rich is not None:
            _finish(self.zone, self.rich)
            self.rich = None
        elif self.direct is not None and tag == self.direct.tag:
            if self.direct.may_refuse:
                self.zone.unread.append((self.direct.line, self.direct.text.strip()))
            self.direct = None

    def _in_rich(self, rich: _Rich, tag: str, attributes: Mapping[str, str], line: int) -> None:
        match tag:
            case "source":
                rich.source = End.of(attributes)
            case "destination":
                rich.destination = End.of(attributes)
            case "forward-port":
                rich.forward = forward_port(line, attributes, _shown(tag, attributes))
            case "drop" | "reject":
                rich.refuses = tag
            case "limit" if self.path[-2] not in ("log", "nflog", "audit"):
                rich.limited = True


def _in_zone(zone: Zone, tag: str, attributes: Mapping[str, str], line: int) -> None:
    match tag:
        case "interface":
            zone.interfaces.append(attributes.get("name", ""))
        case "source":
            zone.sources.append(End.of(attributes))
        case "forward-port":
            zone.forwards.append(forward_port(line, attributes, _shown(tag, attributes)))
        case "ingress-zone":
            zone.ingress.append(attributes.get("name", ""))
        case "egress-zone":
            zone.egress.append(attributes.get("name", ""))


def _finish(zone: Zone, rich: _Rich) -> None:
    """Add what a rich rule does to its zone."""
    if rich.forward is not None:
        zone.forwards.append(_finished(rich, rich.forward))
    if rich.refuses:
        family = rich.attributes.get("family", "")
        zone.refusals.append(Refusal(rich.line, f"a rich rule that has {rich.refuses}", family, rich.source))


def _finished(rich: _Rich, forward: ForwardPort) -> ForwardPort:
    priority = rich.attributes.get("priority", "0")
    return replace(
        forward,
        rich=True,
        priority=int(priority) if priority.lstrip("-").isdecimal() and len(priority) < len("-32768x") else 0,
        family=rich.attributes.get("family", ""),
        source=rich.source,
        destination=rich.destination,
        limited=rich.limited,
    )


def _shown(tag: str, attributes: Mapping[str, str]) -> str:
    return " ".join([tag, *(f"{key}={value}" for key, value in attributes.items())])
