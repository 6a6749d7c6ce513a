"""Which rules of others may stand ahead of a gate: bans, and nothing else. Pure.

A ban refuses named sources only, or is a jump to a chain that `behind` of the configuration names, such as fail2ban's
and Docker's for the administrator. What such a chain accepts needs no gate, and what it refuses is refused on purpose.

A chain that does nothing but refuse is led to from named sources, or names them itself; such chains may lead to others.

A gate belongs right after the bans at the head of its chain. A rule that decides nothing, such as one that logs, may
stand between them. So the same rules always give the same place, whichever came first.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from ipaddress import collapse_addresses, ip_network, summarize_address_range
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.core.types import Address, Family, Origin, Subnet

# Shell patterns of the chains in which programs and administrators refuse sources: jumps to these stay ahead of a gate.
BEHIND = ("DOCKER-USER", "f2b-*", "CROWDSEC*", "crowdsec*", "ufw-before-forward", "ufw-user-forward")


# Chains of libvirt's, which hold no bans: they are not looked at each time.
_LIBVIRTS: Final = re.compile(r"LIBVIRT_FW[IOX]|guest_(input|output|cross)")
# So many chains are looked at to tell where one gate belongs.
_MOST_CHAINS: Final = 16


class Kind(IntEnum):
    """What a rule of another program, or a chain, does to packets that a gate would accept.

    Of several, the greatest counts. `REFUSES` is a refusal of sources that nothing there names.
    """

    IDLE = 0
    BAN = 1
    REFUSES = 2
    DECIDES = 3


class Verdict(StrEnum):
    """How a rule may end: it goes on, or back to where its chain was jumped to from, or to another chain."""

    NONE = "none"
    RETURNS = "returns"
    LEADS = "leads"
    REFUSES = "refuses"
    DECIDES = "decides"


class End(NamedTuple):
    """One of the ends a rule may have; packets may come back from `chain`, unless it was a `goto`."""

    verdict: Verdict
    chain: str = ""
    comes_back: bool = True


class Rule(NamedTuple):
    """A rule of others: its ends, of which a verdict map has several; if it names sources; if it has no conditions."""

    ends: tuple[End, ...]
    named: bool = False
    always: bool = False


RulesOf: TypeAlias = Callable[[str], Iterable[Rule] | None]
"""Lists the rules of a chain by name; `None` where they are not to be had."""


def not_listed(_: str) -> None:
    """List no chain: a `RulesOf`."""


class Judge:
    """Judges rules ahead of one gate, and looks at the chains that they lead to, each once."""

    def __init__(self, behind: Collection[str], rules_of: RulesOf = not_listed) -> None:
        self._behind = behind
        self._rules_of = rules_of
        self._chains: dict[str, Kind] = {}

    def kind(self, rule: Rule, *, accepts: bool = False) -> Kind:
        """Judge a rule of a base chain, which `accepts` by its policy or refuses."""
        found = self._of_rule(rule, accepts=accepts)
        return Kind.DECIDES if found is Kind.REFUSES else found

    def _of_rule(self, rule: Rule, *, accepts: bool) -> Kind:
        worst = max((self._of_end(end, accepts=accepts) for end in rule.ends), default=Kind.IDLE)
        return Kind.BAN if worst is Kind.REFUSES and rule.named else worst

    def _of_end(self, end: End, *, accepts: bool) -> Kind:
        match end.verdict:
            case Verdict.NONE:
                return Kind.IDLE
            case Verdict.RETURNS:
                return Kind.IDLE if accepts else Kind.DECIDES
            case Verdict.REFUSES:
                return Kind.REFUSES
            case Verdict.LEADS:
                found = self._of_chain(end.chain)
                # What comes back after a `goto` meets the policy.
                return found if end.comes_back or accepts or found is Kind.REFUSES else Kind.DECIDES
        return Kind.DECIDES

    def _of_chain(self, name: str) -> Kind:
        if is_behind(name, self._behind):
            return Kind.BAN
        if name not in self._chains:
            self._chains[name] = Kind.DECIDES
            if len(self._chains) <= _MOST_CHAINS and not _LIBVIRTS.fullmatch(name):
                self._chains[name] = self._of_rules(self._rules_of(name))
        return self._chains[name]

    def _of_rules(self, rules: Iterable[Rule] | None) -> Kind:
        if rules is None:
            return Kind.DECIDES
        worst = Kind.IDLE
        for rule in rules:
            # What returns, or comes back after a `goto`, goes on behind the jump.
            worst = max(worst, self._of_rule(rule, accepts=True))
            if worst is Kind.DECIDES:
                break
        return worst


def place(kinds: Iterable[Kind]) -> int:
    """Count the rules that stay ahead of a gate: all up to the last ban before the first rule that decides."""
    staying = 0
    for number, kind in enumerate(kinds, 1):
        if kind is Kind.DECIDES:
            break
        if kind is Kind.BAN:
            staying = number
    return staying


def before_refusal(rules: Sequence[Rule], rules_of: RulesOf, behind: Collection[str], *, accepts: bool) -> int | None:
    """Count the rules ahead of where a base chain refuses whatever is left; `None` if it does not.

    That is its policy, or a rule without conditions. A chain of `behind` that refuses everything does so on purpose.
    """
    found = (number for number, rule in enumerate(rules) if _refuses_the_rest(rule, rules_of, behind))
    return next(found, None if accepts else len(rules))


def _refuses_the_rest(rule: Rule, rules_of: RulesOf, behind: Collection[str]) -> bool:
    end = rule.ends[0]
    if not rule.always or end.verdict is not Verdict.LEADS or is_behind(end.chain, behind):
        return rule.always and end.verdict is Verdict.REFUSES
    led = next((found for found in rules_of(end.chain) or () if found.ends[0].verdict is not Verdict.NONE), None)
    return led is not None and led.always and led.ends[0].verdict is Verdict.REFUSES


def is_behind(chain: str, behind: Collection[str]) -> bool:
    """Whether one of the patterns of `behind` names a chain."""
    return any(fnmatchcase(chain, pattern) for pattern in behind)


def are_named(sources: Iterable[Subnet]) -> bool:
    """Whether these are some sources, and not every one of a family."""
    ordered = sorted(sources, key=Family.of)
    families = [list(found) for _, found in groupby(ordered, Family.of)]
    return bool(ordered) and all(subnet.prefixlen for found in families for subnet in _merged(found))


def between(first: Address, last: Address) -> list[Subnet]:
    """Give a range of addresses as subnets; nothing where it is none."""
    if first.version != last.version or int(first) > int(last):
        return []
    return list(summarize_address_range(first, last))


def _merged(subnets: list[Subnet]) -> list[Subnet]:
    return list(collapse_addresses(subnets))  # type: ignore[type-var]  # all are of one family


# Who may connect to what is reachable: named sets of sources, who is refused, and limits for each source.
#
# What a set holds is kept by prefix length: an address is looked up once for each length, in a hash. So a set of any
# size is changed element by element, and one of another program, which may hold ranges, is kept as the ranges it has.
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
UNITS: Final = tuple(_SECONDS)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many new connections in a `unit`: so many at once, and then one more each time a part of the unit is over."""

    number: int
    unit: str

    @property
    def seconds(self) -> int:
        """How long the unit is."""
        return _SECONDS[self.unit]

    def __str__(self) -> str:
        return f"{self.number}/{self.unit}"


@dataclass(frozen=True, slots=True)
class Admission:
    """Who of those that an exposure would take may connect, and how often.

    With `sources` or `sets`, only who is in one of them; `sets` and `denied` are names of sets. Nobody of `deny` and
    `denied` may. One source address may open connections at this `rate`, and have `max_open` of them open.
    """

    sources: tuple[Subnet, ...] = ()
    sets: tuple[str, ...] = ()
    deny: tuple[Subnet, ...] = ()
    denied: tuple[str, ...] = ()
    rate: Rate | None = None
    max_open: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether it asks for anything at all."""
        return self != _ANYONE

    @property
    def names(self) -> tuple[str, ...]:
        """The sets it names."""
        return self.sets + self.denied

    def of(self, family: Family) -> "Admission | None":
        """Give what of it concerns a family; `None` where it asks for nothing there."""
        sources, deny = (_of_family(family, subnets) for subnets in (self.sources, self.deny))
        found = Admission(sources, self.sets, deny, self.denied, self.rate, self.max_open)
        if self.sources and not sources and not self.sets:
            return self
        return found if found.is_limited else None


_ANYONE: Final = Admission()


def _of_family(family: Family, subnets: Iterable[Subnet]) -> tuple[Subnet, ...]:
    return tuple(subnet for subnet in subnets if Family.of(subnet) is family)


# --- sets of sources -------------------------------------------------------------------------------------------------

Parts: TypeAlias = Mapping[tuple[Family, int], Mapping[str, None]]
"""By family and prefix length, the first addresses of the networks of a set, as text."""


@dataclass(frozen=True, slots=True)
class SourceSet:
    """A named set: what was written or read of it, or, if it is `external`, nothing, as others fill it."""

    name: str
    origin: Origin = field(compare=False)
    external: bool = False
    file: Path | None = None
    parts: Parts = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, origin: Origin, subnets: Iterable[Subnet]) -> "SourceSet":
        """Make one of networks that are written in the configuration."""
        return cls(name, origin, parts=parted(subnets))

    def lengths(self, family: Family) -> list[int]:
        """Give the prefix lengths it has networks of, the longest first; single addresses are always there."""
        found = {length for kind, length in self.parts if kind is family}
        return sorted(found | {family.bits}, reverse=True)

    @property
    def number(self) -> int:
        """How many networks it has."""
        return sum(map(len, self.parts.values()))

    def holds(self, address: Address) -> bool:
        """Whether an address is in it; nobody is in an external one, as far as is known here."""
        return self.network_of(address) is not None

    def network_of(self, address: Address) -> Subnet | None:
        """Give the narrowest of its networks that holds an address."""
        family = Family.of(address)
        for length in self.lengths(family):
            network = ip_network((int(address), length), strict=False)
            if str(network.network_address) in self.parts.get((family, length), ()):
                return network
        return None


Sets: TypeAlias = Mapping[str, SourceSet]


def parted(subnets: Iterable[Subnet]) -> Parts:
    """Sort networks by family and prefix length."""
    found: dict[tuple[Family, int], dict[str, None]] = {}
    for subnet in subnets:
        found.setdefault((Family.of(subnet), subnet.prefixlen), {})[str(subnet.network_address)] = None
    return without_everybody(found)


def without_everybody(found: dict[tuple[Family, int], dict[str, None]]) -> Parts:
    """Write all addresses of a family as two halves: no rule can compare nothing of an address."""
    for family in [family for family, length in found if not length]:
        del found[family, 0]
        for half in ip_network((0 if family is Family.IPV4 else bytes(16), 0)).subnets():
            found.setdefault((family, 1), {})[str(half.network_address)] = None
    return found


# --- what others put into external sets ------------------------------------------------------------------------------


class Element(NamedTuple):
    """A range of addresses as numbers, both ends in it."""

    first: int
    last: int


Elements: TypeAlias = Mapping[Element, float | None]
"""When each element of a set ends, by a clock that never stops; `None` is never."""

Place: TypeAlias = tuple[Family, str]
"""The family and the name of an external set."""


class Ranges:
    """Tells which addresses are in some ranges."""

    def __init__(self, elements: Iterable[Element]) -> None:
        ordered = sorted(elements)
        self._firsts: Sequence[int] = [element.first for element in ordered]
        self._lasts: Sequence[int] = [element.last for element in ordered]

    def holds(self, address: Address) -> bool:
        """Whether one is."""
        number = int(address)
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._lasts[place]


# --- who is refused --------------------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """Why somebody may not connect: he is in a `network` of `deny`, or a set, or, if not `denied`, in no source."""

    denied: bool
    name: str = ""
    network: Subnet | None = None


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Tells who is refused, from all that the configuration and other programs have in sets.

    `everywhere` is what holds for all exposures. `ranges` are what external sets hold.
    """

    sets: Sets = field(default_factory=dict)
    everywhere: Admission | None = None
    ranges: Mapping[Place, Ranges] = field(default_factory=dict)

    def refusal(self, admission: Admission | None, source: Address) -> Refusal | None:
        """Tell why a source may not connect, whatever the limits; `None` where it may."""
        for asked in filter(None, (self.everywhere, admission)):
            if (refused := self._denied(asked, source)) is not None:
                return refused
        if admission is None or not (admission.sources or admission.sets):
            return None
        is_named = _within(admission.sources, source) or any(self.holds(name, source) for name in admission.sets)
        return None if is_named else Refusal(denied=False)

    def holds(self, name: str, source: Address) -> bool:
        """Whether a set holds an address."""
        ranges = self.ranges.get((Family.of(source), name))
        if ranges is not None and ranges.holds(source):
            return True
        return name in self.sets and self.sets[name].holds(source)

    def _denied(self, asked: Admission, source: Address) -> Refusal | None:
        if network := _within(asked.deny, source):
            return Refusal(denied=True, network=network)
        name = next((name for name in asked.denied if self.holds(name, source)), None)
        return None if name is None else Refusal(denied=True, name=name)


def _within(subnets: Iterable[Subnet], source: Address) -> Subnet | None:
    return next((subnet for subnet in subnets if subnet.version == source.version and source in subnet), None)


def names_of(admissions: Iterable[Admission]) -> Iterator[str]:
    """Give the sets that any of these name."""
    for admission in admissions:
        yield from admission.names
