"""The table nat of iptables as steps, from `iptables-save`. Pure; the words are those of iptables-extensions(8)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from fwdaemon.core.types import Family, PortRange, Protocol, Subnet
from fwdaemon.legacy.model import OWN_CHAINS
from fwdaemon.rulesets import xt_tables
from fwdaemon.rulesets.packet import RuleLocation, System
from fwdaemon.rulesets.region import network_of
from fwdaemon.rulesets.xt_tables import RuleLine

# What a rule, or an exposure, asks of a packet: for each field the values it may have. Pure.
#
# A field that is not named may be anything. A test that is not understood counts as passed, so a scope may be too wide,
# but never too narrow.


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


# Rules of other tools that send connections elsewhere, found along the jumps from a base chain. Pure.


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


PREROUTING: Final = "PREROUTING"

_TRANSLATES: Final = frozenset({"DNAT", "REDIRECT", "NETMAP"})


def read_chains(save: str, system: System, family: Family) -> Chains:
    """Read all chains but ours; a match that is not known here counts as passed."""
    chains: dict[str, list[Step]] = {}
    for table in xt_tables.read(save).tables:
        known = table.chains.keys() - {""}
        for chain, rules in table.chains.items():
            if rules and chain in known - OWN_CHAINS:
                location = RuleLocation(system, family.word, "nat", chain, 0)
                chains[chain] = [step for rule in rules for step in _steps(location, rule, known)]
    return chains


def has_own_chains(save: str) -> bool:
    """Whether chains of ours are in a table."""
    return any(not OWN_CHAINS.isdisjoint(table.chains) for table in xt_tables.read(save).tables)


def _steps(location: RuleLocation, rule: RuleLine, chains: Collection[str]) -> Iterator[Step]:
    target = rule.target if rule.target in chains else None
    if rule.target in OWN_CHAINS or (target is None and rule.target not in _TRANSLATES):
        return
    scope: Scope = {}
    for option in rule.options or ():
        if option.name in ("-j", "-g"):
            break
        if option.name in _READERS and option.values and not option.inverted:
            narrowed = both(scope, _asked(option.name, option.values[0]))
            if narrowed is None:
                return
            scope = narrowed
    yield Step(location, scope, target)


def _asked(option: str, word: str) -> Scope:
    """Give what an option asks for; one that cannot be read, like a mask with holes, asks for nothing."""
    field, read = _READERS[option]
    try:
        return {field: tuple(read(word))}
    except ValueError:
        return {}


def _protocols(word: str) -> Iterator[Value]:
    yield from (protocol for protocol in Protocol if word == protocol)


def _ports(word: str) -> Iterator[Value]:
    """Read `80`, `80:90` and `80,443,1000:2000`."""
    for part in word.split(","):
        first, _, last = part.partition(":")
        yield PortRange(int(first), int(last or first))


def _subnets(word: str) -> Iterator[Value]:
    yield network_of(word)


def _interfaces(word: str) -> Iterator[Value]:
    yield f"{word[:-1]}*" if word.endswith("+") else word


_READERS: Final[Mapping[str, tuple[Field, Callable[[str], Iterator[Value]]]]] = {
    "-p": (Field.PROTOCOL, _protocols),
    "--dport": (Field.PORT, _ports),
    "--dports": (Field.PORT, _ports),
    "-d": (Field.DESTINATION, _subnets),
    "-s": (Field.SOURCE, _subnets),
    "-i": (Field.INTERFACE, _interfaces),
}
