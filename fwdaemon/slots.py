"""Slots: the disjoint pieces of ports that forwards claim.

Two forwards may claim the same port where their interfaces or sources differ, and their ranges may overlap only in
part. Lookup structures want keys that do not overlap, so the claims on one address and protocol are cut into pieces
at every edge, and each piece knows all forwards that may take its packets. Without overlaps, a slot is just one
forward.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from fwdaemon.desired import Forward
from fwdaemon.model import Address, PortRange, Protocol


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of ports on one address (`None`: every local one) and the forwards that claim it."""

    listen: Address | None
    protocol: Protocol
    ports: PortRange
    forwards: tuple[Forward, ...]


def slots(forwards: Iterable[Forward]) -> tuple[Slot, ...]:
    """Cut the forwards of one family into slots; none of them share a packet's address, protocol and port."""
    claims: defaultdict[tuple[Address | None, Protocol], list[Forward]] = defaultdict(list)
    for forward in forwards:
        claims[forward.listen, forward.protocol].append(forward)
    return tuple(
        Slot(listen, protocol, ports, owners)
        for (listen, protocol), claimed in sorted(claims.items(), key=lambda claim: tuple(map(str, claim[0])))
        for ports, owners in _pieces(sorted(claimed, key=lambda forward: forward.ports))
    )


def _pieces(claimed: list[Forward]) -> Iterator[tuple[PortRange, tuple[Forward, ...]]]:
    """Sweep over claims sorted by their first port; a run of overlapping ones is cut at its edges."""
    run: list[Forward] = []
    reach = 0
    for forward in claimed:
        if run and forward.ports.first > reach:
            yield from _cut(run)
            run = []
        run.append(forward)
        reach = max(reach, forward.ports.last)
    if run:
        yield from _cut(run)


def _cut(run: list[Forward]) -> Iterator[tuple[PortRange, tuple[Forward, ...]]]:
    edges = sorted({forward.ports.first for forward in run} | {forward.ports.last + 1 for forward in run})
    for first, after in pairwise(edges):
        piece = PortRange(first, after - 1)
        yield piece, tuple(forward for forward in run if forward.ports.overlaps(piece))
