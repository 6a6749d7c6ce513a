"""Public addresses claimed twice, by `[[nat]]` or `[[route]]`.

Two subnets are either apart or one is in the other. So the claims are sorted by their first address, wider ones first,
and those that are still open at a claim are exactly those which contain it. What that costs grows with the conflicts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TypeAlias

from fwdaemon.config.addresses import show_relation
from fwdaemon.config.conflicts import cut_short
from fwdaemon.config.model import NatEntry, Origin, RouteEntry
from fwdaemon.config.text import quote
from fwdaemon.errors import Problem
from fwdaemon.model import Family, Subnet

PublicEntry: TypeAlias = NatEntry | RouteEntry


@dataclass(frozen=True, slots=True)
class _Claim:
    """What an entry claims, and for whom; `rank` is its place in the configuration."""

    rank: int
    subnet: Subnet
    owner: str
    origin: Origin

    @classmethod
    def of(cls, rank: int, entry: PublicEntry) -> "_Claim":
        match entry:
            case NatEntry():
                return cls(rank, ip_network(entry.public), f"domain {quote(entry.domain)}", entry.origin)
            case RouteEntry():
                return cls(rank, entry.subnet, f"network {quote(entry.network)}", entry.origin)

    @property
    def position(self) -> tuple[Family, int, int, int]:
        """The order in which a wider claim comes before those in it."""
        return Family.of(self.subnet), int(self.subnet.network_address), self.subnet.prefixlen, self.rank

    def __str__(self) -> str:
        is_single = self.subnet.prefixlen == self.subnet.max_prefixlen
        return str(self.subnet.network_address if is_single else self.subnet)


_Pair: TypeAlias = tuple[_Claim, _Claim]


def find_public_conflicts(entries: Sequence[PublicEntry]) -> list[Problem]:
    """Return a problem for each pair that claims the same address, at the later one, `cut_short`.

    The entries come in the order of the configuration.
    """
    claims = [_Claim.of(rank, entry) for rank, entry in enumerate(entries)]
    return cut_short(_describe(*pair) for pair in _find_pairs(claims))


def _find_pairs(claims: Iterable[_Claim]) -> Iterator[_Pair]:
    """Yield each pair of claims that overlap, the earlier one first."""
    opened: list[_Claim] = []
    for claim in sorted(claims, key=lambda claim: claim.position):
        while opened and not opened[-1].subnet.overlaps(claim.subnet):
            opened.pop()
        yield from ((other, claim) if other.rank < claim.rank else (claim, other) for other in opened)
        opened.append(claim)


def _describe(earlier: _Claim, later: _Claim) -> Problem:
    relation = show_relation(later.subnet, earlier.subnet)
    what = f"{later} is" if relation == "is" else f"{later} {relation} {earlier}, which is"
    return Problem(
        later.origin.file,
        later.origin.line,
        f"{later.owner}: {what} already claimed at {earlier.origin} for {earlier.owner};"
        " an address leads to one guest or network only, so take it out of one of the two",
    )
