"""Who may connect to what is reachable: named sets of sources, who is refused, and limits for each source. Pure.

What a set holds is kept by prefix length: an address is looked up once for each length, in a hash. So a set of any
size is changed element by element, and one of another program, which may hold ranges, is kept as the ranges it has.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.core.types import Address, Family, Origin, Subnet

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

    With `sources` or `sets`, only who is in one of them; `sets` and `denied` are names of sets. No one of `deny` and
    `denied` may. One source address may open connections at this `rate`, and have `max_open` of them open; what is
    made of one `entry` for one guest is counted together.
    """

    sources: tuple[Subnet, ...] = ()
    sets: tuple[str, ...] = ()
    deny: tuple[Subnet, ...] = ()
    denied: tuple[str, ...] = ()
    rate: Rate | None = None
    max_open: int | None = None
    entry: str = ""

    @property
    def is_limited(self) -> bool:
        """Whether it asks for anything at all."""
        return self != _ANYONE

    @property
    def is_exclusive(self) -> bool:
        """Whether it takes being named to connect."""
        return bool(self.sources or self.sets)

    @property
    def names(self) -> tuple[str, ...]:
        """The sets it names."""
        return self.sets + self.denied

    def of(self, family: Family) -> "Admission | None":
        """Give what of it concerns a family; `None` where it asks for nothing there."""
        sources, deny = (_of_family(family, subnets) for subnets in (self.sources, self.deny))
        found = replace(self, sources=sources, deny=deny)
        if self.sources and not sources and not self.sets:
            return self
        return found if found.is_limited else None


_ANYONE: Final = Admission()


class Need(StrEnum):
    """What rules need besides what all of them do, as the configuration asks for it."""

    SETS = "set:…"
    RATE = "rate"
    OPEN = "max_open"


def needs_of(admission: Admission) -> frozenset[Need]:
    """Tell what the rules that ask this need."""
    found = {Need.SETS: admission.names, Need.RATE: admission.rate, Need.OPEN: admission.max_open}
    return frozenset(need for need, is_there in found.items() if is_there)


def _of_family(family: Family, subnets: Iterable[Subnet]) -> tuple[Subnet, ...]:
    return tuple(subnet for subnet in subnets if Family.of(subnet) is family)


# --- sets of sources -------------------------------------------------------------------------------------------------

Parts: TypeAlias = Mapping[tuple[Family, int], Mapping[str, None]]
"""By family and prefix length, the first addresses of the networks of a set, as text."""


@dataclass(frozen=True, slots=True)
class SourceSet:
    """A named set: what was written, at its `places`, or read of it, or nothing if it is `external`: others fill it."""

    name: str
    origin: Origin = field(compare=False)
    external: bool = False
    file: Path | None = None
    parts: Parts = field(default_factory=dict)
    places: Mapping[Subnet, Origin] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, name: str, origin: Origin, subnets: Iterable[Subnet]) -> "SourceSet":
        """Make one of networks that are written in the configuration, all at one place."""
        return cls(name, origin, parts=parted(subnets))

    def lengths(self, family: Family) -> list[int]:
        """Give the prefix lengths it has networks of, the longest first; single addresses are always there."""
        found = {length for kind, length in self.parts if kind is family}
        return sorted(found | {family.bits}, reverse=True)

    @property
    def is_written(self) -> bool:
        """Whether the configuration itself says what is in it."""
        return self.file is None and not self.external

    @property
    def networks(self) -> tuple[Subnet, ...]:
        """Its networks; of all addresses, the two halves."""
        return tuple(ip_network(f"{first}/{length}") for (_, length), found in self.parts.items() for first in found)

    @property
    def number(self) -> int:
        """How many networks it has."""
        return sum(map(len, self.parts.values()))

    def holds(self, address: Address) -> bool:
        """Whether an address is in it; no address is in an external one, as far as is known here."""
        return self.network_of(address) is not None

    def network_of(self, address: Address) -> Subnet | None:
        """Give the narrowest of its networks that holds an address."""
        family = Family.of(address)
        for length in self.lengths(family):
            network = ip_network((address, length), strict=False)
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
    """Knows which addresses are in some ranges."""

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
    """Why a client may not connect: it is in a `network` of `deny`, or a set, or, if not `denied`, in no source."""

    denied: bool
    name: str = ""
    network: Subnet | None = None


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Knows who is refused, from all that the configuration and other programs have in sets.

    `everywhere` is what holds for all exposures. `ranges` are what external sets hold.
    """

    sets: Sets = field(default_factory=dict)
    everywhere: Admission | None = None
    ranges: Mapping[Place, Ranges] = field(default_factory=dict)

    def refusal(self, admission: Admission | None, source: Address) -> Refusal | None:
        """Say why a source may not connect, whatever the limits; `None` where it may."""
        for asked in filter(None, (self.everywhere, admission)):
            if (refused := self._denied(asked, source)) is not None:
                return refused
        if admission is None or not admission.is_exclusive:
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


def lets_in(sources: Collection[Subnet], client: Address) -> bool:
    """Whether one of these is meant, which are anyone where they are none."""
    return not sources or any(client in subnet for subnet in sources)
