"""NAT chains of nftables as steps, from `nft -j list table`. Pure; the schema is libnftables-json(5)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any, Final, TypeAlias

from fwdaemon.clashes.scope import Field, Scope, Value, both
from fwdaemon.clashes.translation import Chains, Step
from fwdaemon.explain.packet import Place, System
from fwdaemon.model import PortRange, Protocol
from fwdaemon.nftables.readback import items

Json: TypeAlias = Any
Sets: TypeAlias = Mapping[str, Sequence[Json]]

# nft prints a protocol's number where /etc/protocols does not name it.
_PROTOCOLS: Final[Mapping[int | str, Protocol]] = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}
_PORTS_OF: Final = frozenset(map(str, Protocol))
_FIELDS: Final = {
    ("meta", "l4proto"): Field.PROTOCOL,
    ("ip", "protocol"): Field.PROTOCOL,
    ("ip6", "nexthdr"): Field.PROTOCOL,
    ("meta", "iifname"): Field.INTERFACE,
    ("meta", "iif"): Field.INTERFACE,
    ("ip", "daddr"): Field.DESTINATION,
    ("ip6", "daddr"): Field.DESTINATION,
    ("ip", "saddr"): Field.SOURCE,
    ("ip6", "saddr"): Field.SOURCE,
    ("th", "dport"): Field.PORT,
} | {(protocol, "dport"): Field.PORT for protocol in _PORTS_OF}
_ENDS: Final = frozenset({"accept", "drop", "reject", "return", "queue"})


def read_chains(listing: str) -> Chains:
    """Read all chains of a table.

    Raises:
        KernelError: the listing is not what libnftables-json(5) describes.

    """
    sets = {item["name"]: item.get("elem", []) for kind in ("set", "map") for item in items(listing, kind)}
    chains = defaultdict[str, list[Step]](list)
    for rule in items(listing, "rule"):
        place = Place(System.NFTABLES, rule["family"], rule["table"], rule["chain"], rule["handle"])
        chains[rule["chain"]] += _steps(place, rule["expr"], sets)
    return chains


def _steps(place: Place, expressions: Iterable[Json], sets: Sets) -> Iterator[Step]:
    """Give what a rule may do; of its statements only those count that end it or lead on."""
    scope: Scope = {}
    for expression in expressions:
        if not isinstance(expression, dict):  # nft has no JSON for it
            continue
        ((kind, body),) = expression.items()
        match kind, body:
            case "match", {"op": "==" | "in", "left": left, "right": right}:
                narrowed = both(scope, _asked(left, right, sets))
                if narrowed is None:
                    return
                scope = narrowed
            case (("jump" | "goto"), {"target": str(target)}):
                yield Step(place, scope, target)
            case "vmap", {"key": key, "data": data}:
                yield from _led(place, scope, (key, data), sets)
            case (("dnat" | "redirect"), _):
                yield from (Step(place, found) for found in _translated(scope, body, sets))
        if kind in _ENDS:
            return


def _led(place: Place, scope: Scope, verdicts: tuple[Json, Json], sets: Sets) -> Iterator[Step]:
    key, data = verdicts
    for element, verdict in _elements(data, sets):
        target = next((body["target"] for kind, body in verdict.items() if kind in ("jump", "goto")), None)
        narrowed = both(scope, _asked(key, element, sets))
        if target is not None and narrowed is not None:
            yield Step(place, narrowed, target)


def _translated(scope: Scope, body: Json, sets: Sets) -> Iterator[Scope]:
    """Give the scopes of a translation: where it looks its target up in a map, one for each key."""
    match body:
        case {"addr": {"map": {"key": key, "data": data}}} | {"port": {"map": {"key": key, "data": data}}}:
            found = (both(scope, _asked(key, element, sets)) for element, _ in _elements(data, sets))
            yield from (narrowed for narrowed in found if narrowed is not None)
        case _:
            yield scope


def _elements(data: Json, sets: Sets) -> Sequence[Json]:
    found = sets.get(data[1:], ()) if isinstance(data, str) else data.get("set", ())
    return [item for item in found if isinstance(item, list) and len(item) == 2]  # noqa: PLR2004  a key and a value


# --- tests -----------------------------------------------------------------------------------------------------------


def _asked(left: Json, right: Json, sets: Sets) -> Scope:
    """Give the scope of `left` being, or being in, `right`; empty where that is not understood."""
    match left, right:
        case {"concat": list(parts)}, _:
            return _asked_together(parts, right, sets)
        case {"payload": {"protocol": str(group), "field": str(name)}}, _:
            pass
        case {"meta": {"key": str(name)}}, _:
            group = "meta"
        case _:
            return {}
    field = _FIELDS.get((group, name))
    values = None if field is None else _values(field, right, sets)
    implied: Scope = {Field.PROTOCOL: (Protocol(group),)} if group in _PORTS_OF else {}
    return implied if field is None or values is None else {**implied, field: values}


def _asked_together(parts: Sequence[Json], right: Json, sets: Sets) -> Scope:
    """Give the scope of a concatenation: of one element exactly, of several that of all values of each part."""
    elements = [
        element["concat"] for element in _flat(right, sets) if isinstance(element, dict) and "concat" in element
    ]
    found: dict[Field, tuple[Value, ...]] = {}
    for position, part in enumerate(parts):
        asked = [_asked(part, element[position], sets) for element in elements]
        for field in Field:
            if asked and all(field in scope for scope in asked):
                found[field] = tuple(dict.fromkeys(value for scope in asked for value in scope[field]))
    return found


def _values(field: Field, right: Json, sets: Sets) -> tuple[Value, ...] | None:
    """Read values; `None` where one of them is not understood."""
    found: list[Value] = []
    for element in _flat(right, sets):
        read = list(_value(field, element))
        if not read and field is not Field.PROTOCOL:  # one without ports is of no interest
            return None
        found += read
    return tuple(found)


def _flat(right: Json, sets: Sets) -> Iterator[Json]:
    """Give the elements of a set, named or not, or the one value."""
    match right:
        case str() if right.startswith("@"):
            elements = sets.get(right[1:], ())
        case {"set": [*elements]}:
            pass
        case {"elem": {"val": inner}}:
            elements = [inner]
        case _:
            yield right
            return
    for element in elements:
        yield from _flat(element, sets)


def _value(field: Field, element: Json) -> Iterator[Value]:
    match field, element:
        case Field.PROTOCOL, int() | str():
            yield from (protocol for protocol in Protocol if protocol == _PROTOCOLS.get(element, element))
        case Field.PORT, {"range": [int(first), int(last)]}:
            yield PortRange(first, last)
        case Field.PORT, int():
            yield PortRange(element, element)
        case Field.INTERFACE, str():
            yield element
        case ((Field.SOURCE | Field.DESTINATION), {"prefix": {"addr": str(address), "len": int(length)}}):
            yield ip_network(f"{address}/{length}", strict=False)
        case ((Field.SOURCE | Field.DESTINATION), {"range": [str(first), str(last)]}):
            yield from summarize_address_range(ip_address(first), ip_address(last))
        case ((Field.SOURCE | Field.DESTINATION), str()):
            yield ip_network(element)
