"""What the left side of an nft expression comes to for a packet. Pure; the schema is libnftables-json(5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from fwdaemon.explain.packet import Packet, State, Surroundings
from fwdaemon.model import Address, Family, Protocol

Json: TypeAlias = Any


class Special(Enum):
    """What is no plain value.

    `UNKNOWN` cannot be told. `ABSENT` is what the packet does not have, which ends a rule whatever it is compared
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


Value: TypeAlias = Address | int | str | Flags | Special | tuple["Value", ...]

# What a rule of iptables-nft or of nft may write instead of a name.
PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
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
            return _header(field, packet) if protocol == _family_name(packet) else Special.ABSENT
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
        "protocol": _family_name(packet),
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


def _family_name(packet: Packet) -> str:
    return "ip" if packet.family is Family.IPV4 else "ip6"


def _or_unknown(value: Address | int | None) -> Value:
    return Special.UNKNOWN if value is None else value
