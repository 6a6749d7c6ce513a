"""What `nft -j list` says, as our own nouns. Pure; the schema is libnftables-json(5).

Only names, hooks, comments and elements are read. A table of ours that holds something we would never write comes back
with it, so that the difference takes it away.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any, TypeAlias, TypeVar

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Counted, Desired, Dropped
from fwdaemon.core.types import PROTOCOLS, Address, Family
from fwdaemon.errors import KernelError
from fwdaemon.nftables.admission import DENY
from fwdaemon.nftables.dispatch_chains import (
    EVERY_ADDRESS,
    LEAVING_AS,
    ONE_ADDRESS,
    ONE_TO_ONE,
    TARGETS,
    DispatchChain,
    dispatch_chains,
)
from fwdaemon.nftables.model import VERDICT, Chain, Held, Hook, Lasting, Rule, Set, SetType, Table, Target

# nft prints a protocol's number where /etc/protocols does not name it.

_ADDRESS_TYPES = ("ipv4_addr", "ipv6_addr")
_TARGET_TYPES = tuple(f"{address} . inet_service" for address in _ADDRESS_TYPES)

Item = Mapping[str, Any]
_T = TypeVar("_T")

# What is around the items of a listing, and between them.
_BEGIN = re.compile(r'\s*\{\s*"nftables"\s*:\s*\[\s*')
_COMMA = re.compile(r"\s*,\s*")
_END = re.compile(r"\s*\]\s*\}\s*$")
_DECODER = json.JSONDecoder()


def items(listing: str, kind: str) -> Iterator[Item]:
    """Give the objects of one kind (`table`, `chain`, `rule`…) in a JSON listing, in its order.

    Raises:
        KernelError: the listing is not what libnftables-json(5) describes.

    """
    return (item for found, item in every_item(listing) if found == kind)


def every_item(listing: str) -> Iterator[tuple[str, Item]]:
    """Give all objects with their kinds, one after the other: thousands of forwards make megabytes of listing.

    Raises:
        KernelError: the listing is not what libnftables-json(5) describes.

    """
    begin = _BEGIN.match(listing)
    position = begin.end() if begin else 0
    more = begin is not None and not _END.match(listing, position)
    while more:
        try:
            item, position = _DECODER.raw_decode(listing, position)
            yield from item.items()
        except (ValueError, AttributeError) as error:
            raise KernelError(f"nft printed a listing that cannot be read ({error})") from error
        comma = _COMMA.match(listing, position)
        position, more = comma.end() if comma else position, comma is not None
    if begin is None or not _END.match(listing, position):
        raise KernelError("nft printed a listing that cannot be read (it does not end as it should)")


def read_table(family: Family, listing: str, known: Table | None = None) -> Table:
    """Read the listing of our table; `known` itself, or what of it is equal, is given as the same object."""
    rules: defaultdict[str, list[Rule]] = defaultdict(list)
    hooks: dict[str, Hook | None] = {}
    sets: dict[str, Set] = {}
    flags = ""
    for kind, item in every_item(listing):
        match kind:
            case "table":
                # nft 1.0.6 calls the first flag by a wrong name; any is one too many.
                flags = str(item.get("flags", ""))
            case "rule":
                rules[item["chain"]].append(Rule("", item.get("comment", "")))
            case "chain":
                hooks[item["name"]] = _hook(item)
            case "set" | "map":
                sets[item["name"]] = _set(item)
    chains = {name: Chain(tuple(rules.get(name, ())), hook) for name, hook in hooks.items()}
    if known is None:
        return Table(family, chains, sets, flags)
    found = Table(family, _shared(chains, known.chains), _shared(sets, known.sets), flags)
    return known if found == known else found


def _shared(these: Mapping[str, _T], known: Mapping[str, _T]) -> Mapping[str, _T]:
    """Give what is equal as the same objects, keys and all: most of the time nothing is left of a listing."""
    shared = {name: known[name] if known.get(name) == item else item for name, item in these.items()}
    return known if shared == known else shared


def _hook(chain: Item) -> Hook | None:
    if "hook" not in chain:
        return None
    # A base chain that does not accept by default is none of ours: an unknown type makes it differ.
    kind = chain["type"] if chain.get("policy") == "accept" else "refusing"
    return Hook(kind, chain["hook"], chain["prio"])


def _set(item: Item) -> Set:
    timeout_s, flags = item.get("timeout", 0), item.get("flags", ())
    is_external = not timeout_s and {"interval", "timeout"}.issubset(flags) and item["type"] in _ADDRESS_TYPES
    set_type = SetType(
        _type(item["type"]),
        _type(item.get("map", "")),
        interval="interval" in flags,
        counter={"counter": None} in item.get("stmt", ()),
        timeout_s=timeout_s,
        size=item.get("size", 0),
        external=is_external,
        lasting="timeout" in flags and not timeout_s and not is_external,
    )
    return Set(set_type, {} if set_type.is_of_others else dict(_elements(item.get("elem", ()), set_type)))


def _type(found: str | Iterable[str]) -> str:
    """Read a type; nft 1.0.6 lists that of a map's data as a string, and later ones as its parts."""
    return found if isinstance(found, str) else " . ".join(found)


def _elements(elements: Iterable[Any], set_type: SetType) -> Iterator[tuple[str, Held]]:
    for element in elements:
        key, data = element if set_type.data else (element, None)
        yield _key(key, set_type), _led_to(key, data, set_type)


def _led_to(key: Any, data: Any, set_type: SetType) -> Held:
    """Read what an element leads to; empty where it is nothing we would write, as in a map of somebody's own."""
    match data:
        case None if set_type.lasting:
            return Lasting(_comment(key))
        case None:
            return None
        case {"jump": {"target": str(chain)}} if set_type.data == VERDICT:
            return chain
        case {"concat": [str(address), int(port)]} if set_type.data in _TARGET_TYPES:
            return Target(f"{ip_address(address)} . {port}", _comment(key))
        case _:
            return ""


def _comment(key: Any) -> str:
    return str(key["elem"].get("comment", "")) if isinstance(key, dict) and "elem" in key else ""


def _key(key: Any, set_type: SetType) -> str:
    match key:
        case {"elem": {"val": inner}}:
            return _key(inner, set_type)
        case {"concat": [*parts]}:
            return " . ".join(map(_part, parts, range(3 - len(parts), 3)))
        case {"prefix": {"addr": address, "len": length}}:
            return str(ip_network((address, length)))
        case str() if set_type.key in _ADDRESS_TYPES:
            return str(ip_network(key) if set_type.interval else ip_address(key))
        case _:
            # In quotes, as we write interfaces.
            return json.dumps(key)


def _part(part: Any, position: int) -> str:
    """Read one part of a key; the last three positions are address, protocol and port."""
    match part:
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case int() if position == 1:
            return PROTOCOLS.get(part, str(part))
        case str() if position == 0:
            return str(ip_address(part))
        case _:
            return str(part)


# Which rules and elements count connections, and what they have counted. Pure.
#
# A rule that translates sees the first packet of each connection only, so its packets are connections; the bytes are
# those of first packets, and no use to anybody. Rules that only label see every packet of a flow that nobody has
# answered yet, so they count nothing worth telling.
Counter: TypeAlias = tuple[str, str, str]
"""The family of a table, and a chain and a rule's comment, or a map and an element's key."""

_TRANSLATING = {*ONE_ADDRESS, *EVERY_ADDRESS, ONE_TO_ONE, LEAVING_AS}
_BLOCK = re.compile(r"\t(?:chain|map) (\S+) \{")
_RULE = re.compile(r'\bcounter packets (\d+) bytes \d+ .*comment "([^"]*)"$')
_LIMITING = re.compile(r"^\tset (?:rate|open)\.(?P<name>[0-9a-f]+) \{\n(?P<text>.*?)^\t\}", re.MULTILINE | re.DOTALL)
_LIMITED = re.compile(r"([0-9a-f.:]+) [^,{}]*counter packets ([1-9]\d*) bytes")
_ELEMENT = re.compile(r'(?:([0-9a-f.:]+) \. )?(\w+) \. (\d+) counter packets (\d+) bytes \d+ comment "[^"]*" : ')


def counting_rules(desired: Desired) -> Mapping[Counter, Exposure]:
    """Give what counts connections, each with its exposure."""
    return {
        (family.word, *counter): exposure
        for family in Family
        for dispatch_chain in dispatch_chains(family, desired)
        if dispatch_chain.map in _TRANSLATING and dispatch_chain.exposures
        for counter, exposure in _counters(dispatch_chain, dropping=False)
    }


def dropping_rules(desired: Desired) -> Mapping[Counter, Exposure]:
    """Give what counts first packets that were dropped, each with its exposure."""
    return {
        (family.word, *counter): exposure
        for family in (Family if desired.limited or desired.barred is not None else ())
        for dispatch_chain in dispatch_chains(family, desired)
        if dispatch_chain.exposures and dispatch_chain.target is None
        for counter, exposure in _counters(dispatch_chain, dropping=True)
    }


def _counters(dispatch_chain: DispatchChain, *, dropping: bool) -> Iterator[tuple[tuple[str, str], Exposure]]:
    if dispatch_chain.target is not None:
        yield (TARGETS[dispatch_chain.map], dispatch_chain.key), dispatch_chain.exposures[0]
    for rule, exposure in zip(dispatch_chain.rules, dispatch_chain.exposures, strict=False):
        if rule.expression.endswith("counter drop") is dropping:
            yield (dispatch_chain.chain, rule.comment), exposure


def denied_by_set(packets: Iterable[tuple[Counter, int]]) -> dict[str, int]:
    """Add up what was dropped because its source is in a set, by the set's name."""
    found: dict[str, int] = {}
    for (_, chain, _), number in packets:
        if chain.startswith(DENY):
            name = chain.removeprefix(DENY)
            found[name] = found.get(name, 0) + number
    return found


def read_dropped(listings: Mapping[Family, str], refusing: Counted[Counter], desired: Desired) -> Dropped:
    """Read what was dropped from `nft list table` of each family; `refusing` adds up the rules that do."""
    packets = [packet for family, text in listings.items() for packet in read_packets(family, text)]
    limited = limited_sources("".join(listings.values()))
    return Dropped(refusing.of(desired, packets), denied_by_set(packets), limited)


def limited_sources(listing: str) -> dict[str, dict[Address, int]]:
    """Read from what `nft` lists, by what counts them, whose first packets were dropped over a limit, and how many."""
    found: dict[str, dict[Address, int]] = {}
    for block in _LIMITING.finditer(listing):
        of_set = found.setdefault(block["name"], {})
        for element in _LIMITED.finditer(block["text"]):
            with suppress(ValueError):  # somebody else's set
                address = ip_address(element[1])
                of_set[address] = of_set.get(address, 0) + int(element[2])
    return found


def read_packets(family: Family, listing: str) -> Iterator[tuple[Counter, int]]:
    """Read the packets of each rule and element that counts any from `nft list table`."""
    block, name = "", family.word
    for line in listing.splitlines():
        if found := _BLOCK.match(line):
            block = found[1]
        elif elements := list(_ELEMENT.finditer(line)):
            yield from (((name, block, _counter_key(element)), int(element[4])) for element in elements)
        elif found := _RULE.search(line):
            yield (name, block, found[2]), int(found[1])


def _counter_key(element: re.Match[str]) -> str:
    """Write the key as we do."""
    address, protocol, port = element.group(1, 2, 3)
    known = PROTOCOLS.get(int(protocol), protocol) if protocol.isdecimal() else protocol
    return " . ".join([*([_plain(address)] if address else []), known, port])


def _plain(address: str) -> str:
    """Write an address as we do; what is none stands in somebody's comment, and is nobody's key."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address
