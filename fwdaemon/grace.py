"""A short grace for forwards whose domain has just stopped.

A reboot can reach us as a stop followed by a start. Taking the forwards away in between would end their connections for
nothing, so the removal waits for a moment, unless somebody else has the address by then. Pure; the time is given.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from fwdaemon.desired import Desired, Forward
from fwdaemon.model import Address

GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Stop:
    """When a forward's domain was found stopped, by the clock that was given, and all that was heard since."""

    at: float
    reasons: tuple[str, ...]

    def then(self, later: "Stop") -> "Stop":
        """Add what was heard later: libvirt may say only then why a domain stopped."""
        return Stop(self.at, tuple(dict.fromkeys(self.reasons + later.reasons)))


class Grace:
    """Remembers the stops of the last moments; a forward is held for `seconds`, counted from its own."""

    def __init__(self, seconds: float = GRACE) -> None:
        self._seconds = seconds
        self._stops: dict[Forward, Stop] = {}

    def extend(self, desired: Desired, live: Collection[Forward], taken: Collection[Address], stop: Stop) -> Desired:
        """Add to `desired` the live forwards that are not to go yet.

        `taken` are the addresses of running guests; `stop` is now, and what was heard.
        """
        stopped = {entry.domain for entry in desired.waiting if entry.stopped}
        gone = [forward for forward in live if forward.domain in stopped and forward not in desired.forwards]
        known = self._stops
        self._stops = {forward: known[forward].then(stop) if forward in known else stop for forward in gone}
        held = [
            forward
            for forward, stopped_at in self._stops.items()
            if stop.at < stopped_at.at + self._seconds and forward.target not in taken
        ]
        return replace(desired, forwards=desired.forwards.union(held)) if held else desired

    def reasons(self, forward: Forward, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """Give what was heard since the forward's domain stopped."""
        stop = self._stops.get(forward)
        return stop.reasons if stop else otherwise

    @property
    def ends(self) -> float | None:
        """When the next held forward goes, by the clock that was given; `None` when none is held."""
        return min((stop.at + self._seconds for stop in self._stops.values()), default=None)
