"""What makes the daemon look again: who can cause it at will, what that may cost, how long is waited, and the triggers.

Time comes in at a fixed rate, up to a small stock, and what the work cost goes out. While there is a debt, all work
that guests cause waits. So single events are answered at once, and a flood gets the share of a core that comes in,
whether or not an inventory finds something new: a guest that shows another address each time would have each of them
find something. Users who may define domains can flood too: what follows from libvirt's events about domains and
networks has a larger budget of its own, and to receive them has another. What the administrator asks of the daemon
itself is never charged, and never waits; nor does a wipe. During such a flood the administrator's own `virsh` commands
wait like those of other users: libvirt does not say whose a change is.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

from fwdaemon.core.report import Actor, Reason, ReasonKind

# How much of a core everything may take that guests cause; a twentieth with libvirt's events, which they cause too.
SHARE: Final = 0.03
# What a quiet time saves up, in seconds of processor time: a host's guests may all start at once.
STOCK_S: Final = 0.5
# The same for what users of libvirt do. A single start is answered at once, many of them together.
SHARE_OF_USERS: Final = 0.15
STOCK_OF_USERS_S: Final = 2.0
# The same for receiving libvirt's events, before anything follows from them: more than ten thousand at once.
SHARE_OF_EVENTS: Final = 0.02
STOCK_OF_EVENTS_S: Final = 0.5
# Listening waits so much longer than a pass does. So a pass always gets its turn, and waking up for each packet does
# not cost more than reading many of them.
REST_S: Final = 0.1

_PROVOKED: Final = frozenset(
    {ReasonKind.NEIGHBOUR, ReasonKind.ADDRESSES_LOST, ReasonKind.ADDRESS_PUT_BACK, ReasonKind.LEASES}
    | {ReasonKind.LEASES_WATCHED, ReasonKind.AGENT, ReasonKind.METADATA}
)
# A first lease is one for each start of a domain.
_BY_USERS: Final = frozenset(
    {ReasonKind.DOMAIN, ReasonKind.DEVICES, ReasonKind.NETWORK, ReasonKind.RESERVATIONS}
    | {ReasonKind.FIRST_LEASE, ReasonKind.LISTED}
)


class Origin(IntEnum):
    """Who can make something happen at will. Of several, the greatest counts: its work waits least."""

    GUESTS = 0  # or who owns them
    USERS = 1  # of libvirt
    OTHERS = 2


def origin(reason: Reason) -> Origin:
    """Say who can make this happen at will."""
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
    def new(cls, clock: Callable[[], float], turn: Callable[[], AbstractContextManager[object]]) -> Self:
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
    `passes` grows. A failure is retried after `retry`, doubled each time. `verify` after the last of several commits,
    and no later than `verify_at_most` after the first, the kernel is compared with what was committed. `ready` is how
    long systemd waits for the first reconcile, as libvirt may be down. No thread is waited for longer than `patience`:
    a call that hangs in the kernel must not keep the daemon from ending. After `reading`, a configuration that is still
    being read is reported as late, and so is all other work beside the passes.
    """

    passes: float = 0.01
    passes_at_most: float = 0.25
    verify: float = 1.0
    verify_at_most: float = 5.0
    retry: float = 1.0
    retry_at_most: float = 30.0
    ready: float = 5.0
    patience: float = 5.0
    reading: float = 10.0

    def after(self, before: float, cause: Origin, *, changed: bool) -> float:
        """Give the pause after a pass; what guests and users change is held back by their budgets."""
        return min(2 * before, self.passes_at_most) if changed and cause is Origin.OTHERS else self.passes


class Lull:
    """When to look once for several changes: `after` the last of them, and no later than `most` after the first."""

    def __init__(self, clock: Callable[[], float], after: float, most: float) -> None:
        self._clock, self._after, self._most = clock, after, most
        self._by: float | None = None

    def changed(self) -> float:
        """Note a change, and give the seconds until the look."""
        now = self._clock()
        if self._by is None:
            self._by = now + self._most
        return max(min(self._after, self._by - now), 0.0)

    def looked(self) -> None:
        """Note the look."""
        self._by = None


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


# The triggers since the last pass: reasons to look again, never facts.
#
# A reason from libvirt or the network counts once an inventory has been taken after it, so that the audit names the
# event a change really follows from.

# So many reasons are kept to explain a change; in a flood, those that come later are not. So with all triggers of
# passes that failed. A host may start all its domains at once.
_MOST: Final = {Origin.GUESTS: 256, Origin.USERS: 4096}


@dataclass(frozen=True, slots=True)
class Triggers:
    """All triggers of one pass, and for whose sake it is; see `fwdaemon.reconcile.Request`."""

    reasons: tuple[Reason, ...]
    actors: tuple[Actor, ...]
    full: bool
    origin: Origin = Origin.OTHERS


_PAUSES: Final = Pauses()


class TriggerQueue:
    """Collects triggers and wakes the task that waits for one. Used on the asyncio loop's thread only."""

    def __init__(self, pauses: Pauses = _PAUSES) -> None:
        """Take from `pauses` when commits are to be verified."""
        self._lull = Lull(time.monotonic, pauses.verify, pauses.verify_at_most)
        self._verifying: asyncio.TimerHandle | None = None
        self.stopping = False
        self.wants_inventory = True
        self.inventory_for = Origin.OTHERS
        self.wants_pass = False
        self._wants_reload = False
        self._full = False
        self._pass_for = Origin.GUESTS
        self._unsettled: dict[Reason, None] = {}
        self._settled: dict[Reason, None] = {}
        self._actors: dict[Actor, None] = {}
        self._later: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._wake.set()

    async def wait(self) -> None:
        """Wait for the next reason to do anything."""
        await self._wake.wait()
        self._wake.clear()

    def stop(self) -> None:
        """Ask the daemon to stop."""
        self.stopping = True
        self._wake.set()

    def reload(self) -> None:
        """Ask for the configuration to be read again."""
        self._wants_reload = True
        self._wake.set()

    def take_reload(self) -> bool:
        """Whether the configuration is to be read again; asking clears it."""
        wanted, self._wants_reload = self._wants_reload, False
        return wanted

    def inventory_changed(self, reason: Reason) -> None:
        """Note that something happened to a domain, a network or an address."""
        cause = origin(reason)
        if cause not in _MOST or len(self._unsettled) < _MOST[cause]:
            self._unsettled[reason] = None
        # Or the loop knows: a flood wakes it once.
        if not self.wants_inventory or cause > self.inventory_for:
            self._wake.set()
        self.wants_inventory = True
        self.inventory_for = max(self.inventory_for, cause)

    def ask(self) -> None:
        """Have an inventory taken at once."""
        self.wants_inventory, self.inventory_for = True, Origin.OTHERS
        self._wake.set()

    def wake(self) -> None:
        """Wake the task: something postponed is due."""
        self._wake.set()

    def wake_in(self, seconds: float | None) -> None:
        """Wake the task after so long, in place of what was said here before; never where that is `None`."""
        if self._later is not None:
            self._later.cancel()
        self._later = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self.wake)

    def begin_inventory(self) -> dict[Reason, None]:
        """Give the reasons that an inventory taken from now on covers."""
        covered, self._unsettled = self._unsettled, {}
        self.wants_inventory, self.inventory_for = False, Origin.GUESTS
        return covered

    def end_inventory(self, covered: dict[Reason, None]) -> None:
        """Note that the inventory is complete."""
        self._settled |= covered
        self._pass_for = max(self._pass_for, max(map(origin, covered), default=Origin.OTHERS))
        self.wants_pass = True
        self._wake.set()

    def rules_changed(self, actor: Actor, *, full: bool) -> None:
        """Note that the kernel's rules changed; `full` if it is not known how much."""
        self._pass_for = Origin.OTHERS
        self._full |= full
        self._actors[actor] = None
        self.wants_pass = True
        self._wake.set()

    def configuration_changed(self, reason: Reason) -> None:
        """A new configuration is in force, on the inventory we have.

        Another is to be taken: another machine may have an address that it gives to a guest from now on.
        """
        self._settled[reason] = None
        self.wants_pass, self._pass_for = True, Origin.OTHERS
        self.ask()

    def set_changed(self, file: Path | None) -> None:
        """Note that the file of a set changed, or, without one, that others changed an external set."""
        if file is None:
            self.time_passed(full=False)
        else:
            self.configuration_changed(Reason(ReasonKind.CONFIGURATION, str(file)))

    def ask_for_all(self) -> None:
        """Ask for an inventory and a full pass."""
        self.ask()
        self.time_passed(full=True)

    def time_passed(self, *, full: bool, after: Origin = Origin.OTHERS) -> None:
        """Ask for a pass because it is time, or for one that follows `after` another."""
        self._pass_for = max(self._pass_for, after)
        self._full |= full
        self.wants_pass = True
        self._wake.set()

    def verify(self, after: Origin) -> None:
        """Ask for a full pass once there are no more commits, or there have been some for long; see `time_passed`."""
        if self._verifying is not None:
            self._verifying.cancel()
        ask = partial(self.time_passed, full=True, after=after)
        self._verifying = asyncio.get_running_loop().call_later(self._lull.changed(), ask)

    @property
    def actors(self) -> tuple[Actor, ...]:
        """Who changed rules since the last pass, as far as known."""
        return tuple(self._actors)

    async def listen(self) -> tuple[tuple[Actor, ...], tuple[Reason, ...]]:
        """Give who changed rules since the last pass, and the reasons since the last inventory, up to now."""
        # It is read in one turn of the loop; the next comes after that.
        for _ in range(2):
            await asyncio.sleep(0)
        return self.actors, tuple(self._unsettled)

    def latest(self, loop: asyncio.AbstractEventLoop, patience: float) -> tuple[tuple[Actor, ...], tuple[Reason, ...]]:
        """Ask the loop, from another thread: which may know more by now; wait so many seconds at most."""
        try:
            return asyncio.run_coroutine_threadsafe(self.listen(), loop).result(patience)
        except TimeoutError:
            return (), ()

    def take(self) -> Triggers:
        """Give the triggers of the pass that begins now, and forget them."""
        if self._full:
            self._lull.looked()
        triggers = Triggers(
            tuple(self._settled),
            self.actors,
            self._full,
            self._pass_for,
        )
        self._settled, self._actors = {}, {}
        self._full = self.wants_pass = False
        self._pass_for = Origin.GUESTS
        return triggers

    def take_back(self, triggers: Triggers) -> None:
        """Take back the triggers of a pass that failed: the next one is about them."""
        self._settled = _first(dict.fromkeys(triggers.reasons) | self._settled)
        self._actors = _first(dict.fromkeys(triggers.actors) | self._actors)
        self._full |= triggers.full
        self._pass_for = max(self._pass_for, triggers.origin)


_T = TypeVar("_T")


def _first(facts: dict[_T, None]) -> dict[_T, None]:
    return dict.fromkeys(islice(facts, _MOST[Origin.GUESTS]))
