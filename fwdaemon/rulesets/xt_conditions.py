"""Matches of iptables, as `iptables-save` writes them. Pure; sources are iptables(8) and iptables-extensions(8).

A match that is not known here may hold or not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, TypeAlias

from fwdaemon.core.admission import Ranges
from fwdaemon.core.types import Address, Protocol, Subnet
from fwdaemon.legacy.model import SET_MATCH
from fwdaemon.rulesets.nft_values import PROTOCOL_NAMES, tcp_flags
from fwdaemon.rulesets.packet import (
    Packet,
    State,
    Surroundings,
    Tristate,
    among_client_ports,
    any_of,
    negated,
    tristate_of,
)
from fwdaemon.rulesets.rules import network_of
from fwdaemon.rulesets.xt_matches import Option

Test: TypeAlias = Callable[[Packet, Surroundings], Tristate]
Members: TypeAlias = Mapping[str, Ranges]
"""Who is in ipsets of addresses, as far as that is known."""

NO_MEMBERS: Final[Members] = {}

_LAST_PORT: Final = 65535
# Modules whose own name says nothing: all that they ask is in their options.
_PLAIN_MODULES: Final = frozenset(
    {"tcp", "udp", "sctp", "multiport", "comment", "conntrack", "state", "mark", "connmark", "addrtype", "iprange"}
    | {"connlabel", "pkttype", "set"}
)
_TCP_FLAGS: Final = frozenset({"fin", "syn", "rst", "psh", "ack", "urg"})


def tests_of(options: Sequence[Option], members: Members) -> Iterator[Test]:
    """Give a test for each option, and for each module that is not known."""
    sets = bool(list(labels_set(options)))
    for option in options:
        if option.name == "-m":
            if not _PLAIN_MODULES.issuperset(option.values):
                yield _cannot_tell
        elif option.module == "connlabel" and sets:
            yield _inverse(_is_tracked) if option.inverted else _is_tracked
        elif option.name == SET_MATCH:
            test = _in_set(option, members)
            yield _inverse(test) if option.inverted else test
        elif option.name != "--comment":
            yield _test_of(option)


def labels_set(options: Sequence[Option]) -> Iterator[str]:
    """Give the label that a rule sets while it matches, if there is one."""
    of_label = [option for option in options if option.module == "connlabel"]
    if any(option.name == "--set" for option in of_label):
        yield from (option.values[0] for option in of_label if option.name == "--label" and option.values)


def _test_of(option: Option) -> Test:
    maker = _MAKERS.get((option.module, option.name)) or _MAKERS.get(("", option.name))
    if maker is None or not option.values:
        return _cannot_tell
    try:
        test = maker(*option.values)
    except (ValueError, TypeError):
        return _cannot_tell
    return _inverse(test) if option.inverted else test


def _in_set(option: Option, members: Members) -> Test:
    name, *direction = option.values or ("",)
    if name not in members or direction != ["src"]:
        return _cannot_tell
    ranges = members[name]
    return lambda packet, _: Tristate.UNKNOWN if packet.source is None else tristate_of(ranges.holds(packet.source))


def _is_tracked(packet: Packet, _surroundings: Surroundings) -> Tristate:
    return tristate_of(packet.tracked)


def _cannot_tell(_packet: Packet, _surroundings: Surroundings) -> Tristate:
    return Tristate.UNKNOWN


def _inverse(test: Test) -> Test:
    return lambda packet, surroundings: negated(test(packet, surroundings))


# --- addresses and interfaces ----------------------------------------------------------------------------------------


def _source(text: str) -> Test:
    subnets = [network_of(part) for part in text.split(",")]
    return lambda packet, around: any_of(around.within(packet.source, subnet) for subnet in subnets)


def _destination(text: str) -> Test:
    subnets = [network_of(part) for part in text.split(",")]
    return lambda packet, around: _among(packet.destination, subnets, around)


def _among(address: Address | None, subnets: Sequence[Subnet], around: Surroundings) -> Tristate:
    if address is None:
        return Tristate.UNKNOWN
    return any_of(around.within(address, subnet) for subnet in subnets)


def _came_in(pattern: str) -> Test:
    return lambda packet, _: tristate_of(_is_named(pattern, packet.came_in))


def _goes_out(pattern: str) -> Test:
    return lambda packet, _: tristate_of(_is_named(pattern, packet.goes_out))


def _is_named(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _source_range(text: str) -> Test:
    first, _, last = text.partition("-")
    ends = ip_address(first), ip_address(last or first)
    return lambda packet, _: _between(packet.source, *ends)


def _destination_range(text: str) -> Test:
    first, _, last = text.partition("-")
    ends = ip_address(first), ip_address(last or first)
    return lambda packet, _: _between(packet.destination, *ends)


def _between(address: Address | None, first: Address, last: Address) -> Tristate:
    if address is None:
        return Tristate.UNKNOWN
    return tristate_of(address.version == first.version and int(first) <= int(address) <= int(last))


def _source_type(text: str) -> Test:
    return lambda packet, around: _is_type(around.type_of(packet.source) if packet.source else "unicast", text)


def _destination_type(text: str) -> Test:
    return lambda packet, around: _is_type(around.type_of(packet.destination), text)


def _is_type(known: str | None, text: str) -> Tristate:
    return Tristate.UNKNOWN if known is None else tristate_of(known.upper() in text.split(","))


# --- protocols and ports ---------------------------------------------------------------------------------------------


def _protocol(text: str) -> Test:
    name = PROTOCOL_NAMES.get(int(text), text) if text.isdigit() else text
    return lambda packet, _: tristate_of(name in ("all", packet.protocol))


def _destination_ports(text: str) -> Test:
    ranges = list(map(_range, text.split(",")))
    return lambda packet, _: _to_ports(packet, ranges)


def _source_ports(text: str) -> Test:
    ranges = list(map(_range, text.split(",")))
    return lambda packet, _: _from_ports(packet, ranges)


def _either_ports(text: str) -> Test:
    ranges = list(map(_range, text.split(",")))
    return lambda packet, _: max(_to_ports(packet, ranges), _from_ports(packet, ranges))


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon:
        return int(first), int(first)
    return int(first or 0), int(last or _LAST_PORT)


def _to_ports(packet: Packet, ranges: Sequence[tuple[int, int]]) -> Tristate:
    if packet.port is None and not packet.to_client:
        return Tristate.UNKNOWN
    return _in_ranges(packet.port, ranges)


def _from_ports(packet: Packet, ranges: Sequence[tuple[int, int]]) -> Tristate:
    return _in_ranges(packet.source_port, ranges)


def _in_ranges(port: int | None, ranges: Sequence[tuple[int, int]]) -> Tristate:
    """Whether a port, or one that some client chose, is in one of several ranges."""
    if port is None:
        return any_of(among_client_ports(first, last) for first, last in ranges)
    return tristate_of(any(first <= port <= last for first, last in ranges))


def _flags(mask: str, wanted: str) -> Test:
    masked, expected = _flag_names(mask), _flag_names(wanted)
    return lambda packet, _: tristate_of(packet.protocol is Protocol.TCP and tcp_flags(packet) & masked == expected)


def _flag_names(text: str) -> frozenset[str]:
    match text:
        case "ALL":
            return _TCP_FLAGS
        case "NONE":
            return frozenset()
    return frozenset(text.lower().split(","))


# --- connection tracking, marks and labels ---------------------------------------------------------------------------


def _state(text: str) -> Test:
    """Match the state; DNAT is a state here, too, and SNAT, which no packet we follow is in."""
    wanted = {word.lower() for word in text.split(",")}

    def test(packet: Packet, _: Surroundings) -> Tristate:
        translated = packet.tracked and packet.translated_by is not None
        return tristate_of(str(packet.state) in wanted or ("dnat" in wanted and translated))

    return test


def _status(text: str) -> Test:
    wanted = set(text.split(","))

    def test(packet: Packet, _: Surroundings) -> Tristate:
        answered = {"SEEN_REPLY", "CONFIRMED"} if packet.state is State.ESTABLISHED else {"NONE"}
        return tristate_of(packet.tracked and bool(answered & wanted))

    return test


def _direction(text: str) -> Test:
    return lambda packet, _: tristate_of((packet.state is State.ESTABLISHED) == (text == "REPLY"))


def _wanted_address(text: str) -> Test:
    subnet = network_of(text)
    return lambda packet, around: min(tristate_of(packet.tracked), around.within(packet.wanted[0], subnet))


def _wanted_port(text: str) -> Test:
    ranges = [_range(text)]
    return lambda packet, _: min(tristate_of(packet.tracked), _in_ranges(packet.wanted[1], ranges))


def _mark(text: str) -> Test:
    value, mask = _masked(text)
    return lambda packet, _: _is_marked(packet.mark, value, mask)


def _connmark(text: str) -> Test:
    value, mask = _masked(text)
    return lambda packet, _: _is_marked(packet.connmark, value, mask) if packet.tracked else Tristate.NO


def _connlabel(text: str) -> Test:
    return lambda packet, _: packet.has_label(text) if packet.tracked else Tristate.NO


def _masked(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF


def _is_marked(mark: int | None, value: int, mask: int) -> Tristate:
    return Tristate.UNKNOWN if mark is None else tristate_of(mark & mask == value)


_MAKERS: Mapping[tuple[str, str], Callable[..., Test]] = {
    ("", "-s"): _source,
    ("", "-d"): _destination,
    ("", "-i"): _came_in,
    ("", "-o"): _goes_out,
    ("", "-p"): _protocol,
    ("tcp", "--dport"): _destination_ports,
    ("udp", "--dport"): _destination_ports,
    ("sctp", "--dport"): _destination_ports,
    ("tcp", "--sport"): _source_ports,
    ("udp", "--sport"): _source_ports,
    ("sctp", "--sport"): _source_ports,
    ("tcp", "--tcp-flags"): _flags,
    ("multiport", "--dports"): _destination_ports,
    ("multiport", "--sports"): _source_ports,
    ("multiport", "--ports"): _either_ports,
    ("conntrack", "--ctstate"): _state,
    ("state", "--state"): _state,
    ("conntrack", "--ctstatus"): _status,
    ("conntrack", "--ctdir"): _direction,
    ("conntrack", "--ctproto"): _protocol,
    ("conntrack", "--ctorigdst"): _wanted_address,
    ("conntrack", "--ctorigdstport"): _wanted_port,
    ("mark", "--mark"): _mark,
    ("connmark", "--mark"): _connmark,
    ("connlabel", "--label"): _connlabel,
    ("addrtype", "--src-type"): _source_type,
    ("addrtype", "--dst-type"): _destination_type,
    ("iprange", "--src-range"): _source_range,
    ("iprange", "--dst-range"): _destination_range,
}
