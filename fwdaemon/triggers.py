"""The triggers since the last pass: reasons to look again, never facts.

A reason from libvirt or the network counts once an inventory has been taken after it, so that the audit names the event
a change really follows from. Used on the asyncio loop's thread only.
"""

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from fwdaemon.core.pace import Lull, Origin, Pauses, origin
from fwdaemon.core.report import Actor, Reason, ReasonKind

# So many reasons are kept to explain a change; in a flood, those that come later are not. So with all triggers of
# passes that failed. A host may start all its domains at once.
_PAUSES: Final = Pauses()
_MOST: Final = {Origin.GUESTS: 256, Origin.USERS: 4096}


@dataclass(frozen=True, slots=True)
class Triggers:
    """All triggers of one pass, and whom it is for; see `fwdaemon.reconcile.Request`."""

    reasons: tuple[Reason, ...]
    actors: tuple[Actor, ...]
    full: bool
    origin: Origin = Origin.OTHERS


class TriggerQueue:
    """Collects triggers and wakes the task that waits for one; `pauses` say when commits are to be verified."""

    def __init__(self, pauses: Pauses = _PAUSES) -> None:
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
