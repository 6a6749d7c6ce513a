"""Slots: the disjoint pieces of ports that forwards claim.

Two forwards may claim the same port where their interfaces or sources differ, and their ranges may overlap only in
part. Lookup structures want keys that do not overlap, so the claims on one address and protocol are cut into pieces
at every edge, and each piece knows all forwards that may take its packets. Without overlaps, a slot is just one
forward.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import TypeAlias

from fwdaemon.desired import Forward
from fwdaemon.model import Address, PortRange, Protocol

_first_and_last = attrgetter("ports.first", "ports.last")

Place: TypeAlias = tuple[Address | None, Protocol]
"""Where forwards listen, apart from their ports."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of ports on one address (`None`: every local one) and the forwards that claim it."""

    listen: Address | None
    protocol: Protocol
    ports: PortRange
    forwards: tuple[Forward, ...]


Run: TypeAlias = tuple[Forward, ...]
"""Claims on one place that hang together: each overlaps another of them, and none that is not among them."""


def slots(forwards: Iterable[Forward]) -> tuple[Slot, ...]:
    """Cut the forwards of one family into slots; none of them share a packet's address, protocol and port."""
    places = sorted(_by_place(forwards).items(), key=lambda claim: tuple(map(str, claim[0])))
    return tuple(slot for place, claimed in places for run in _runs(claimed) for slot in _cut(place, run))


class SlotIndex:
    """The slots of one family, kept while forwards come and go: only runs that are touched are cut anew."""

    def __init__(self) -> None:
        self._runs: defaultdict[Place, list[Run]] = defaultdict(list)

    def change(self, gone: Iterable[Forward], come: Iterable[Forward]) -> tuple[list[Slot], list[Slot]]:
        """Give the slots that there are no more, and the new ones."""
        leaving, coming = _by_place(gone), _by_place(come)
        before: list[Slot] = []
        after: list[Slot] = []
        for place in leaving.keys() | coming.keys():
            left, came = leaving.get(place, []), coming.get(place, [])
            touched = _touched(self._runs[place], [*left, *came])
            staying = {forward for run in touched for forward in run}.difference(left)
            fresh = list(_runs([*staying, *came]))
            _replace(self._runs[place], touched, fresh)
            before += (slot for run in touched for slot in _cut(place, run))
            after += (slot for run in fresh for slot in _cut(place, run))
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
        if run and forward.ports.first > reach:
            yield tuple(run)
            run = []
        run.append(forward)
        reach = max(reach, forward.ports.last)
    if run:
        yield tuple(run)


def _cut(place: Place, run: Run) -> Iterator[Slot]:
    """Cut a run at all edges of its claims."""
    if len(run) == 1:
        yield Slot(*place, run[0].ports, run)
        return
    edges = sorted({forward.ports.first for forward in run} | {forward.ports.last + 1 for forward in run})
    for first, after in pairwise(edges):
        piece = PortRange(first, after - 1)
        yield Slot(*place, piece, tuple(forward for forward in run if forward.ports.overlaps(piece)))
