"""When to go on: budgets of processor time for what guests and users cause, pauses after failures. Pure.

Time comes in at a fixed rate, up to a small stock, and what the work cost goes out. While there is a debt, all work
that guests cause waits. So single events are answered at once, and a flood gets the share of a core that comes in,
whether or not an inventory finds something new: a guest that shows another address each time would have each of them
find something. Users who may define domains can flood too: what follows from libvirt's events about domains and
networks has a larger budget of its own, and to receive them has another. What the administrator asks of the daemon
itself is never charged, and never waits; nor does a wipe. During such a flood the administrator's own `virsh` commands
wait like those of other users: libvirt does not tell whose a change is.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from fwdaemon.core.report import Reason, ReasonKind

# How much of a core everything together may take that guests cause, in this program and in those that it runs.
SHARE: Final = 0.05
# What a quiet time saves up, in seconds of processor time: a host's guests may all start at once.
STOCK_S: Final = 0.5
# The same for what users of libvirt do. A single start is answered at once, many of them together.
SHARE_OF_USERS: Final = 0.15
STOCK_OF_USERS_S: Final = 2.0
# The same for receiving libvirt's events, before anything follows from them: more than ten thousand at once.
SHARE_OF_EVENTS: Final = 0.05
STOCK_OF_EVENTS_S: Final = 0.5
# Listening waits so much longer than a pass does. So a pass always gets its turn, and waking up for each packet does
# not cost more than reading many of them.
REST_S: Final = 0.1

_PROVOKED: Final = frozenset(
    {
        ReasonKind.NEIGHBOUR,
        ReasonKind.ADDRESSES_LOST,
        ReasonKind.ADDRESS_PUT_BACK,
        ReasonKind.LEASES,
        ReasonKind.LEASES_WATCHED,
        ReasonKind.AGENT,
        ReasonKind.METADATA,
    }
)
_BY_USERS: Final = frozenset(
    {ReasonKind.DOMAIN, ReasonKind.DEVICES, ReasonKind.NETWORK, ReasonKind.RESERVATIONS, ReasonKind.LISTED}
)


class Origin(IntEnum):
    """Who can make something happen at will. Of several, the greatest counts: its work waits least."""

    GUESTS = 0  # or who owns them
    USERS = 1  # of libvirt
    OTHERS = 2


def origin(reason: Reason) -> Origin:
    """Tell who can make this happen at will."""
    if reason.by_guest or reason.kind in _PROVOKED:
        return Origin.GUESTS
    return Origin.USERS if reason.kind in _BY_USERS else Origin.OTHERS


class Budget:
    """The processor time for all that guests cause, or users of libvirt; used by any thread, one at a time by `turn`.

    `clock` gives a monotonic time in seconds. So much of a core as `share` comes in, up to `stock` seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        turn: AbstractContextManager[object] | None = None,
        share: float = SHARE,
        stock: float = STOCK_S,
    ) -> None:
        self._clock = clock
        self._turn = turn or nullcontext()
        self._share, self._most = share, stock
        self._stock = stock
        self._since = clock()

    def wait(self) -> float:
        """Give the seconds until the next piece of work; nothing while there is no debt."""
        with self._turn:
            self._fill()
            return max(-self._stock / self._share, 0.0)

    def rest(self) -> float:
        """Give the seconds until the next piece for a thread that only listens."""
        wait = self.wait()
        return wait + REST_S if wait else 0.0

    def spent(self, seconds: float) -> None:
        """Take out what a piece of work cost in processor time."""
        with self._turn:
            self._fill()
            self._stock -= max(seconds, 0.0)

    @contextmanager
    def charged(self, meter: Callable[[], float], *, enabled: bool = True) -> Iterator[None]:
        """Take out what this block costs, by a meter of processor time, where that is `enabled`."""
        began = meter()
        try:
            yield
        finally:
            if enabled:
                self.spent(meter() - began)

    def _fill(self) -> None:
        now = self._clock()
        self._stock = min(self._stock + self._share * (now - self._since), self._most)
        self._since = now


class Budgets(NamedTuple):
    """Of what guests cause, of what users of libvirt do, and of receiving the events that libvirt makes of it."""

    guests: Budget
    users: Budget
    events: Budget

    @classmethod
    def new(cls, clock: Callable[[], float], turn: Callable[[], AbstractContextManager[object]]) -> "Budgets":
        """Give full ones; `turn` makes what lets one thread at a time use one of them."""
        users = Budget(clock, turn(), SHARE_OF_USERS, STOCK_OF_USERS_S)
        return cls(Budget(clock, turn()), users, Budget(clock, turn(), SHARE_OF_EVENTS, STOCK_OF_EVENTS_S))

    def of(self, cause: Origin) -> Budget | None:
        """Give the one that work is charged to; there is none for what an administrator does."""
        return None if cause is Origin.OTHERS else self.users if cause is Origin.USERS else self.guests

    def charged(self, cause: Origin, meter: Callable[[], float]) -> AbstractContextManager[None]:
        """Take out what a block costs, by a meter of processor time, of the budget that it is charged to."""
        budget = self.of(cause)
        return nullcontext() if budget is None else budget.charged(meter)


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long the daemon waits, in seconds.

    Events come in bursts: libvirt changes about ten things when a network starts. The first is answered at once. While
    pass after pass finds something to repair, as when another tool insists on being first too, the pause between
    `passes` grows. A failure is retried after `retry`, doubled each time. `verify` after each commit, the kernel is
    compared with what was committed. `ready` is how long systemd waits for the first reconcile, as libvirt may be down.
    No thread is waited for longer than `patience`: a call that hangs in the kernel must not keep the daemon from
    ending. After `reading`, a configuration that is still being read is told as late.
    """

    passes: float = 0.01
    passes_at_most: float = 0.25
    verify: float = 1.0
    retry: float = 1.0
    retry_at_most: float = 30.0
    ready: float = 5.0
    patience: float = 5.0
    reading: float = 10.0


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
