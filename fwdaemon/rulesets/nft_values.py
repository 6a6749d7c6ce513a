"""What the left side of an nft expression comes to for a packet. Pure; the schema is libnftables-json(5)."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, TypeAlias

from fwdaemon.core.types import PROTOCOL_NUMBERS, Address, Protocol
from fwdaemon.rulesets.packet import (
    CLIENT_PORTS,
    Packet,
    State,
    Surroundings,
    Tristate,
    all_of,
    among_client_ports,
    any_of,
    negated,
    tristate_of,
)

Json: TypeAlias = Any


class Special(Enum):
    """What is no plain value.

    `UNKNOWN` is just that. `ABSENT` is what the packet does not have, which ends a rule whatever it is compared
    with. `OUTSIDE` is the address of a client somewhere outside, `CLIENT_PORT` a port that some client chose.
    """

    UNKNOWN = "unknown"
    ABSENT = "absent"
    OUTSIDE = "outside"
    CLIENT_PORT = "client's port"


@dataclass(frozen=True, slots=True)
class Flags:
    """A value whose bits have names: a packet's state, its TCP flags."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of the connection that a packet belongs to."""

    packet: Packet


Value: TypeAlias = Address | int | str | Flags | Labels | Special | tuple["Value", ...]

# What a rule of iptables-nft or of nft may write instead of a name.
PROTOCOL_NAMES = {PROTOCOL_NUMBERS[name]: str(name) for name in ("icmp", "ipv6-icmp", *Protocol)}
_PORTS = ("tcp", "udp", "sctp", "th")
_OTHER_PROTOCOLS = ("udplite", "dccp", "icmp", "icmpv6", "igmp", "esp", "ah", "comp", "gre", "arp")


def value_of(expression: Json, packet: Packet, surroundings: Surroundings) -> Value:
    """Evaluate the left side of a match, or a key."""
    match expression:
        case {"concat": list(parts)}:
            values = tuple(value_of(part, packet, surroundings) for part in parts)
            return Special.ABSENT if Special.ABSENT in values else values
        case {"&": [left, right]}:
            return _masked(value_of(left, packet, surroundings), right)
        case {"|": [left, int(right)]}:
            return _with_bits(value_of(left, packet, surroundings), right)
        case int():
            return expression
    return _simple(expression, packet, surroundings)


def _simple(expression: Json, packet: Packet, surroundings: Surroundings) -> Value:
    match expression:
        case {"meta": {"key": str(key)}}:
            return _meta(key, packet)
        case {"payload": {"protocol": "ip" | "ip6" as protocol, "field": str(field)}}:
            return _header(field, packet) if protocol == packet.family.word else Special.ABSENT
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return _transport(protocol, field, packet)
        case {"ct": Mapping() as ct}:
            return _connection(ct, packet)
        case {"fib": Mapping() as fib}:
            return _route(fib, packet, surroundings)
    return Special.UNKNOWN


def flags_of(expression: Json) -> frozenset[str] | None:
    """Read names of bits, however they are joined; `None` for anything else."""
    match expression:
        case str():
            return frozenset(part.strip() for part in expression.split("|"))
        case [*parts] | {"|": [*parts]}:
            found = [flags_of(part) for part in parts]
            return None if None in found else frozenset(name for names in found if names for name in names)
        case 0:
            return frozenset()
    return None


def _masked(left: Value, mask: Json) -> Value:
    match left:
        case Flags(names) if (masked := flags_of(mask)) is not None:
            return Flags(names & masked)
        case int() if isinstance(mask, int):
            return left & mask
        case IPv4Address() | IPv6Address() if isinstance(mask, str):
            return type(left)(int(left) & int(ip_address(mask)))
        case Special():
            return left
    return Special.UNKNOWN


def _with_bits(left: Value, bits: int) -> Value:
    match left:
        case int():
            return left | bits
        case Special():
            return left
    return Special.UNKNOWN


def _meta(key: str, packet: Packet) -> Value:
    known: dict[str, Value] = {
        "iif": packet.came_in,
        "iifname": packet.came_in,
        "oif": packet.goes_out,
        "oifname": packet.goes_out,
        "l4proto": str(packet.protocol),
        "nfproto": f"ipv{packet.family}",
        "protocol": packet.family.word,
        "mark": _or_unknown(packet.mark),
    }
    return known.get(key, Special.UNKNOWN)


def _transport(protocol: str, field: str, packet: Packet) -> Value:
    """Evaluate a field of the transport header; that of another protocol the packet does not have."""
    if protocol in _OTHER_PROTOCOLS or (protocol in _PORTS and protocol not in ("th", packet.protocol)):
        return Special.ABSENT
    if protocol not in _PORTS:
        return Special.UNKNOWN
    known: dict[str, Value] = {
        "sport": Special.CLIENT_PORT if packet.source_port is None else packet.source_port,
        "dport": Special.CLIENT_PORT if packet.to_client else _or_unknown(packet.port),
    }
    if packet.protocol is Protocol.TCP:
        known["flags"] = Flags(tcp_flags(packet))
    return known.get(field, Special.UNKNOWN)


def tcp_flags(packet: Packet) -> frozenset[str]:
    """Give the flags of the first packet of a TCP connection, or of the answer to it."""
    return frozenset({"syn", "ack"} if packet.state is State.ESTABLISHED else {"syn"})


def _header(field: str, packet: Packet) -> Value:
    # Only an answer goes to a client outside; whose address a translation alone knows is another matter.
    outside = Special.OUTSIDE if packet.state is State.ESTABLISHED else Special.UNKNOWN
    known: dict[str, Value] = {
        "saddr": Special.OUTSIDE if packet.source is None else packet.source,
        "daddr": outside if packet.destination is None else packet.destination,
        "protocol": str(packet.protocol),
        "nexthdr": str(packet.protocol),
    }
    return known.get(field, Special.UNKNOWN)


def _connection(ct: Mapping[str, Json], packet: Packet) -> Value:
    key = str(ct.get("key")).removeprefix("ip ").removeprefix("ip6 ")
    if key == "state":
        return Flags(frozenset({str(packet.state)}))
    if not packet.tracked:
        return Special.ABSENT
    known: dict[str, Value] = {
        "mark": _or_unknown(packet.connmark),
        "label": Labels(packet),
        "status": Flags(_status(packet)),
        "direction": "reply" if packet.state is State.ESTABLISHED else "original",
        "protocol": str(packet.protocol),
        "l3proto": f"ipv{packet.family}",
    }
    if ct.get("dir") == "original":
        known |= {"daddr": packet.wanted[0], "proto-dst": packet.wanted[1]}
    return known.get(key, Special.UNKNOWN)


def _status(packet: Packet) -> frozenset[str]:
    translated = {"dnat"} if packet.translated_by is not None else set()
    answered = {"seen-reply", "confirmed"} if packet.state is State.ESTABLISHED else set()
    return frozenset(translated | answered)


def _route(fib: Mapping[str, Json], packet: Packet, surroundings: Surroundings) -> Value:
    """Evaluate `fib`: the type of an address, or the interface that leads back to the source."""
    flags = fib.get("flags") or ()
    asked = packet.source if "saddr" in flags else packet.destination
    match fib.get("result"):
        case "type" if set(flags) <= {"saddr", "daddr", "mark"}:
            # A client outside has none of our addresses.
            outside = "unicast" if "saddr" in flags and packet.source is None else Special.UNKNOWN
            return surroundings.type_of(asked) or outside
        case "type" if "iif" in flags and asked is not None and packet.came_in in surroundings.local.get(asked, ()):
            return "local"
        case "oif" | "oifname" if "saddr" in flags and surroundings.way_back == packet.came_in:
            return packet.came_in
    return Special.UNKNOWN


def _or_unknown(value: Address | int | None) -> Value:
    return Special.UNKNOWN if value is None else value


# Whether a packet passes an nft match, or is in a set. Pure; the schema is libnftables-json(5).
Sets: TypeAlias = Mapping[str, Sequence[Json]]
"""The elements of sets and maps, by name; one that is not there is too large to be read."""

_ORDERINGS: Mapping[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def passes(match: Mapping[str, Json], sets: Sets, packet: Packet, surroundings: Surroundings) -> Tristate:
    """Evaluate `{"match": …}`; what the packet does not have fails, whatever it is compared with."""
    left = value_of(match["left"], packet, surroundings)
    right, op = match["right"], match["op"]
    if isinstance(right, bool):
        return _exists(left, op, wanted=right)
    if left is Special.ABSENT:
        return Tristate.NO
    if op in _ORDERINGS:
        return _ordered(op, left, right)
    if isinstance(left, Labels):
        return _compare_labels(op, left.packet, right)
    if isinstance(left, Flags) and not _is_set(right):
        return _compare_flags(op, left, flags_of(right))
    found = contains(right, left, sets, surroundings)
    return negated(found) if op in ("!=", "!") else found


def contains(element: Json, value: Value, sets: Sets, surroundings: Surroundings) -> Tristate:
    """Whether an element, an anonymous set or a named one holds a value."""
    if value is Special.ABSENT:
        return Tristate.NO
    if _is_set(element):
        items = element["set"] if isinstance(element, dict) else sets.get(element[1:], ())
        return any_of(contains(item, value, sets, surroundings) for item in items)
    match element:
        case "*":
            return Tristate.YES
        case {"elem": {"val": inner}}:
            return contains(inner, value, sets, surroundings)
        case {"concat": [*parts]} if isinstance(value, tuple) and len(parts) == len(value):
            return all_of(contains(part, item, sets, surroundings) for part, item in zip(parts, value, strict=True))
    return _equals(element, value, surroundings)


def _is_set(element: Json) -> bool:
    return "set" in element if isinstance(element, dict) else str(element).startswith("@")


def _exists(left: Value, op: str, *, wanted: bool) -> Tristate:
    """Evaluate a comparison with `exists` or `missing`, which JSON shows as a truth value."""
    if left is Special.UNKNOWN:
        return Tristate.UNKNOWN
    return tristate_of((left is not Special.ABSENT) == (wanted == (op != "!=")))


def _ordered(op: str, left: Value, right: Json) -> Tristate:
    if not isinstance(right, int):
        return Tristate.UNKNOWN
    if isinstance(left, int):
        return tristate_of(_ORDERINGS[op](left, right))
    if left is Special.CLIENT_PORT:
        return tristate_of(_ORDERINGS[op](CLIENT_PORTS[0], right)) if _agree(op, right) else Tristate.UNKNOWN
    return Tristate.UNKNOWN


def _agree(op: str, right: int) -> bool:
    """Whether an ordering holds for all ports of clients alike."""
    first, last = CLIENT_PORTS
    return _ORDERINGS[op](first, right) == _ORDERINGS[op](last, right)


def _compare_flags(op: str, left: Flags, names: frozenset[str] | None) -> Tristate:
    if names is None:
        return Tristate.UNKNOWN
    match op:
        case "in":
            return tristate_of(bool(left.names & names))
        case "!":
            return tristate_of(not left.names & names)
        case "!=":
            return tristate_of(left.names != names)
    return tristate_of(left.names == names)


def _compare_labels(op: str, packet: Packet, right: Json) -> Tristate:
    if op not in ("in", "!") or not isinstance(right, int | str):
        return Tristate.UNKNOWN
    found = packet.has_label(str(right))
    return negated(found) if op == "!" else found


def _equals(element: Json, value: Value, surroundings: Surroundings) -> Tristate:
    """Compare with one element that is neither a set nor a concatenation."""
    if value is Special.UNKNOWN or isinstance(value, tuple | Labels):
        return Tristate.UNKNOWN
    if isinstance(value, Flags):
        names = flags_of(element)
        return Tristate.UNKNOWN if names is None else tristate_of(names == value.names)
    if isinstance(value, str):
        return tristate_of(_is_named(PROTOCOL_NAMES.get(element, element), value))
    try:
        if isinstance(value, int) or value is Special.CLIENT_PORT:
            return _holds_number(element, value)
        return _holds_address(element, None if isinstance(value, Special) else value, surroundings)
    except ValueError:
        return Tristate.UNKNOWN


def _is_named(pattern: Json, value: str) -> bool:
    """Compare names; one of an interface may end in a wildcard."""
    if isinstance(pattern, str) and pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return bool(pattern == value)


def _holds_number(element: Json, value: Value) -> Tristate:
    match element:
        case {"range": [first, last]}:
            ends = int(first), int(last)
        case int() | str():
            ends = int(element), int(element)
        case _:
            return Tristate.UNKNOWN
    return tristate_of(ends[0] <= value <= ends[1]) if isinstance(value, int) else among_client_ports(*ends)


def _holds_address(element: Json, value: IPv4Address | IPv6Address | None, surroundings: Surroundings) -> Tristate:
    match element:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return surroundings.within(value, ip_network(f"{address}/{length}", strict=False))
        case {"range": [first, last]} if value is not None:
            ends = ip_address(first), ip_address(last)
            return tristate_of(value.version == ends[0].version and int(ends[0]) <= int(value) <= int(ends[1]))
        case str():
            return surroundings.within(value, ip_network(element))
    return Tristate.UNKNOWN


def pairs_of(data: Json, sets: Sets) -> Sequence[Json]:
    """Give the pairs of a map, named or not; of one too large to be read none: it would seem to be about everything."""
    found = sets.get(data[1:], ()) if isinstance(data, str) else data.get("set", ())
    return [item for item in found if isinstance(item, list) and len(item) == 2]  # noqa: PLR2004  a key and a value
