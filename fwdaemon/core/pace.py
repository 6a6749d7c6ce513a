"""When to go on: what guests provoke has a budget of processor time, what failed waits. Pure; times are given.

Time comes in at a fixed rate, up to a small stock, and what the work cost goes out. While there is a debt, the work
waits. So single events are answered at once, and a flood gets the share of a core that comes in, whether or not an
inventory finds something new: a guest that shows another address each time would have each of them find something.
"""

from dataclasses import dataclass
from typing import Final

from fwdaemon.core.report import Reason, ReasonKind

# What a quiet time saves up, in seconds of processor time: a host's guests may all start at once.
STOCK_S: Final = 0.5
# However much one piece of work cost, the next may come after this time.
LONGEST_WAIT_S: Final = 5.0

_PROVOKED: Final = frozenset(
    {
        ReasonKind.NEIGHBOUR,
        ReasonKind.ADDRESSES_LOST,
        ReasonKind.ADDRESS_PUT_BACK,
        ReasonKind.LEASES,
        ReasonKind.LEASES_WATCHED,
        ReasonKind.AGENT,
    }
)


def provoked(reason: Reason) -> bool:
    """Tell whether a guest can make this happen whenever it likes."""
    return reason.kind in _PROVOKED


class Pace:
    """Keeps a budget of so many seconds of processor time a second; `now` is a monotonic time in seconds."""

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._stock = STOCK_S
        self._since = now

    def wait(self, now: float) -> float:
        """Give the seconds until the next piece of work."""
        self._fill(now)
        return max(-self._stock / self._share, 0.0)

    def spent(self, now: float, seconds: float) -> None:
        """Take out what a piece of work cost in processor time."""
        self._fill(now)
        self._stock = max(self._stock - seconds, -LONGEST_WAIT_S * self._share)

    def _fill(self, now: float) -> None:
        self._stock = min(self._stock + self._share * (now - self._since), STOCK_S)
        self._since = now


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long the daemon waits, in seconds.

    Events come in bursts: libvirt changes about ten things when a network starts. The first is answered at once. While
    look after look finds something to mend, as when another tool insists on being first too, the pause between `looks`
    grows. A failure is retried after `retry`, doubled each time. `verify` after each commit, the kernel is compared
    with what was committed. `ready` is how long systemd waits for the first reconcile, as libvirt may be down.
    """

    looks: float = 0.01
    looks_at_most: float = 0.25
    verify: float = 1.0
    retry: float = 1.0
    retry_at_most: float = 30.0
    ready: float = 5.0


@dataclass(slots=True)
class Backoff:
    """How long to wait before what failed is tried again: longer each time, up to the second figure, in seconds."""

    first: float
    most: float
    pause: float = 0.0

    def __post_init__(self) -> None:
        self.settle()

    def next(self) -> float:
        """Give the pause, and double the one that follows."""
        pause, self.pause = self.pause, min(2 * self.pause, self.most)
        return pause

    def settle(self) -> None:
        """Note that it went well."""
        self.pause = self.first
