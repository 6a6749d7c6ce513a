"""nftables' own nouns as far as we need them, and how they are written: tables, chains, rules, sets and verdict maps.

The same `Table` describes what shall be and what is. A rule that was read back is known by its comment alone, so two
chains are equal when their rules' comments are.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2s
from math import ceil
from typing import Final, NamedTuple, TypeAlias
from weakref import ReferenceType

from fwdaemon.core.types import Family

TABLE_NAME = "kvm_portfwd"

# The set of connections that were ended, as the packets of their guests show them.
ENDED = "ended"
# The set of ports of guests at which so many ended that all they send is refused which would begin one.
ENDED_PORTS = "ended_ports"

# What an element of a map leads to, where that is a chain.
VERDICT: Final = "verdict"


class FoundRule(NamedTuple):
    """Where a rule is, its number there, and its comment as `nft` keeps it; iptables-nft keeps its own elsewhere."""

    family: str
    table: str
    chain: str
    handle: int
    comment: str


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

    What is listed of that counts down, so elements are compared by their `comment`, which tells when it was to end.
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
    """One of our two tables; where it was made of another, `step` tells what may be different.

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


# --- written for `nft -f` --------------------------------------------------------------------------------------------

# By so much an element outlives what it is for, in seconds: our own clock is to be first where we run.
_LONGER_S: Final = 1.0


def creation(table: Table, now: float = 0.0) -> str:
    """Write a table as `nft list table` would, for reading and for loading `now`, by CLOCK_BOOTTIME."""
    lines = [f"table {table.name} {{"]
    for name, content in table.sets.items():
        listed = ", ".join(_element(element, now) for element in content.elements.items())
        elements = f" elements = {{ {listed} }}" if listed else ""
        lines.append(f"\t{word_of(content)} {name} {{ {content.type}{elements} }}")
    for name, chain in table.chains.items():
        lines.append(f"\tchain {name} {{")
        lines += [f"\t\t{line}" for line in ([str(chain.hook)] if chain.hook else []) + [*map(str, chain.rules)]]
        lines.append("\t}")
    return "\n".join([*lines, "}"])


def word_of(content: Set) -> str:
    """Say whether it is a map or a set."""
    return "map" if content.type.data else "set"


def made(table: Table, now: float) -> Iterator[str]:
    """Make what is not there; the first line is refused if by now it is."""
    yield f"create table {table.name}"
    yield creation(table, now)


def replaced(table: Table, now: float) -> Iterator[str]:
    """Delete and make in one transaction; the first line lets the deletion succeed where there is nothing any more.

    The kernel waits for all processors before it lets go of a table, which takes longer than all the rest of it.
    """
    yield f"add table {table.name}"
    yield f"delete table {table.name}"
    yield creation(table, now)


def filled(table: str, name: str, chain: Chain, *, existing: bool) -> Iterator[str]:
    """Give a chain its rules and no others."""
    hook = f" {{ {chain.hook} }}" if chain.hook else ""
    yield f"flush chain {table} {name}" if existing else f"add chain {table} {name}{hook}"
    for rule in chain.rules:
        yield f"add rule {table} {name} {rule}"


def set_changes(where: str, content: Set, gone: Elements, new: Elements, *, crowded: bool = False) -> Iterator[str]:
    """Take elements out of a set or map, and put others in; `content` is what is then in it.

    Where it is `crowded`, elements are written as `declared_lines` does, and all of them where one goes.
    """
    if crowded:
        added = content.elements if gone else new
        yield from [f"flush {word_of(content)} {where}"] if gone else []
        yield from declared_lines(where, content, [_element(element, 0.0) for element in sorted(added.items())])
        return
    # Only the key of an element may be named when it is deleted from a map.
    yield from element_lines("delete", where, sorted(gone))
    yield from element_lines("add", where, [_element(element, 0.0) for element in sorted(new.items())])


def renewed(where: str, content: Set, now: float, *, crowded: bool = False) -> Iterator[str]:
    """Write all that vanishes by itself anew: what is to be deleted may have done so since it was listed."""
    yield f"flush set {where}"
    texts = sorted(_element(element, now) for element in content.elements.items())
    yield from declared_lines(where, content, texts) if crowded else element_lines("add", where, texts)


def _element(element: tuple[str, Held], now: float) -> str:
    match element:
        case key, None:
            return key
        case key, Lasting(comment, ends):
            return f'{key} timeout {ceil(1000 * max(ends - now + _LONGER_S, _LONGER_S))}ms comment "{comment}"'
        case key, Target(data, comment):
            return f'{key} comment "{comment}" : {data}'
        case key, chain:
            return f"{key} : jump {chain}"
