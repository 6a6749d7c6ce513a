"""What policies and direct rules of firewalld may take or refuse of the connections that zones forward.

A policy is for what comes in from its ingress zones: by their interfaces and from their sources, whichever zone a
connection belongs to. Those of a negative priority have their say before all zones.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import PortRange
from fwdaemon.importing.findings import port_range, read_port
from fwdaemon.importing.firewalld_zones import End, ForwardPort, Zone
from fwdaemon.rulesets.region import Field, Match, Space, Spans, matching, network_of, one
from fwdaemon.rulesets.xt_matches import PROTOCOLS

_WITH_PORTS: Final = frozenset({"tcp", "udp", "sctp", "dccp"})
_FAMILIES: Final = {"ipv4": 4, "ipv6": 6}
_REFUSING: Final = frozenset({"DROP", "REJECT", "%%REJECT%%"})


@dataclass(frozen=True, slots=True)
class Taking:
    """What on a line of a policy may end the way of connections, and which; never fewer than those."""

    line: int
    text: str
    match: Match


def takings(policy: Zone, zones: Mapping[str, Zone], space: Space) -> Iterator[Taking]:
    """Yield what a policy may take before any of the zones sees it, or refuse afterwards."""
    for entering in _entering(policy, zones, space):
        for taking in (*_sent(policy, space), *_refused(policy, space)):
            yield Taking(taking.line, taking.text, matching([*entering.items(), *taking.match.items()]))


def _sent(policy: Zone, space: Space) -> Iterator[Taking]:
    """Yield what goes elsewhere; after the zones, nothing is left to translate of what they did."""
    if policy.priority.lstrip("0").isdecimal():
        return
    yield from (Taking(line, text, {}) for line, text in policy.unread)
    for forward in policy.forwards:
        if (match := _asked(forward, space)) is not None:
            yield Taking(forward.line, forward.text, match)


def _asked(forward: ForwardPort, space: Space) -> Match | None:
    """Give all that a forward-port may take; `None` where none of this family is."""
    if _FAMILIES.get(forward.family, space.family) != space.family:
        return None
    ends = [end_match(forward.source, Field.SOURCE, space), end_match(forward.destination, Field.DESTINATION, space)]
    if None in ends:
        return None
    ports: Match = {}
    with suppress(GrammarError):
        ports = ports_match(forward)
    return matching([*ports.items(), *(pair for end in ends if end for pair in end.items())])


def _refused(policy: Zone, space: Space) -> Iterator[Taking]:
    """Yield what is refused; what goes on to this host itself is none of it."""
    if set(policy.egress) <= {"HOST"}:
        return
    if policy.target in _REFUSING:
        yield Taking(policy.line, f"the target {policy.target} of policy {policy.name}", {})
    for refusal in policy.refusals:
        match = end_match(refusal.source, Field.SOURCE, space)
        if match is not None and _FAMILIES.get(refusal.family, space.family) == space.family:
            yield Taking(refusal.line, refusal.text, match)


def _entering(policy: Zone, zones: Mapping[str, Zone], space: Space) -> Iterator[Match]:
    """Yield what comes in from the ingress zones of a policy; everything where that is not known."""
    names = [name for name in policy.ingress if name != "HOST"]
    if any(name not in zones or _may_be_any(zones[name]) for name in names):
        yield {}
        return
    for name in names:
        yield from _within(zones[name], space)


def _may_be_any(zone: Zone) -> bool:
    is_rest = not zone.interfaces and not zone.sources and zone.default in ("", zone.name)
    return is_rest or any(source.doubt for source in zone.sources)


def _within(zone: Zone, space: Space) -> Iterator[Match]:
    yield from ({Field.CAME_IN: space.interfaces_like(interface)} for interface in zone.interfaces)
    found = (end_match(source, Field.SOURCE, space) for source in zone.sources)
    yield from (match for match in found if match is not None)


# What the elements of rich rules ask for.


def end_match(end: End | None, side: Field, space: Space) -> Match | None:
    """Give the packets from a source, or to a destination; `None` where none of this family are."""
    if end is None or end.doubt:
        return {}
    if network_of(end.address).version != space.family:
        return None
    spans = space.addresses_in(end.address)
    return {side: space.complement(side, spans) if end.inverted else spans}


def ports_match(forward: ForwardPort) -> dict[Field, Spans]:
    """Give the ports of a forward-port; raise `GrammarError` where it has none."""
    if forward.protocol not in _WITH_PORTS:
        raise GrammarError(f"protocol {quote(forward.protocol)} has no ports")
    ports = read_range(forward.port)
    return {Field.PROTOCOL: one(PROTOCOLS[forward.protocol]), Field.PORT: Spans(((ports.first, ports.last),))}


def read_range(text: str) -> PortRange:
    """Read one port, or a range as `80-90`; raise `GrammarError` where it is none."""
    first, dash, last = text.partition("-")
    start = read_port(first)
    return port_range(start, read_port(last) if dash else start)


def by_name(zones: Iterable[Zone]) -> dict[str, Zone]:
    """Index zones by their names."""
    return {zone.name: zone for zone in zones}
