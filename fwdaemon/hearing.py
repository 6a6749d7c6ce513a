"""What has been heard since the last look: reasons to look again, never facts.

A reason from libvirt or the network counts once an inventory has been taken after it, so that the audit names the event
a change really follows from. Used on the asyncio loop's thread only.
"""

import asyncio
from dataclasses import dataclass

from fwdaemon import causes


@dataclass(frozen=True, slots=True)
class Heard:
    """Everything heard for one look; see `fwdaemon.reconcile.Occasion`."""

    reasons: tuple[str, ...]
    meddler: str
    thorough: bool


class Hearing:
    """Collects reasons and wakes whoever waits for one."""

    def __init__(self) -> None:
        self.stopping = False
        self.wants_inventory = True
        self.wants_look = False
        self._wants_reload = False
        self._thorough = False
        self._unsettled: dict[str, None] = {}
        self._settled: dict[str, None] = {}
        self._meddlers: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._wake.set()

    async def wait(self) -> None:
        """Wait for the next reason to do anything."""
        await self._wake.wait()
        self._wake.clear()

    def stop(self) -> None:
        """Somebody wants us to end."""
        self.stopping = True
        self._wake.set()

    def reload(self) -> None:
        """Somebody says that the configuration changed."""
        self._wants_reload = True
        self._wake.set()

    def take_reload(self) -> bool:
        """Whether the configuration is to be read again; the question is also the answer's end."""
        wanted, self._wants_reload = self._wants_reload, False
        return wanted

    def inventory_changed(self, reason: str) -> None:
        """Something happened to a domain, a network or an address."""
        self._unsettled[reason] = None
        self.wants_inventory = True
        self._wake.set()

    def begin_inventory(self) -> dict[str, None]:
        """Give the reasons that an inventory taken from now on covers."""
        covered, self._unsettled = self._unsettled, {}
        self.wants_inventory = False
        return covered

    def end_inventory(self, covered: dict[str, None]) -> None:
        """Say that the inventory is there."""
        self._settled |= covered
        self.wants_look = True
        self._wake.set()

    def rules_changed(self, meddler: str, *, thorough: bool) -> None:
        """Somebody changed the kernel's rules; `thorough` when it is not known how much."""
        self._thorough |= thorough
        self._meddlers[meddler] = None
        self.wants_look = True
        self._wake.set()

    def configuration_changed(self, reason: str) -> None:
        """A new configuration is in force, on the inventory we have.

        Another is to be taken: an address that it gives to a guest from now on may be in the hands of somebody else.
        """
        self._settled[reason] = None
        self.wants_inventory = True
        self.wants_look = True
        self._wake.set()

    def time_passed(self, *, thorough: bool) -> None:
        """It is time to look, whatever has been heard."""
        self._thorough |= thorough
        self.wants_look = True
        self._wake.set()

    @property
    def meddler(self) -> str:
        """Who changed rules since the last look, as far as was heard."""
        return f"changed by {causes.told(self._meddlers)}" if self._meddlers else causes.AT_A_COMPARISON

    def take(self) -> Heard:
        """Give what has been heard for the look that begins now, and forget it."""
        heard = Heard(
            tuple(self._settled),
            self.meddler,
            self._thorough,
        )
        self._settled, self._meddlers = {}, {}
        self._thorough = self.wants_look = False
        return heard
