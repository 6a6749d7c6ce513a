"""Ports cut into disjoint pieces, who may come in there, and whose guests see an address of the host. Pure."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from fwdaemon.core.exposures import Forward, Route, Translated
from fwdaemon.core.state import Desired
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Address, Family, PortRange, Protocol, Subnet

# What passes though libvirt does not want it forwarded, where we turned the host's forwarding on. Pure.


def outside(family: Family, desired: Desired) -> list[Address]:
    """Give the 1:1 guests that libvirt does not let out; they open connections too, which have no label at first."""
    found = (nat for nat in desired.outgoing if nat.family is family and nat.bridge not in desired.inside)
    return sorted({nat.target for nat in found}, key=int)


def routed_outside(family: Family, desired: Desired) -> list[Route]:
    """Give the routes to bridges that not all clients may enter; no name that could be read as anything else."""
    entered = desired.inside.difference(closed(family, desired))
    found = (item for item in desired.routes if item.family is family and item.bridge not in entered)
    return sorted((item for item in found if is_interface_name(item.bridge)), key=lambda item: str(item.subnet))


def bridged(family: Family, desired: Desired) -> list[str]:
    """Give the bridges whose own frames may pass through the rules; no name that could be read as anything else.

    Those of guests are not to wait for us to notice that frames began to pass.
    """
    found = {name for kind, name in desired.bridging if kind is family}.union(closed(family, desired))
    return sorted(filter(is_interface_name, found))


def closed(family: Family, desired: Desired) -> list[str]:
    """Give the bridges into which libvirt lets no one; no name that could be read as anything else."""
    return sorted(name for kind, name in desired.closed if kind is family and is_interface_name(name))


def switched(family: Family, desired: Desired) -> list[str]:
    """Give the interfaces by which nothing was let through; no name that could be read as anything else."""
    return sorted(name for kind, name in desired.switched if kind is family and is_interface_name(name))


# Where packets come in, so that a source that cannot have come from there is not believed. Pure.


@dataclass(frozen=True, slots=True)
class Home:
    """A subnet, and the interfaces by which packets from there come in; `None` is any.

    Of its `parts`, each a home as well, the first that a source lies in counts instead; these have no parts.

    A guests' bridge that no rule can name is left out: no source is believed that comes in there. What is on another
    link of such a name may come in by any, or its guests would not reach their own forwards.
    """

    subnet: Subnet
    interfaces: tuple[str, ...] | None
    parts: tuple["Home", ...] = ()


def homes(family: Family, desired: Desired) -> Iterator[Home]:
    """Give the homes of guests, and of what is on the links of the host: in order, none within another.

    As the kernel's routes do, a part of a subnet goes before the whole. What is a guest's is behind its bridge alone,
    whatever routes there are.
    """
    behind = _behind(family, desired)
    outer: Subnet | None = None
    inner: list[Subnet] = []
    for subnet in sorted(behind, key=lambda item: (int(item.network_address), item.prefixlen)):
        if outer is not None and _lies_in(subnet, outer):
            inner.append(subnet)
            continue
        if outer is not None:
            yield _home(outer, inner, behind)
        outer, inner = subnet, []
    if outer is not None:
        yield _home(outer, inner, behind)


def _behind(family: Family, desired: Desired) -> Mapping[Subnet, set[str | None]]:
    """Give the interfaces of each subnet; `None` is any."""
    guests: defaultdict[Subnet, set[str | None]] = defaultdict(set)
    for subnet, bridge in desired.homes.union((route.subnet, route.bridge) for route in desired.routes):
        if Family.of(subnet) is family:
            guests[subnet].add(bridge)
    found = defaultdict(set, guests)
    for subnet, interface in desired.links:
        if Family.of(subnet) is family and not any(_lies_in(subnet, other) for other in guests):
            found[subnet].add(interface if is_interface_name(interface) else None)
    return found


def _home(subnet: Subnet, inner: Iterable[Subnet], behind: Mapping[Subnet, set[str | None]]) -> Home:
    parts = sorted(inner, key=lambda item: (-item.prefixlen, int(item.network_address)))
    return replace(_part(subnet, behind), parts=tuple(_part(part, behind) for part in parts))


def _part(subnet: Subnet, behind: Mapping[Subnet, set[str | None]]) -> Home:
    names = {name for name in behind[subnet] if name is not None}
    return Home(subnet, None if None in behind[subnet] else tuple(sorted(filter(is_interface_name, names))))


def _lies_in(part: Subnet, whole: Subnet) -> bool:
    return part.subnet_of(whole)  # type: ignore[arg-type]  # the family is one


# What decides whether a guest sees the client's own address, in the order in which it is asked. Pure.


def in_order(family: Family, desired: Desired) -> Iterator[tuple[Address, tuple[Translated, ...]]]:
    """Give each guest with masquerading forwards, and these together with what goes before one of them.

    A forward on one address goes before one on every address, and may not masquerade. So does a 1:1 NAT of an address
    that the host does not hold.
    """
    masquerading = [forward for forward in desired.masquerading if forward.family is family]
    if not masquerading:
        return
    wide = {(item.target, item.protocol) for item in masquerading if item.listen is None}
    found: defaultdict[Address, list[Forward]] = defaultdict(list)
    for forward in desired.of_family(family):
        if forward.masquerade or (forward.listen is not None and (forward.target, forward.protocol) in wide):
            found[forward.target].append(forward)
    nats = [nat for nat in desired.nats if nat.public in desired.unheld]
    for target in sorted(found, key=int):
        forwards = sorted(found[target], key=_most_specific_first)
        narrow = [forward for forward in forwards if forward.listen is not None]
        whole = sorted((nat for nat in nats if nat.target == target), key=lambda nat: int(nat.public))
        yield target, (*narrow, *whole, *forwards[len(narrow) :])


def _most_specific_first(forward: Forward) -> tuple[object, ...]:
    listen = forward.listen is None, int(forward.listen or 0)
    where = forward.protocol, forward.ports.first, forward.ports.last, forward.interface or ""
    return *listen, *where, list(map(str, forward.sources)), forward.domain


# Port segments: the disjoint pieces of ports that forwards claim.
#
# Two forwards may claim the same port where their interfaces or sources differ, and their ranges may overlap only in
# part. Lookup structures want keys that do not overlap, so the claims on one address and protocol are cut into pieces
# at every edge, and each piece knows all forwards that may take its packets. Without overlaps, a port segment is just
# one forward.
_first_and_last = attrgetter("ports.first", "ports.last")

Place: TypeAlias = tuple[Address | None, Protocol]
"""Where forwards listen, apart from their ports."""


class PortSegment(NamedTuple):
    """A piece of ports on one address (`None`: every local one) and the forwards that claim it."""

    listen: Address | None
    protocol: Protocol
    ports: PortRange
    forwards: tuple[Forward, ...]


Run: TypeAlias = tuple[Forward, ...]
"""Claims on one place that hang together: each overlaps another of them, and none that is not among them."""


def segments(forwards: Iterable[Forward]) -> tuple[PortSegment, ...]:
    """Cut the forwards of one family into port segments; none of them share a packet's address, protocol and port."""
    places = sorted(_by_place(forwards).items(), key=lambda claim: tuple(map(str, claim[0])))
    return tuple(segment for place, claimed in places for segment in _cut(place, _runs(claimed)))


class SegmentIndex:
    """The port segments of one family, kept while forwards come and go: only runs that are touched are cut again."""

    def __init__(self) -> None:
        self._runs: defaultdict[Place, list[Run]] = defaultdict(list)

    def change(self, gone: Iterable[Forward], come: Iterable[Forward]) -> tuple[list[PortSegment], list[PortSegment]]:
        """Give the port segments that there are no more, and the new ones."""
        leaving, coming = _by_place(gone), _by_place(come)
        before: list[PortSegment] = []
        after: list[PortSegment] = []
        for place in leaving.keys() | coming.keys():
            left, came = leaving.get(place, []), coming.get(place, [])
            touched = _touched(self._runs[place], [*left, *came])
            staying = {forward for run in touched for forward in run}.difference(left)
            fresh = list(_runs([*staying, *came]))
            _replace(self._runs[place], touched, fresh)
            before += _cut(place, touched)
            after += _cut(place, fresh)
        return before, after


def _by_place(forwards: Iterable[Forward]) -> dict[Place, list[Forward]]:
    claims: defaultdict[Place, list[Forward]] = defaultdict(list)
    for forward in forwards:
        claims[forward.listen, forward.protocol].append(forward)
    return claims


def _touched(runs: list[Run], changed: Iterable[Forward]) -> list[Run]:
    """Find the runs that share a port with any of these forwards."""
    if not runs:
        return []
    found: dict[int, Run] = {}
    for ports in {forward.ports for forward in changed}:
        number = bisect_left(runs, ports.first, key=_last_port)
        while number < len(runs) and _first_port(runs[number]) <= ports.last:
            found[number] = runs[number]
            number += 1
    return list(found.values())


def _replace(runs: list[Run], old: Iterable[Run], new: list[Run]) -> None:
    """Keep runs in the order of their ports."""
    for run in old:
        del runs[bisect_left(runs, _first_port(run), key=_first_port)]
    if not runs:
        runs += new
        return
    for run in new:
        insort(runs, run, key=_first_port)


def _first_port(run: Run) -> int:
    return run[0].ports.first


def _last_port(run: Run) -> int:
    return run[0].ports.last if len(run) == 1 else max(forward.ports.last for forward in run)


def _runs(claimed: Iterable[Forward]) -> Iterator[Run]:
    """Sweep over the claims on one place in the order of their ports."""
    run: list[Forward] = []
    reach = 0
    for forward in sorted(claimed, key=_first_and_last):
        ports = forward.ports
        if run and ports.first > reach:
            yield tuple(run)
            run = []
        run.append(forward)
        reach = max(reach, ports.last)
    if run:
        yield tuple(run)


def _cut(place: Place, runs: Iterable[Run]) -> Iterator[PortSegment]:
    """Cut runs at all edges of their claims; nearly all are one claim."""
    listen, protocol = place
    for run in runs:
        if len(run) == 1:
            yield PortSegment(listen, protocol, run[0].ports, run)
            continue
        edges = sorted({forward.ports.first for forward in run} | {forward.ports.last + 1 for forward in run})
        for first, after in pairwise(edges):
            piece = PortRange(first, after - 1)
            claiming = tuple(forward for forward in run if forward.ports.overlaps(piece))
            yield PortSegment(listen, protocol, piece, claiming)
