"""Whether a packet passes an nft match, or is in a set. Pure; the schema is libnftables-json(5)."""

import operator
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from fwdaemon.explain.nft_values import PROTOCOL_NAMES, Flags, Json, Special, Value, flags_of, value_of
from fwdaemon.explain.packet import CLIENT_PORTS, Packet, Surroundings, among_client_ports
from fwdaemon.explain.truth import Truth, all_of, any_of, negated, told

Sets = Mapping[str, Sequence[Json]]

_ORDERINGS: Mapping[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def passes(match: Mapping[str, Json], sets: Sets, packet: Packet, surroundings: Surroundings) -> Truth:
    """Evaluate `{"match": …}`; what the packet does not have fails, whatever it is compared with."""
    left = value_of(match["left"], packet, surroundings)
    right, op = match["right"], match["op"]
    if isinstance(right, bool):
        return _exists(left, op, wanted=right)
    if left is Special.ABSENT:
        return Truth.NO
    if op in _ORDERINGS:
        return _ordered(op, left, right)
    if isinstance(left, Flags) and not _is_set(right):
        return _compare_flags(op, left, flags_of(right))
    found = contains(right, left, sets, surroundings)
    return negated(found) if op in ("!=", "!") else found


def contains(element: Json, value: Value, sets: Sets, surroundings: Surroundings) -> Truth:
    """Tell whether an element, an anonymous set or a named one holds a value."""
    if value is Special.ABSENT:
        return Truth.NO
    if _is_set(element):
        items = element["set"] if isinstance(element, dict) else sets.get(element[1:], ())
        return any_of(contains(item, value, sets, surroundings) for item in items)
    match element:
        case "*":
            return Truth.YES
        case {"elem": {"val": inner}}:
            return contains(inner, value, sets, surroundings)
        case {"concat": [*parts]} if isinstance(value, tuple) and len(parts) == len(value):
            return all_of(contains(part, item, sets, surroundings) for part, item in zip(parts, value, strict=True))
    return _equals(element, value, surroundings)


def _is_set(element: Json) -> bool:
    return "set" in element if isinstance(element, dict) else str(element).startswith("@")


def _exists(left: Value, op: str, *, wanted: bool) -> Truth:
    """Evaluate a comparison with `exists` or `missing`, which JSON shows as a truth value."""
    if left is Special.UNKNOWN:
        return Truth.UNKNOWN
    return told((left is not Special.ABSENT) == (wanted == (op != "!=")))


def _ordered(op: str, left: Value, right: Json) -> Truth:
    if not isinstance(right, int):
        return Truth.UNKNOWN
    if isinstance(left, int):
        return told(_ORDERINGS[op](left, right))
    if left is Special.CLIENT_PORT:
        return told(_ORDERINGS[op](CLIENT_PORTS[0], right)) if _agree(op, right) else Truth.UNKNOWN
    return Truth.UNKNOWN


def _agree(op: str, right: int) -> bool:
    """Whether an ordering holds for all ports of clients alike."""
    first, last = CLIENT_PORTS
    return _ORDERINGS[op](first, right) == _ORDERINGS[op](last, right)


def _compare_flags(op: str, left: Flags, names: frozenset[str] | None) -> Truth:
    if names is None:
        return Truth.UNKNOWN
    match op:
        case "in":
            return told(bool(left.names & names))
        case "!":
            return told(not left.names & names)
        case "!=":
            return told(left.names != names)
    return told(left.names == names)


def _equals(element: Json, value: Value, surroundings: Surroundings) -> Truth:
    """Compare with one element that is neither a set nor a concatenation."""
    if value is Special.UNKNOWN or isinstance(value, tuple):
        return Truth.UNKNOWN
    if isinstance(value, Flags):
        names = flags_of(element)
        return Truth.UNKNOWN if names is None else told(names == value.names)
    if isinstance(value, str):
        return told(_is_named(PROTOCOL_NAMES.get(element, element), value))
    try:
        if isinstance(value, int) or value is Special.CLIENT_PORT:
            return _holds_number(element, value)
        return _holds_address(element, None if isinstance(value, Special) else value, surroundings)
    except ValueError:
        return Truth.UNKNOWN


def _is_named(pattern: Json, value: str) -> bool:
    """Compare names; one of an interface may end in a wildcard."""
    if isinstance(pattern, str) and pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return bool(pattern == value)


def _holds_number(element: Json, value: Value) -> Truth:
    match element:
        case {"range": [first, last]}:
            ends = int(first), int(last)
        case int() | str():
            ends = int(element), int(element)
        case _:
            return Truth.UNKNOWN
    return told(ends[0] <= value <= ends[1]) if isinstance(value, int) else among_client_ports(*ends)


def _holds_address(element: Json, value: IPv4Address | IPv6Address | None, surroundings: Surroundings) -> Truth:
    match element:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return surroundings.within(value, ip_network(f"{address}/{length}", strict=False))
        case {"range": [first, last]} if value is not None:
            ends = ip_address(first), ip_address(last)
            return told(value.version == ends[0].version and int(ends[0]) <= int(value) <= int(ends[1]))
        case str():
            return surroundings.within(value, ip_network(element))
    return Truth.UNKNOWN
