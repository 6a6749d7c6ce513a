"""Who may connect, as rules: sets of sources, and limits for each source, asked ahead of a translation. Pure.

A set that we fill is one hash for each prefix length, which `nft` changes without reading it; one that others fill has
ranges. What denies a set is one chain for all exposures, so that it counts in one place, and so that it can be put up
before a large set is full again: until then it drops all clients.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from fwdaemon.core.admission import Admission, SourceSet
from fwdaemon.core.exposures import Exposure, Forward, Route
from fwdaemon.core.state import Desired
from fwdaemon.core.text import is_interface_name, label
from fwdaemon.core.types import Family, Subnet, collapse
from fwdaemon.nftables.model import Chain, Rule, Set, SetType, Table
from fwdaemon.resolve.segments import routed_outside, switched

_ADDRESS_TYPES: Final = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}
DENY: Final = "deny."
_SET, _RATE, _OPEN = "set_", "rate.", "open."
# So many sources are counted by one limit at most: one more is not limited, and takes no memory.
_MOST_SOURCES: Final = 65_535
# A set of so many networks takes a moment to fill; nothing else waits for that.
LARGE: Final = 2_000
_BRIDGE: Final = attrgetter("bridge")

Lengths: TypeAlias = Mapping[str, tuple[int, ...]]
"""By set that is filled by us, the prefix lengths of its networks."""


class Terms(NamedTuple):
    """What rules of all exposures of a family depend on; where it is another, all of them are made anew."""

    bit: int
    barred: Admission | None
    lengths: tuple[tuple[str, tuple[int, ...]], ...]


def terms(family: Family, desired: Desired) -> Terms:
    """Give those of a state."""
    barred = desired.barred.of(family) if desired.barred is not None else None
    asked = [item.admission for item in desired.limited if item.admission is not None]
    sources = {name for admission in asked for name in admission.sets} & desired.used_sets.keys()
    lengths = ((name, _lengths(family, desired.used_sets[name])) for name in sorted(sources))
    return Terms(desired.label, barred, tuple(lengths))


def _lengths(family: Family, item: SourceSet) -> tuple[int, ...]:
    return () if item.external else tuple(item.lengths(family))


# --- sets and chains, which all exposures share ----------------------------------------------------------------------


def set_name(name: str, family: Family, length: int) -> str:
    """Name what holds networks of one length; single addresses, and what others fill, have the plain name."""
    return f"{_SET}{name}" if length in (0, family.bits) else f"{_SET}{name}.{length}"


def external_name(name: str) -> str | None:
    """Give the name in the configuration of what has such a name in the kernel."""
    return name.removeprefix(_SET) if name.startswith(_SET) else None


def admission_sets(family: Family, desired: Desired) -> dict[str, Set]:
    """Give the sets that rules look a source up in, and those in which a source is counted."""
    kind = _ADDRESS_TYPES[family]
    found: dict[str, Set] = {}
    for name, item in desired.used_sets.items():
        if item.external:
            found[set_name(name, family, 0)] = Set(SetType(kind, interval=True, external=True))
            continue
        for length in item.lengths(family):
            found[set_name(name, family, length)] = Set(SetType(kind), item.parts.get((family, length), {}))
    for exposure in desired.limited:
        if exposure.family is family and exposure.admission is not None:
            found |= _counting_sets(kind, exposure, exposure.admission)
    return found


def _counting_sets(kind: str, exposure: Exposure, asked: Admission) -> Iterator[tuple[str, Set]]:
    if asked.rate is not None:
        size = SetType(kind, timeout_s=asked.rate.seconds, size=_MOST_SOURCES)
        yield f"{_RATE}{exposure.counted_as}", Set(size)
    if asked.max_open is not None:
        yield f"{_OPEN}{exposure.counted_as}", Set(SetType(kind, size=_MOST_SOURCES))


def admission_chains(family: Family, desired: Desired) -> dict[str, Chain]:
    """Give the chains that drop what is in a set; those of sets that nothing denies are not there."""
    asked = [item.admission for item in desired.limited if item.family is family]
    denied = {name for found in (*asked, desired.barred) if found is not None for name in found.denied}
    return {
        f"{DENY}{name}": Chain(tuple(_dropping(family, desired.used_sets[name])))
        for name in sorted(denied & desired.used_sets.keys())
    }


def _dropping(family: Family, item: SourceSet) -> Iterator[Rule]:
    for asked in _in_set(family, item.name, _lengths(family, item)):
        yield Rule.of(f"{asked} counter drop", label(item.name))


def _in_set(family: Family, name: str, lengths: tuple[int, ...]) -> Iterator[str]:
    """Write the matches of sources in a set."""
    source = f"{family.word} saddr"
    for length in lengths or (0,):
        masked = "" if length in (0, family.bits) else f" & {_mask(family, length)}"
        yield f"{source}{masked} @{set_name(name, family, length)}"


def _mask(family: Family, length: int) -> str:
    return str(ip_network(("0.0.0.0" if family is Family.IPV4 else "::", length)).netmask)  # noqa: S104  a mask


def unfilled(table: Table) -> Table:
    """Give a table whose large sets are empty, and that lets no client by which these may deny: it is made in no time.

    Who is let in by a large set alone waits, too.
    """
    large = {name for name, item in table.sets.items() if name.startswith(_SET) and len(item.elements) > LARGE}
    if not large:
        return table
    sets = {name: Set(item.type) if name in large else item for name, item in table.sets.items()}
    shut = {f"{DENY}{name.removeprefix(_SET).partition('.')[0]}" for name in large} & table.chains.keys()
    closed = {name: Chain((Rule.of("drop", "filling"),)) for name in shut}
    return Table(table.family, {**table.chains, **closed}, sets, table.flags)


def limiting_sets(counted_as: str) -> tuple[str, str]:
    """Name the sets in which what is counted as this would count its sources."""
    return f"{_RATE}{counted_as}", f"{_OPEN}{counted_as}"


# --- rules, ahead of the translation of one exposure -----------------------------------------------------------------


def guarded(exposure: Exposure, asked: str, verdict: str, terms: Terms, others: str | None = None) -> Iterator[Rule]:
    """Give the rules of an exposure: what `asked` matches and may connect has the `verdict`.

    Where it takes being named to connect, all else that `others` matches is dropped; with `None` it goes on.
    """
    name, admission = label(exposure.owner.name), exposure.admission
    for source in _sources(exposure, admission, terms):
        where = f"{asked} {source}".strip()
        for refusing in _refusing(exposure, admission, terms):
            yield Rule.of(f"{where} {refusing}".strip(), name)
        yield Rule.of(f"{where} {verdict}".strip(), name)
    if others is not None and admission is not None and admission.is_exclusive:
        yield Rule.of(f"{others} counter drop".strip(), name)


def barring(family: Family, terms: Terms) -> Iterator[Rule]:
    """Give the rules ahead of what many exposures share."""
    for refusing in _denying(family, terms.barred):
        yield Rule.of(refusing, "all")


def _sources(exposure: Exposure, admission: Admission | None, terms: Terms) -> Iterator[str]:
    """Write the matches of who may connect; any of them is enough."""
    if admission is None or not admission.is_exclusive:
        yield ""
        return
    family, lengths = exposure.family, dict(terms.lengths)
    if found := [subnet for subnet in admission.sources if Family.of(subnet) is family]:
        yield f"{family.word} saddr {{ {', '.join(collapse(found))} }}"
    for name in admission.sets:
        yield from _in_set(family, name, lengths.get(name, ()))


def _refusing(exposure: Exposure, admission: Admission | None, terms: Terms) -> Iterator[str]:
    yield from _denying(exposure.family, terms.barred)
    if admission is None:
        return
    yield from _denying(exposure.family, admission)
    source = f"{exposure.family.word} saddr"
    if (rate := admission.rate) is not None:
        # The counter is reached by what is over the limit alone, so it shows who is limited.
        over = f"{source} limit rate over {rate} burst {rate.number} packets counter"
        yield f"update @{_RATE}{exposure.counted_as} {{ {over} }} counter drop"
    if admission.max_open is not None:
        over = f"{source} ct count over {admission.max_open} counter"
        yield f"add @{_OPEN}{exposure.counted_as} {{ {over} }} counter drop"


def _denying(family: Family, admission: Admission | None) -> Iterator[str]:
    if admission is None:
        return
    if found := [subnet for subnet in admission.deny if Family.of(subnet) is family]:
        yield f"{family.word} saddr {{ {', '.join(collapse(found))} }} counter drop"
    yield from (f"jump {DENY}{name}" for name in admission.denied)


def is_plain(forward: Forward) -> bool:
    """Whether the only condition is who may not connect."""
    return forward.until is None and forward.admission is None and not forward.sources and forward.interface is None


# --- who forges where it is from ------------------------------------------------------------------------------------


def kept_from_forgers(family: Family, desired: Desired) -> tuple[str, ...]:
    """Write the matches of what goes to routed guests, where a source that is not believed is dropped.

    Others may let any client by to a route that is for named sources only. And where we turned forwarding on, what goes
    to any route is let through ahead of the look at sources. Guests of one bridge reach each other without the host.
    """
    found = [route for route in desired.routes if route.family is family and is_interface_name(route.bridge)]
    named = {route for route in found if route.admission is not None and route.admission.is_exclusive}
    newly = routed_outside(family, desired)
    if family in desired.confined:
        return tuple(_leading_to(named.union(newly)))
    return (*_leading_to(named), *_leading_to(set(newly) - named, switched(family, desired)))


def _leading_to(routes: Iterable[Route], ways: Collection[str] | None = None) -> Iterator[str]:
    """Match what came in by these interfaces, or by any; the host itself may have an address in a route's subnet."""
    for bridge, found in groupby(sorted(routes, key=_BRIDGE), _BRIDGE):
        if ways is None:
            came_in = f'!= "{bridge}"'
        elif listed := ", ".join(f'"{way}"' for way in ways if way != bridge):
            came_in = f"{{ {listed} }}"
        else:
            continue
        yield f"iifname {came_in} {_daddr([route.subnet for route in found])} fib daddr type != local"


def _daddr(subnets: Sequence[Subnet]) -> str:
    return f"{Family.of(subnets[0]).word} daddr {{ {', '.join(collapse(subnets))} }}"
