"""Who may connect, asked ahead of the translation: sets of sources, and limits for each source. Pure.

iptables(8) refuses DROP in the table nat, so with such a rule there what `iptables-save` prints could not be restored.
The rules are in mangle instead, whose hooks come (-150) before those of nat (-100): netfilter_ipv4.h. There, KVMPF_PRE
leads on what came in, as its namesake in nat does, and KVMPF_POST asks, in the order in which nat takes packets, but
only of what could be refused. Both ask only the first packet of a connection. What denies to all is one chain, and so
are the limits of an entry, which are counted together whatever ports it has; the sets of sources that an exposure is
for are asked where it takes packets.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2s
from ipaddress import ip_address
from typing import Final, NamedTuple

from fwdaemon.core.admission import Admission, Rate
from fwdaemon.core.exposures import Exposure, Kind, Route
from fwdaemon.core.state import Desired, Dropped
from fwdaemon.core.text import is_interface_name, label
from fwdaemon.core.types import Address, Family, PortRange, Protocol, collapse
from fwdaemon.legacy.info import Counter, counted_table
from fwdaemon.legacy.model import (
    DENY,
    FWD,
    OUT,
    POST,
    PRE,
    Rule,
    TableName,
    host,
    in_set,
    labelling,
    limits_chain,
    unlabelled,
)
from fwdaemon.legacy.translation import (
    ELSEWHERE,
    EVERY_ADDRESS,
    Lead,
    Serving,
    entering,
    leads,
    left_by_host,
    nats_of,
    sources_of,
)

# The first packet of a connection: it is confirmed once it has got through, as for the guest or the host.
_FIRST: Final = "-m conntrack ! --ctstatus CONFIRMED"
_NOT_FIRST: Final = ("-m conntrack ! --ctstate NEW", "-m conntrack --ctstatus CONFIRMED")
# So many sources are counted by one limit at most, as in nftables; each of these takes 120 bytes, a bucket 8. Of more
# sources in a bucket than fit into the page in which the kernel lists them, it lists none.
_MOST_SOURCES: Final = 65_535
_BUCKETS: Final = 8_192
# So many a day may all come at once.
_FEW: Final = 2
_UNITS: Final = {"second": "sec", "minute": "min", "hour": "hour", "day": "day"}


class Guard(NamedTuple):
    """A rule, and what its counter says: `weight` times its packets, which an `exposure` or a set had `denied`."""

    exposure: Exposure | None
    rule: Rule
    weight: int = 0
    denied: str = ""

    @property
    def serving(self) -> Serving:
        """The rule with its exposure."""
        return self.exposure, self.rule


Guards = Mapping[str, list[Guard]]
"""Rules by chain."""


def asking(family: Family, desired: Desired) -> dict[str, list[Guard]]:
    """Write the chains in mangle that refuse first packets; none where all may connect."""
    if desired.barred is None and not desired.limited:
        return {}
    judged = [*_judging(family, desired)]
    found = {DENY: [*_barring(family, desired)], **_limiting(family, desired)}
    if any(guard.rule.target != "RETURN" for guard in judged):
        first = [Guard(None, Rule.of(match, "RETURN", "all")) for match in _NOT_FIRST]
        found[PRE] = [*first, *(Guard(*serving) for serving in entering(family, desired, POST))]
        found[POST] = [*first, *(Guard(*serving) for serving in left_by_host(family, desired)), *judged]
    return {chain: guards for chain, guards in found.items() if guards}


def entrances(route: Route, desired: Desired) -> Iterator[Guard]:
    """Write the rules that label new connections to a route, of those who may connect."""
    name, bit = label(route.network), labelling(desired.label)
    for source, match in sources_of(route):
        way = f"{source}-d {route.subnet} -o {route.bridge}{match}"
        if _is_asked(route, desired):
            first = f"{way} {_FIRST}"
            if _denies(desired.barred, route.family):
                yield Guard(route, Rule.of(first, DENY, name))
            yield from _refusing(route, first)
            if _has_limits(route):
                yield Guard(route, Rule.of(f"{first} {bit}", "RETURN", name), -1)
        yield Guard(route, Rule.of(f"{way} {bit}", "RETURN", name))


def excluding(family: Family, desired: Desired) -> Iterator[Guard]:
    """Refuse what goes to routes for named sources only, and was not labelled: also by who forges one of these.

    Guests of one bridge reach each other without the host.
    """
    new = f"-m conntrack --ctstate NEW {unlabelled(desired.label)}"
    for route in routes_of(family, desired):
        if route.admission is not None and route.admission.is_exclusive:
            way = f"-d {route.subnet} ! -i {route.bridge} -o {route.bridge} {new}"
            yield Guard(route, Rule.of(way, "DROP", label(route.network)), 1)


def routes_of(family: Family, desired: Desired) -> list[Route]:
    """List the routes of a family, but none to a bridge with a name that could be read as anything else."""
    found = (item for item in desired.routes if item.family is family and is_interface_name(item.bridge))
    return sorted(found, key=lambda item: (int(item.subnet.network_address), item.subnet.prefixlen, item.bridge))


# --- ahead of the translation ----------------------------------------------------------------------------------------


def _judging(family: Family, desired: Desired) -> Iterator[Guard]:
    """Ask of all that takes packets, before and after what is not for the host itself was sent back."""
    found = [*leads(family, desired)]
    middle = next((number for number, lead in enumerate(found) if lead.exposure is None), len(found))
    concerned = _Concerned(family, desired)
    for part, where in (found[:middle], f" {ELSEWHERE}"), (found[middle:], ""):
        yield from (Guard(None, Rule.of(lead.matches, "RETURN", EVERY_ADDRESS)) for lead in part if not lead.exposure)
        if _denies(desired.barred, family):
            yield from (Guard(None, Rule.of(lead.matches, DENY, "all")) for lead in _together(part))
        for lead in part:
            if lead.exposure is not None and concerned.by(lead):
                yield from _asked(lead.exposure, lead.matches)
        yield from _others(family, desired, where)


def _asked(exposure: Exposure, matches: str) -> Iterator[Guard]:
    """Refuse who may not connect; nothing else takes what an exposure takes."""
    yield from _refusing(exposure, matches)
    yield Guard(exposure, Rule.of(matches, "RETURN", label(exposure.owner.name)), -_has_limits(exposure))


def _refusing(exposure: Exposure, matches: str) -> Iterator[Guard]:
    """Refuse who is in a set, each of which counts for itself, and lead to the limits of the entry.

    What comes in there and does not come out has been refused.
    """
    name, asked = label(exposure.owner.name), exposure.admission or Admission()
    for denied in asked.denied:
        yield Guard(exposure, Rule.of(f"{matches} {in_set(denied, exposure.family)}", "DROP", name), 1, denied)
    if _has_limits(exposure):
        yield Guard(exposure, Rule.of(matches, limits_chain(exposure), name), 1)


def _others(family: Family, desired: Desired, where: str) -> Iterator[Guard]:
    """Refuse all other sources at 1:1 addresses for named ones: they are not to meet the host instead."""
    for nat in nats_of(family, desired.nats):
        if nat.admission is not None and nat.admission.is_exclusive:
            yield Guard(nat, Rule.of(f"-d {host(nat.public)}{where}", "DROP", label(nat.domain)), 1)


def _together(part: Iterable[Lead]) -> Iterator[Lead]:
    """Give the same with as few pieces of ports as possible: those who are denied everything are asked for no more."""
    found: defaultdict[tuple[str, str], list[PortRange | None]] = defaultdict(list)
    for lead in part:
        if lead.exposure is not None:
            found[lead.header, lead.rest].append(lead.ports)
    for (header, rest), ports in found.items():
        for piece in _merged(ports):
            yield Lead(None, header, piece, rest)


def _merged(ports: Iterable[PortRange | None]) -> list[PortRange | None]:
    named = sorted({each for each in ports if each is not None}, key=lambda each: (each.first, each.last))
    if not named:
        return [None]
    merged = [named[0]]
    for each in named[1:]:
        if each.first > merged[-1].last + 1:
            merged.append(each)
        else:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, each.last))
    return [*merged]


class _Concerned:
    """Says what has to be asked: what is limited, and what takes packets before that would."""

    def __init__(self, family: Family, desired: Desired) -> None:
        claims = [item.claim for item in desired.limited if item.family is family]
        self._nats = any(claim.kind is Kind.NAT for claim in claims)
        ports: defaultdict[Protocol, list[PortRange | None]] = defaultdict(list)
        for claim in claims:
            if claim.protocol is not None:
                ports[claim.protocol].append(claim.ports)
        self._ports = {protocol: [*filter(None, _merged(found))] for protocol, found in ports.items()}

    def by(self, lead: Lead) -> bool:
        """Whether that is so of what takes packets; a 1:1 address takes nothing that anything after it would."""
        exposure, ports = lead.exposure, lead.ports
        if exposure is None or exposure.admission is not None:
            return exposure is not None
        protocol = exposure.claim.protocol
        return protocol is not None and ports is not None and (self._nats or self._shares(protocol, ports))

    def _shares(self, protocol: Protocol, ports: PortRange) -> bool:
        found = self._ports.get(protocol, [])
        place = bisect_right(found, ports.last, key=lambda each: each.first) - 1
        return place >= 0 and found[place].last >= ports.first


# --- chains that several lead to -------------------------------------------------------------------------------------


def _barring(family: Family, desired: Desired) -> Iterator[Guard]:
    barred = desired.barred
    if barred is None or not desired.exposures:
        return
    for subnet in collapse(subnet for subnet in barred.deny if Family.of(subnet) is family):
        yield Guard(None, Rule.of(f"-s {subnet}", "DROP", "all"))
    for name in barred.denied:
        yield Guard(None, Rule.of(in_set(name, family), "DROP", label(name)), 1, name)


def _denies(asked: Admission | None, family: Family) -> bool:
    return asked is not None and (bool(asked.denied) or any(Family.of(subnet) is family for subnet in asked.deny))


def _limiting(family: Family, desired: Desired) -> dict[str, list[Guard]]:
    """Write the chain of each entry that has limits, or denies to addresses."""
    found: dict[str, list[Guard]] = {}
    for exposure in sorted(desired.limited, key=lambda item: (item.counted_as, str(item.claim))):
        if exposure.family is family and _has_limits(exposure):
            found.setdefault(limits_chain(exposure), [Guard(None, rule) for rule in _limits(exposure)])
    return found


def _has_limits(exposure: Exposure) -> bool:
    asked = exposure.admission
    if asked is None:
        return False
    denies = any(Family.of(subnet) is exposure.family for subnet in asked.deny)
    return denies or asked.rate is not None or asked.max_open is not None


def _limits(exposure: Exposure) -> Iterator[Rule]:
    name, asked, family = label(exposure.owner.name), exposure.admission or Admission(), exposure.family
    for subnet in collapse(subnet for subnet in asked.deny if Family.of(subnet) is family):
        yield Rule.of(f"-s {subnet}", "DROP", name)
    if asked.rate is not None:
        yield Rule.of(rate_match(asked.rate, exposure.counted_as), "DROP", name)
    if asked.max_open is not None:
        yield Rule.of(open_match(asked.max_open, family), "DROP", name)


def rate_match(rate: Rate, counted_as: str) -> str:
    """Write the match of first packets over a rate.

    What is counted outlives a change of the table, by its name: so another rate has another one.

    The kernel counts credits (`rateinfo_recalc` in net/netfilter/xt_hashlimit.c), of which 37 hours' worth fit into 64
    bits, and adds without a look at that: what one source may save up, and what is added to it after the longest rest,
    have to fit together. A source that rests for as long as it takes to save up all is forgotten.
    """
    burst = max(min(rate.number, _FEW), rate.number * 3 // 4) if rate.unit == "day" else rate.number
    rest_ms = rate.seconds * 1000 * burst // rate.number
    sizes = f"--hashlimit-htable-size {_BUCKETS} --hashlimit-htable-max {_MOST_SOURCES}"
    over = f"--hashlimit-above {rate.number}/{_UNITS[rate.unit]} --hashlimit-burst {burst} --hashlimit-mode srcip"
    name = rate_name(rate, counted_as)
    return f"-m hashlimit {over} --hashlimit-name {name} {sizes} --hashlimit-htable-expire {rest_ms}"


def rate_name(rate: Rate, counted_as: str) -> str:
    """Name what the kernel counts the sources of a rate in."""
    return f"kvmpf_{blake2s(f'{counted_as} {rate}'.encode(), digest_size=4).hexdigest()}"


def used_up(listing: str) -> Iterator[Address]:
    """Read from what the kernel lists of a rate which sources have no credit left for one more connection.

    A line is `86399 192.0.2.1:0->0.0.0.0:0 CREDIT MOST COST` (`dl_seq_print` in net/netfilter/xt_hashlimit.c).
    """
    for line in listing.splitlines():
        _, way, credit, _, cost = line.split()
        if int(credit) < int(cost):
            yield ip_address(way.partition("->")[0].rpartition(":")[0])


def open_match(most: int, family: Family) -> str:
    """Write the match of first packets from sources that have as many connections open as they may."""
    return f"-m connlimit --connlimit-above {most} --connlimit-mask {family.bits} --connlimit-saddr"


def _is_asked(exposure: Exposure, desired: Desired) -> bool:
    return exposure.admission is not None or desired.barred is not None


# --- what was refused ------------------------------------------------------------------------------------------------


class Drops:
    """Which rules of a state count what was refused."""

    def __init__(self, desired: Desired) -> None:
        self._guards = dict(_counting(desired))

    def of(self, packets: Iterable[tuple[Counter, int]]) -> Dropped:
        """Add up what was refused, by exposure and by set, from the packets of rules."""
        exposures: defaultdict[Exposure, int] = defaultdict(int)
        sets: defaultdict[str, int] = defaultdict(int)
        for counter, number in packets:
            guard = self._guards.get(counter)
            if guard is None or not guard.weight:
                continue
            if guard.denied:
                sets[guard.denied] += number
            elif guard.exposure is not None:
                exposures[guard.exposure] += guard.weight * number
        # Packets pass between the reading of two counters.
        return Dropped({exposure: max(number, 0) for exposure, number in exposures.items()}, dict(sets))


def _counting(desired: Desired) -> Iterator[tuple[Counter, Guard]]:
    for family in sorted(desired.families):
        mangle, forward = counted_table(family, TableName.MANGLE), counted_table(family, TableName.FILTER)
        for chain, guards in asking(family, desired).items():
            yield from (((mangle, chain, guard.rule.comment), guard) for guard in guards)
        for route in routes_of(family, desired):
            yield from (((mangle, OUT, guard.rule.comment), guard) for guard in entrances(route, desired))
        yield from (((forward, FWD, guard.rule.comment), guard) for guard in excluding(family, desired))
