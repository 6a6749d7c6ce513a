"""A short grace for openings whose domain has just stopped.

A reboot can reach us as a stop followed by a start. Taking the openings away in between would end their connections for
nothing, so the removal waits for a moment, unless somebody else has the address by then. Pure; the time is given.
"""

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from fwdaemon.desired import Desired, Opening, Route
from fwdaemon.model import Address

GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Stop:
    """When an opening's domain was found stopped, by the clock that was given, and all that was heard since."""

    at: float
    reasons: tuple[str, ...]

    def then(self, later: "Stop") -> "Stop":
        """Add what was heard later: libvirt may say only then why a domain stopped."""
        return Stop(self.at, tuple(dict.fromkeys(self.reasons + later.reasons)))


class Grace:
    """Remembers the stops of the last moments; an opening is held for `seconds`, counted from its own."""

    def __init__(self, seconds: float = GRACE) -> None:
        self._seconds = seconds
        self._stops: dict[Opening, Stop] = {}

    def extend(self, desired: Desired, live: AbstractSet[Opening], taken: Collection[Address], stop: Stop) -> Desired:
        """Add to `desired` the live openings that are not to go yet.

        `taken` are the addresses of running guests; `stop` is now, and what was heard.
        """
        gone = [opening for opening in live - desired.openings if opening.owner in desired.stopped]
        known = self._stops
        self._stops = {opening: known[opening].then(stop) if opening in known else stop for opening in gone}
        held = [
            opening
            for opening, stopped_at in self._stops.items()
            if stop.at < stopped_at.at + self._seconds and not _is_taken(opening, taken)
        ]
        return desired.having(held) if held else desired

    def reasons(self, opening: Opening, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """Give what was heard since the opening's domain stopped."""
        stop = self._stops.get(opening)
        return stop.reasons if stop else otherwise

    @property
    def ends(self) -> float | None:
        """When the next held opening goes, by the clock that was given; `None` when none is held."""
        return min((stop.at + self._seconds for stop in self._stops.values()), default=None)


def _is_taken(opening: Opening, taken: Collection[Address]) -> bool:
    """Whether holding an opening would lead to somebody else; a route leads to a bridge, which has gone by then."""
    return isinstance(opening, Route) or opening.target in taken
