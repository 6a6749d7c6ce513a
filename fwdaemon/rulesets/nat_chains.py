"""Where NAT chains of other programs send connections, in both rule languages. Pure.

Chains are read as steps, rules of interest only, and followed along their jumps. What is not understood counts as
passed, so a scope may be too wide, but never too narrow. The words are those of iptables-extensions(8), as
`iptables-save` prints them, and of libnftables-json(5), as `nft -j -t list` does. A terse listing is without the
elements of named sets, which may be hundreds of thousands: those that matter are read one by one, and given here.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network, summarize_address_range
from typing import Final, TypeAlias

from fwdaemon.core.types import Family, PortRange, Protocol, Subnet
from fwdaemon.legacy.model import OWN_CHAINS
from fwdaemon.nftables.model import items
from fwdaemon.rulesets import xt_tables
from fwdaemon.rulesets.nft_values import Json, Sets, pairs_of
from fwdaemon.rulesets.packet import RuleLocation, System
from fwdaemon.rulesets.rules import network_of
from fwdaemon.rulesets.xt_tables import RuleLine

# What a rule, or an exposure, asks of a packet: for each field the values it may have, or any where it is not named.


class Field(StrEnum):
    """What may be asked of the first packet of a connection; an interface is the one it came in by."""

    PROTOCOL = "protocol"
    PORT = "port"
    DESTINATION = "destination"
    SOURCE = "source"
    INTERFACE = "interface"


Value: TypeAlias = Protocol | PortRange | IPv4Network | IPv6Network | str
Scope: TypeAlias = Mapping[Field, tuple[Value, ...]]


def both(one: Scope, other: Scope) -> Scope | None:
    """Give the scope of what passes both, or `None` where nothing does."""
    merged = {**one, **other}
    for field in one.keys() & other.keys():
        merged[field] = common(one[field], other[field])
    return merged if all(merged.values()) else None


def common(some: Iterable[Value], others: Iterable[Value]) -> tuple[Value, ...]:
    """Give the values of a field that are in both."""
    others = tuple(others)
    pairs = ((one, other) for one in some for other in others)
    return tuple(met for one, other in pairs if (met := _met(one, other)) is not None)


def _met(one: Value, other: Value) -> Value | None:
    match one, other:
        case PortRange(), PortRange():
            first, last = max(one.first, other.first), min(one.last, other.last)
            return PortRange(first, last) if first <= last else None
        case IPv4Network() | IPv6Network() as subnet, IPv4Network() | IPv6Network() as around:
            return _met_subnets(subnet, around)
        case Protocol(), Protocol():
            return one if one is other else None
        case str(), str():
            return _met_interfaces(one, other)
    return None


def _met_subnets(one: Subnet, other: Subnet) -> Subnet | None:
    """Give the narrower one if it lies in the wider one; otherwise they have nothing in common."""
    narrow, wide = (one, other) if one.prefixlen >= other.prefixlen else (other, one)
    within = narrow.version == wide.version and narrow.subnet_of(wide)  # type: ignore[arg-type]  # the family is one
    return narrow if within else None


def _met_interfaces(one: str, other: str) -> str | None:
    """Compare names, which may end in a `*`."""
    for wide, narrow in ((one, other), (other, one)):
        if wide == narrow or (wide.endswith("*") and narrow.startswith(wide[:-1])):
            return narrow
    return None


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that translates, or that goes on in the chain `target`; one with a verdict map makes several."""

    location: RuleLocation
    scope: Scope
    target: str | None = None


Chains: TypeAlias = Mapping[str, Sequence[Step]]


@dataclass(frozen=True, slots=True)
class Translation:
    """A rule that translates what is in `scope`, in a NAT chain of this `priority` at prerouting."""

    location: RuleLocation
    scope: Scope
    priority: int


def translations(chains: Chains, base: str, priority: int) -> Iterator[Translation]:
    """Give each rule that translates, once for every way that leads to it."""

    @cache
    def leads_anywhere(chain: str) -> bool:
        steps = chains.get(chain, ())
        return any(step.target is None or leads_anywhere(step.target) for step in steps)

    def follow(chain: str, scope: Scope) -> Iterator[Translation]:
        for step in chains.get(chain, ()):
            narrowed = both(scope, step.scope)
            if narrowed is None:
                continue
            if step.target is None:
                yield Translation(step.location, narrowed, priority)
            elif leads_anywhere(step.target):
                yield from follow(step.target, narrowed)

    return follow(base, {})


# The table nat of iptables.

PREROUTING: Final = "PREROUTING"
_TRANSLATES: Final = frozenset({"DNAT", "REDIRECT", "NETMAP"})


def read_iptables(save: str, system: System, family: Family) -> Chains:
    """Read all chains but ours; a match that is not known here counts as passed."""
    chains: dict[str, list[Step]] = {}
    for table in xt_tables.read(save).tables:
        known = table.chains.keys() - {""}
        for chain, rules in table.chains.items():
            if rules and chain in known - OWN_CHAINS:
                location = RuleLocation(system, family.word, "nat", chain, 0)
                chains[chain] = [step for rule in rules for step in _xt_steps(location, rule, known)]
    return chains


def has_own_chains(save: str) -> bool:
    """Whether chains of ours are in a table."""
    return any(not OWN_CHAINS.isdisjoint(table.chains) for table in xt_tables.read(save).tables)


def _xt_steps(location: RuleLocation, rule: RuleLine, chains: Collection[str]) -> Iterator[Step]:
    target = rule.target if rule.target in chains else None
    if rule.target in OWN_CHAINS or (target is None and rule.target not in _TRANSLATES):
        return
    scope: Scope = {}
    for option in rule.options or ():
        if option.name in ("-j", "-g"):
            break
        if option.name in _READERS and option.values and not option.inverted:
            narrowed = both(scope, _xt_asked(option.name, option.values[0]))
            if narrowed is None:
                return
            scope = narrowed
    yield Step(location, scope, target)


def _xt_asked(option: str, word: str) -> Scope:
    """Give what an option asks for; one that cannot be read, like a mask with holes, asks for nothing."""
    field, read = _READERS[option]
    try:
        return {field: tuple(read(word))}
    except ValueError:
        return {}


def _ports(word: str) -> Iterator[Value]:
    """Read `80`, `80:90` and `80,443,1000:2000`."""
    for part in word.split(","):
        first, _, last = part.partition(":")
        yield PortRange(int(first), int(last or first))


_READERS: Final[Mapping[str, tuple[Field, Callable[[str], Iterable[Value]]]]] = {
    "-p": (Field.PROTOCOL, lambda word: [protocol for protocol in Protocol if word == protocol]),
    "--dport": (Field.PORT, _ports),
    "--dports": (Field.PORT, _ports),
    "-d": (Field.DESTINATION, lambda word: [network_of(word)]),
    "-s": (Field.SOURCE, lambda word: [network_of(word)]),
    "-i": (Field.INTERFACE, lambda word: [re.sub(r"\+\Z", "*", word)]),
}


# NAT chains of nftables.

Table: TypeAlias = tuple[str, str]
"""A family and a table of it."""

# nft prints a protocol's number where /etc/protocols does not name it.
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
# Statements of rules that translate or lead on; the sets of all others say nothing of where connections go.
_LEADING: Final = frozenset({"dnat", "redirect", "jump", "goto", "vmap"})
_ENDS: Final = frozenset({"accept", "drop", "reject", "return", "queue"})


def read_sets(listing: str, table: Table) -> list[tuple[str, str]]:
    """Give the sets of a table that matter: its kind, as `nft` calls it, and its name.

    Raises:
        KernelError: the listing is not what libnftables-json(5) describes.

    """
    named = {name for rule in _rules(listing, table) for name in _named_in(rule["expr"])}
    kinds = ("set", "map")
    return [
        (kind, item["name"])
        for kind in kinds
        for item in items(listing, kind)
        if (item["family"], item["table"]) == table and item["name"] in named
    ]


def read_elements(listing: str) -> Sequence[Json]:
    """Give the elements in the listing of one set or map.

    Raises:
        KernelError: the listing is not what libnftables-json(5) describes.

    """
    return [element for kind in ("set", "map") for item in items(listing, kind) for element in item.get("elem", [])]


def read_nft(listing: str, table: Table, sets: Sets) -> Chains:
    """Read all chains of a table.

    Raises:
        KernelError: the listing is not what libnftables-json(5) describes.

    """
    chains = defaultdict[str, list[Step]](list)
    for rule in _rules(listing, table):
        location = RuleLocation(System.NFTABLES, rule["family"], rule["table"], rule["chain"], rule["handle"])
        chains[rule["chain"]] += _steps(location, rule["expr"], sets)
    return chains


def _rules(listing: str, table: Table) -> Iterator[Mapping[str, Json]]:
    return (rule for rule in items(listing, "rule") if (rule["family"], rule["table"]) == table)


def _named_in(expressions: Sequence[Json]) -> Iterator[str]:
    """Give the names of the sets that a rule asks, if it translates or leads on."""
    if any(isinstance(item, dict) and not _LEADING.isdisjoint(item) for item in expressions):
        yield from _names(expressions)


def _names(value: Json) -> Iterator[str]:
    match value:
        case str() if value.startswith("@"):
            yield value[1:]
        case dict():
            for inner in value.values():
                yield from _names(inner)
        case list():
            for inner in value:
                yield from _names(inner)


def _steps(location: RuleLocation, expressions: Iterable[Json], sets: Sets) -> Iterator[Step]:
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
                yield Step(location, scope, target)
            case "vmap", {"key": key, "data": data}:
                yield from _led(location, scope, (key, data), sets)
            case (("dnat" | "redirect"), _):
                yield from (Step(location, found) for found in _translated(scope, body, sets))
        if kind in _ENDS:
            return


def _led(location: RuleLocation, scope: Scope, verdicts: tuple[Json, Json], sets: Sets) -> Iterator[Step]:
    key, data = verdicts
    for element, verdict in pairs_of(data, sets):
        target = next((body["target"] for kind, body in verdict.items() if kind in ("jump", "goto")), None)
        narrowed = both(scope, _asked(key, element, sets))
        if target is not None and narrowed is not None:
            yield Step(location, narrowed, target)


def _translated(scope: Scope, body: Json, sets: Sets) -> Iterator[Scope]:
    """Give the scopes of a translation: where it looks its target up in a map, one for each key."""
    match body:
        case {"addr": {"map": {"key": key, "data": data}}} | {"port": {"map": {"key": key, "data": data}}}:
            found = (both(scope, _asked(key, element, sets)) for element, _ in pairs_of(data, sets))
            yield from (narrowed for narrowed in found if narrowed is not None)
        case _:
            yield scope


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
    if isinstance(right, str) and right.startswith("@") and right[1:] not in sets:
        return None
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
            yield from (protocol for protocol in Protocol if element in (protocol, protocol.number))
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
