"""libvirt's event loop, in a thread of its own, and what is done where more events come than may be received.

Events and keepalive messages of every connection are served here, so it runs before the first connection is opened
and until after the last is closed (https://libvirt.org/html/libvirt-libvirt-event.html#virEventRegisterDefaultImpl).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Final

import libvirt

from fwdaemon.core.report import Reason, ReasonKind, Trigger
from fwdaemon.errors import KernelError
from fwdaemon.hypervisor.link import LibvirtLink
from fwdaemon.triggers import Backoff, Budget

_log = logging.getLogger(__name__)

_ASLEEP = -1
_LAST_ROUND_MS = 20
# How often domains are listed while no events come, and for how long, at first and at most, in seconds.
LOOK_S: Final = 0.25
FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 30.0


class EventLoop:
    """Runs from `start` until `stop`. libvirt allows one loop per process; several of these in turn are fine.

    `received` is called on its thread, with the processor time in seconds that each round took.
    """

    def __init__(self, received: Callable[[float], None] = lambda _seconds: None) -> None:
        self._received = received
        self._stopping = False
        self._timer = _ASLEEP
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Register the loop with libvirt and run it.

        Raises:
            KernelError: no thread or no descriptor is to be had; to try again is fine.

        """
        try:
            _register()
            if self._timer == _ASLEEP:
                self._timer = libvirt.virEventAddTimeout(_ASLEEP, self._last_round, None)
            # Another one each time: from Python 3.13 on, one that could not be started never can.
            thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)
            thread.start()
        except (RuntimeError, libvirt.libvirtError) as error:
            raise KernelError(f"libvirt's events cannot be received: {error}") from error
        self._thread = thread

    def stop(self) -> None:
        """End the thread, if it runs, after it has freed what closed connections left to it; blocks for some 20 ms.

        libvirt frees the callbacks of a closed connection in the loop's idle time, hence a timer and not a flag.
        """
        if self._thread is not None and self._thread.is_alive():
            libvirt.virEventUpdateTimeout(self._timer, _LAST_ROUND_MS)
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            began = time.thread_time()
            libvirt.virEventRunDefaultImpl()
            self._received(time.thread_time() - began)

    def _last_round(self, timer: int, _opaque: object) -> None:
        self._stopping = True
        libvirt.virEventRemoveTimeout(timer)


@cache
def _register() -> None:
    """Register once per process, and keep libvirt from printing every error: they reach us as exceptions."""
    libvirt.registerErrorHandler(_say_nothing, None)
    libvirt.virEventRegisterDefaultImpl()


def _say_nothing(_context: object, _error: object) -> None:
    """Stand in for libvirt's own handler, which prints to standard error."""


class EventGuard:
    """Has domains listed where libvirt sends more events than the budget to receive them holds.

    While there is a debt, libvirt sends no events, and domains and networks are listed four times a second, which takes
    from the budget of users like all that follows from events. After a pause that grows while the flood lasts, events
    are received again. Nothing is missed: an event only says when to look. Make it inside the asyncio loop.
    """

    def __init__(self, links: Iterable[LibvirtLink], trigger: Trigger, budget: Budget) -> None:
        self._links, self._trigger, self._budget = tuple(links), trigger, budget
        self._loop = asyncio.get_running_loop()
        self._pauses = Backoff(FIRST_PAUSE_S, LAST_PAUSE_S)
        self.listens, self._since = True, float("-inf")
        self._next: asyncio.TimerHandle | None = None

    def received(self, seconds: float) -> None:
        """Take note of what it cost to receive events; on the thread that does."""
        self._budget.spent(seconds)
        if self.listens and self._budget.wait():
            self.listens = False
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._flooded)

    def close(self) -> None:
        """Do nothing more."""
        if self._next is not None:
            self._next.cancel()

    def _flooded(self) -> None:
        if self._loop.time() - self._since > LAST_PAUSE_S:
            self._pauses.settle()
            _log.warning("libvirt sends too many events: for a while, domains are listed instead")
        for link in self._links:
            link.listen(events=False)
        self._look(self._loop.time() + self._pauses.next())

    def _look(self, until: float) -> None:
        if self._loop.time() >= until and not self._budget.wait():
            self._listen()
            return
        for link in self._links:
            link.relist()
        self._trigger(Reason(ReasonKind.LISTED))
        self._next = self._loop.call_later(LOOK_S, self._look, until)

    def _listen(self) -> None:
        self.listens, self._since = True, self._loop.time()
        for link in self._links:
            link.listen(events=True)
        self._trigger(Reason(ReasonKind.LISTED))
