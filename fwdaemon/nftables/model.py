"""nftables' own nouns as far as we need them, tables, chains, rules, sets and verdict maps, read and written.

The same `Table` describes what is desired and what is there. A rule that was read back is known by its comment alone,
so two chains are equal when their rules' comments are.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2s
from ipaddress import ip_address, ip_network
from math import ceil
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from weakref import ReferenceType

from fwdaemon.core.types import PROTOCOLS, Family
from fwdaemon.errors import KernelError

TABLE_NAME = "kvm_portfwd"

# The set of connections that were ended, as the packets of their guests show them.
ENDED = "ended"
# The set of ports of guests at which so many ended that all they send is refused which would begin one.
ENDED_PORTS = "ended_ports"

# What an element of a map leads to, where that is a chain.
VERDICT: Final = "verdict"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; `comment` ends in a digest of `expression`, which is empty when the rule was read back."""

    expression: str = field(compare=False)
    comment: str

    @classmethod
    def of(cls, expression: str, label: str) -> "Rule":
        """Make a rule whose comment is `label` (plain ASCII, no quotes) and the digest of its expression."""
        digest = blake2s(expression.encode(), digest_size=6).hexdigest()
        return cls(expression, f"{label} {digest}")

    def __str__(self) -> str:
        return f'{self.expression} comment "{self.comment}"'


@dataclass(frozen=True, slots=True)
class Hook:
    """What makes a chain a base chain; its policy is always accept."""

    type: str
    hook: str
    priority: int

    def __str__(self) -> str:
        return f"type {self.type} hook {self.hook} priority {self.priority}; policy accept;"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain and its rules in order."""

    rules: tuple[Rule, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class SetType:
    """The declaration of a set, or of a map; `key` and `data` are nft's types, parts joined by ` . `.

    `data` is empty for a set, and `VERDICT` for a map that leads to chains. With `counter`, each element counts the
    packets that it was found for. With `timeout_s`, elements vanish after so many seconds, and are no part of the state
    that is compared; nor are those that rules add, of which there are `size` at most, and those of an `external` set,
    which others add and remove. With `lasting`, each vanishes at a time of its own.
    """

    key: str
    data: str = ""
    interval: bool = False
    counter: bool = False
    timeout_s: int = 0
    size: int = 0
    external: bool = False
    lasting: bool = False

    @property
    def is_of_others(self) -> bool:
        """Whether its elements come and go by themselves."""
        return bool(self.timeout_s or self.size or self.external)

    def __str__(self) -> str:
        data = f" : {self.data}" if self.data else ""
        size = f" size {self.size};" if self.size else ""
        ends = self.timeout_s or self.external or self.lasting
        flags = (self.interval, "interval"), (self.size, "dynamic"), (ends, "timeout")
        listed = ",".join(flag for is_set, flag in flags if is_set)
        counter = " counter;" if self.counter else ""
        timeout = f" timeout {self.timeout_s}s;" if self.timeout_s else ""
        return f"type {self.key}{data};{size}{f' flags {listed};' if listed else ''}{counter}{timeout}"


class Target(NamedTuple):
    """What an element of a map holds that is not a verdict: its data as nft writes them, and the element's comment."""

    data: str
    comment: str


@dataclass(frozen=True, slots=True)
class Lasting:
    """What an element of a set has that vanishes by itself, at `ends` by CLOCK_BOOTTIME.

    What is listed of that counts down, so elements are compared by their `comment`, which says when it was to end.
    """

    comment: str
    ends: float = field(default=0.0, compare=False)


Held: TypeAlias = str | Target | Lasting | None
"""The chain that an element of a verdict map jumps to, the target in another map, in a set `None` or when it ends."""

Elements: TypeAlias = Mapping[str, Held]
"""What the elements of a map or set have, by key."""


@dataclass(frozen=True, slots=True)
class Set:
    """A set or map."""

    type: SetType
    elements: Elements = field(default_factory=dict)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Table:
    """One of our two tables; where it was made of another, `step` says what may be different.

    `flags` are what nft lists of a table as such: ours has none, and one that is `dormant` does nothing.
    """

    family: Family
    chains: Mapping[str, Chain]
    sets: Mapping[str, Set]
    flags: str = ""
    step: "Step | None" = field(default=None, compare=False, repr=False)

    def step_from(self, other: "Table") -> "Step | None":
        """Give the step from another table to this one, if it was made of that."""
        return self.step if self.step is not None and self.step.before() is other else None

    @property
    def name(self) -> str:
        """The name as `nft` wants it, `ip kvm_portfwd`."""
        return table_name(self.family)


@dataclass(frozen=True, slots=True)
class Step:
    """What may be different between a table and the one `before` it, so that thousands of elements need no comparison.

    `chains` are names, `elements` keys by map; the elements of sets that are not there are all to be compared.
    """

    before: ReferenceType[Table]
    chains: Collection[str]
    elements: Mapping[str, Collection[str]]


def table_name(family: Family) -> str:
    """Give the full name of our table of a family."""
    return f"{family.word} {TABLE_NAME}"


# What `nft -j list` says, as these nouns. Only names, hooks, comments and elements are read.
# A table of ours that holds something we would never write comes back with it, so that the difference takes it away.
# The schema is libnftables-json(5).

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
        yield _port(key) or _key(key, set_type), _led_to(key, data, set_type)


def _led_to(key: Any, data: Any, set_type: SetType) -> Held:
    """Read what an element leads to; empty where it is nothing we would write, as in a map of another program's."""
    match data:
        case None if set_type.lasting:
            return Lasting(_comment(key))
        case None:
            return None
        case {"concat": [str(address), int(port)]} if set_type.data in _TARGET_TYPES:
            return _target(address, port, _comment(key))
        case {"jump": {"target": str(chain)}} if set_type.data == VERDICT:
            return chain
        case _:
            return ""


@lru_cache(maxsize=256)
def _target(address: str, port: int, comment: str) -> Target:
    """Give the very same for all of the same; thousands of forwards lead to few ports."""
    return Target(f"{ip_address(address)} . {port}", comment)


def _comment(key: Any) -> str:
    return str(key["elem"].get("comment", "")) if isinstance(key, dict) and "elem" in key else ""


def _port(key: Any) -> str | None:
    """Read what nearly all keys are, a protocol and a port, in half the time that patterns take."""
    parts = key.get("concat") if type(key) is dict else None
    return f"{parts[0]} . {parts[1]}" if type(parts) is list and list(map(type, parts)) == [str, int] else None


def _key(key: Any, set_type: SetType) -> str:
    match key:
        case {"elem": {"val": inner}}:
            return _port(inner) or _key(inner, set_type)
        case {"concat": [*parts]}:
            return " . ".join(map(_part, parts, range(3 - len(parts), 3)))
        case {"prefix": {"addr": address, "len": length}}:
            return str(ip_network((address, length)))
        case str() if set_type.key in _ADDRESS_TYPES:
            return str(ip_network(key) if set_type.interval else ip_address(key))
        case _:
            # In quotes, as we write interfaces.
            return json.dumps(key)


@lru_cache(maxsize=256)
def _address(text: str) -> str:
    """Write an address as we do; thousands of forwards lead to few."""
    return str(ip_address(text))


def _part(part: Any, position: int) -> str:
    """Read one part of a key; the last three positions are address, protocol and port."""
    match part:
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case int() if position == 1:
            return PROTOCOLS.get(part, str(part))
        case str() if position == 0:
            return _address(part)
        case _:
            return str(part)


# How elements are written for `nft -f`.
#
# By so much an element outlives what it is for, in seconds: our own clock is to be first where we run.
_LONGER_S: Final = 1.0
# The kernel takes a netlink batch of any size, but a line of script is easier to read, and to find an error in, when it
# is not megabytes long.
_ELEMENTS_A_LINE = 200


def element_lines(verb: str, where: str, texts: Sequence[str]) -> Iterator[str]:
    """Write the commands that add elements to a set or map, or delete them."""
    for start in range(0, len(texts), _ELEMENTS_A_LINE):
        yield f"{verb} element {where} {{ {', '.join(texts[start : start + _ELEMENTS_A_LINE])} }}"


def declared_lines(where: str, content: Set, texts: Sequence[str]) -> Iterator[str]:
    """Write the same as part of the declaration of a set or map, which is there already.

    Before it adds or deletes elements alone, `nft` 1.0.6 reads those of all sets with ranges that there are, of any
    table, which takes seconds where these are a hundred thousand; before it declares a set, it reads none.
    """
    for start in range(0, len(texts), _ELEMENTS_A_LINE):
        listed = ", ".join(texts[start : start + _ELEMENTS_A_LINE])
        yield f"add {word_of(content)} {where} {{ {content.type} elements = {{ {listed} }} }}"


def word_of(content: Set) -> str:
    """Say whether it is a map or a set."""
    return "map" if content.type.data else "set"


def element_text(element: tuple[str, Held], now: float) -> str:
    """Write a key of a set or map, and what it leads to; `now` is CLOCK_BOOTTIME's."""
    key, held = element
    match held:
        case str():
            return f"{key} : jump {held}"
        case Target():
            return f'{key} comment "{held.comment}" : {held.data}'
        case Lasting(comment, ends):
            return f'{key} timeout {ceil(1000 * max(ends - now + _LONGER_S, _LONGER_S))}ms comment "{comment}"'
        case None:
            return key
