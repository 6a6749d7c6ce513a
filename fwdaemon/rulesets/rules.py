"""Sets of packets, what rules of whatever language ask of them, and what becomes of them in a base chain. Pure.

A `Box` is a product: any combination of the values of its fields is in it. What a rule asks is a `Match`, which names
only the fields that it narrows.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ipaddress import ip_address, ip_network
from operator import itemgetter
from typing import Final, TypeAlias

from fwdaemon.core.types import Family, Subnet
from fwdaemon.errors import PortfwdError


def network_of(text: str) -> Subnet:
    """Read an address, or a network with a prefix length or a netmask; host bits beyond it say nothing.

    Python also takes a host mask, `0.0.0.255`, for a prefix. To a firewall it is a mask with holes: only its set bits
    are compared.

    Raises:
        ValueError: it is none, or no single network.

    """
    network = ip_network(text, strict=False)
    _, _, mask = text.partition("/")
    if "." in mask and ip_address(mask) != network.netmask:
        raise ValueError(f"{text} has a mask with holes")
    return network


# Sets of whole numbers, held as ranges: ports, addresses, and whatever else can be numbered. Pure.
Range: TypeAlias = tuple[int, int]
"""The first and the last number of a range, both included."""

_first, _last = itemgetter(0), itemgetter(1)


@dataclass(frozen=True, slots=True)
class Spans:
    """A set of numbers; `ranges` are in order, apart from each other, and not adjacent."""

    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> "Spans":
        """Give the set of all numbers in these ranges, which may overlap; one that ends before it begins is empty."""
        merged: list[Range] = []
        for first, last in sorted(ranges):
            if first > last:
                continue
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    @property
    def size(self) -> int:
        """How many numbers are in it."""
        return sum(last - first + 1 for first, last in self.ranges)

    def meet(self, other: "Spans") -> "Spans":
        """Give the numbers in both."""
        if len(self.ranges) == 1 == len(other.ranges):  # nearly always
            ((one_first, one_last),), ((its_first, its_last),) = self.ranges, other.ranges
            first, last = max(one_first, its_first), min(one_last, its_last)
            return Spans(((first, last),)) if first <= last else EMPTY
        few, many = sorted((self.ranges, other.ranges), key=len)
        found: list[Range] = []
        for first, last in few:
            start, end = _near(many, first, last)
            found += ((max(first, each[0]), min(last, each[1])) for each in many[start:end])
        return Spans(tuple(found))

    def minus(self, other: "Spans") -> "Spans":
        """Give the numbers that are not in the other one."""
        if not self.ranges:
            return self
        start, end = _near(other.ranges, self.ranges[0][0], self.ranges[-1][1])
        left = self.ranges
        for first, last in other.ranges[start:end]:
            left = _without(left, first, last)
        return Spans(left)

    def shifted(self, by: int) -> "Spans":
        """Give the set with `by` added to each number."""
        return Spans(tuple((first + by, last + by) for first, last in self.ranges))

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __contains__(self, number: int) -> bool:
        start, end = _near(self.ranges, number, number)
        return start < end


def _near(ranges: Sequence[Range], first: int, last: int) -> tuple[int, int]:
    """Give where the ranges begin and end that share a number with one."""
    return bisect_left(ranges, first, key=_last), bisect_right(ranges, last, key=_first)


def _without(ranges: tuple[Range, ...], first: int, last: int) -> tuple[Range, ...]:
    start, end = _near(ranges, first, last)
    if start >= end:
        return ranges
    before, after = (ranges[start][0], first - 1), (last + 1, ranges[end - 1][1])
    return (*ranges[:start], *(each for each in (before, after) if each[0] <= each[1]), *ranges[end:])


EMPTY = Spans(())


def one(number: int) -> Spans:
    """Give the set of one number."""
    return Spans(((number, number),))


LAST_PORT: Final = 65535
LAST_PROTOCOL: Final = 255


class Field(IntEnum):
    """What rules may ask of a packet, the most telling first.

    `WANTED` and `WANTED_PORT` are where the client sent it, before any translation. `TRANSLATED` is 1 once it was sent
    elsewhere, and 0 before: then it is for the host itself.
    """

    PORT = 0
    PROTOCOL = 1
    DESTINATION = 2
    SOURCE = 3
    CAME_IN = 4
    GOES_OUT = 5
    WANTED = 6
    WANTED_PORT = 7
    TRANSLATED = 8


Match: TypeAlias = Mapping[Field, Spans]
"""What is asked of each field; one that is not named may be anything."""


@dataclass(frozen=True, slots=True)
class Box:
    """All packets whose every field is in the spans of that field."""

    spans: tuple[Spans, ...]

    def __getitem__(self, field: Field) -> Spans:
        return self.spans[field]

    @property
    def match(self) -> Match:
        """What asks for just these packets."""
        return dict(zip(Field, self.spans, strict=True))

    def meet(self, match: Match) -> "Box | None":
        """Give those that match, or `None` where none does."""
        found: dict[Field, Spans] = {}
        for field, wanted in match.items():
            met = found[field] = self.spans[field].meet(wanted)
            if not met.ranges:
                return None
        return Box(tuple(found.get(field, spans) for field, spans in zip(Field, self.spans, strict=True)))

    def minus(self, match: Match) -> Iterator["Box"]:
        """Give those that do not match, as boxes that share no packet."""
        spans = list(self.spans)
        for field, unwanted in match.items():
            rest, spans[field] = spans[field].minus(unwanted), spans[field].meet(unwanted)
            if rest:
                yield Box((*spans[:field], rest, *spans[field + 1 :]))
            if not spans[field]:
                return

    def holding(self, **fields: Spans) -> "Box":
        """Give the box with other spans for the fields of these names, in lower case."""
        changed = {Field[name.upper()]: spans for name, spans in fields.items()}
        return Box(tuple(changed.get(field, spans) for field, spans in zip(Field, self.spans, strict=True)))

    def is_within(self, other: "Box") -> bool:
        """Whether all of it is in the other one."""
        return not any(mine.minus(its) for mine, its in zip(self.spans, other.spans, strict=True))


def without(boxes: Iterable[Box], match: Match) -> list[Box]:
    """Give what is left of boxes without what matches."""
    return [rest for box in boxes for rest in box.minus(match)]


@dataclass(frozen=True, slots=True)
class Space:
    """What there is at all: addresses of one family, and the interfaces that rules tell apart.

    `interfaces` has every name and pattern, `eth+`, that the rules mention, and `+`. Each stands for the names that
    match it and nothing narrower, so every interface is one of them, and any pattern is a set of them.
    """

    family: Family
    interfaces: tuple[str, ...]

    @classmethod
    def around(cls, family: Family, patterns: Iterable[str]) -> "Space":
        """Give the space in which these patterns of interfaces differ."""
        return cls(family, tuple(sorted({*patterns, "lo", "+"})))

    @property
    def everything(self) -> Box:
        """Every packet there may be."""
        ports, addresses = Spans(((0, LAST_PORT),)), Spans(((0, 2**self.family.bits - 1),))
        devices = Spans(((0, len(self.interfaces) - 1),))
        protocols, flags = Spans(((0, LAST_PROTOCOL),)), Spans(((0, 1),))
        return Box((ports, protocols, addresses, addresses, devices, devices, addresses, ports, flags))

    @property
    def outside(self) -> Spans:
        """Every interface but the loopback one."""
        return self.interfaces_like("+").minus(self.interfaces_like("lo"))

    def interfaces_like(self, pattern: str) -> Spans:
        """Give the numbers of the interfaces that a name, or a pattern that ends in `+`, matches."""
        prefix = pattern[:-1] if pattern.endswith("+") else None
        numbers = (
            number
            for number, name in enumerate(self.interfaces)
            if (name == pattern if prefix is None else name.startswith(prefix))
        )
        return Spans.of((number, number) for number in numbers)

    def interface(self, name: str) -> Spans:
        """Give the number that stands for one interface, which the rules may know by a pattern only."""
        known = [like for like in self.interfaces if like == name or (like[-1:] == "+" and name.startswith(like[:-1]))]
        narrowest = max(known, key=lambda like: (like == name, len(like)))
        return one(self.interfaces.index(narrowest))

    def addresses_in(self, text: str) -> Spans:
        """Read an address or a network; raise `ValueError` where it is none of this family."""
        network = network_of(text)
        if network.version != self.family:
            raise ValueError(f"{text} is of another family")
        return Spans(((int(network.network_address), int(network.broadcast_address)),))

    def complement(self, field: Field, spans: Spans) -> Spans:
        """Give everything a field may be but this."""
        return self.everything[field].minus(spans)


def matching(fields: Sequence[tuple[Field, Spans]]) -> Match:
    """Make a match of what is asked of fields, each of which may be asked for several times."""
    found: dict[Field, Spans] = {}
    for field, spans in sorted(fields, key=lambda asked: asked[0]):
        found[field] = found[field].meet(spans) if field in found else spans
    return found


class End(StrEnum):
    """How a packet's way through a base chain ends.

    `TRANSLATE` sends it elsewhere, `RENAME` gives it another source. `UNCLEAR` is whatever is not understood.
    """

    ACCEPT = "accept"
    REFUSE = "refuse"
    TRANSLATE = "translate"
    RENAME = "rename"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Jump:
    """Goes on in another chain; with `goto`, without coming back to this one."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class Return:
    """Goes back to where the chain was jumped to from."""


Action: TypeAlias = End | Jump | Return | None
"""What a rule does; `None` lets the packet go on to the next one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, by the line it stands on.

    Where it asks for more than `match` says, it is not `certain`: what matches may be taken, or go on.
    """

    line: int
    match: Match
    action: Action
    certain: bool = True


Chains: TypeAlias = Mapping[str, Sequence[Rule]]


def led_to(chains: Chains, base: str) -> frozenset[str]:
    """Give the chains that jumps lead to from one, with itself, whatever the rules ask."""
    found = {base}
    left = [base]
    while left:
        below = {rule.action.chain for rule in chains.get(left.pop(), ()) if isinstance(rule.action, Jump)}
        left += below - found
        found |= below
    return frozenset(found)


# Every end that a packet may come to is given. A packet for which a rule is not certain has several, so what is said of
# all its ends holds whatever that rule asks.

# The kernel refuses chains that lead in a circle, and deep ones too; only a text that no kernel printed has more.
_DEEPEST: Final = 64
_MOST_STEPS: Final = 100_000
# More of them are not compared with each other.
_FEW: Final = 32


class TangledError(PortfwdError):
    """Chains lead in a circle, or into more cases than can be followed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Packets, how their way ends, and the rule that ends it; `None` is the chain's policy."""

    packets: Box
    end: End
    rule: Rule | None


def walk(chains: Chains, base: str, packets: Box, policy: End) -> list[Outcome]:
    """Follow packets through a base chain; raise `TangledError` where that leads nowhere."""
    walker = _Walker(chains)
    through = walker.follow(base, [packets], 0)
    return [*walker.outcomes, *(Outcome(box, policy, None) for box in through)]


class _Walker:
    def __init__(self, chains: Chains) -> None:
        self.chains, self.outcomes, self.steps = chains, list[Outcome](), 0

    def follow(self, name: str, boxes: list[Box], depth: int) -> list[Box]:
        """Follow packets through a chain, and give those that come out at its end or by a return."""
        returned: list[Box] = []
        staying = boxes
        for rule in self.chains.get(name, ()):
            self._count(len(staying), depth)
            met = [box.meet(rule.match) for box in staying] if rule.action is not None else []
            if not any(met):
                continue
            pairs = zip(staying, met, strict=True)
            staying = _distinct(rest for box, part in pairs for rest in self._apply(rule, box, part, returned, depth))
        return _distinct([*staying, *returned])

    def _count(self, steps: int, depth: int) -> None:
        self.steps += steps
        if depth > _DEEPEST or self.steps > _MOST_STEPS:
            raise TangledError("its chains lead in a circle, or into more cases than can be followed")

    def _apply(self, rule: Rule, box: Box, met: Box | None, returned: list[Box], depth: int) -> list[Box]:
        """Apply one rule to what it matches of a box: give what goes on to the next one."""
        if met is None:
            return [box]
        back = self._act(rule, met, returned, depth)
        # What may come back from a rule that is not certain is among what may go on anyway.
        return [*box.minus(rule.match), *back] if rule.certain else [box]

    def _act(self, rule: Rule, met: Box, returned: list[Box], depth: int) -> list[Box]:
        match rule.action:
            case End() as end:
                self.outcomes.append(Outcome(met, end, rule))
            case Return():
                returned.append(met)
            case Jump(chain, goto):
                back = self.follow(chain, [met], depth + 1)
                if not goto:
                    return back
                returned += back
        return []


def _distinct(found: Iterable[Box]) -> list[Box]:
    """Drop boxes that lie within another one."""
    boxes = list(dict.fromkeys(found))
    if not 1 < len(boxes) <= _FEW:
        return boxes
    return [box for box in boxes if not any(other is not box and box.is_within(other) for other in boxes)]
