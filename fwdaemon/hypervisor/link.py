"""Keeps one hypervisor URI connected, and its last observation at hand; and runs libvirt's event loop.

Whatever happens to libvirt, what it said last stands: no answer is not "no domains". It is restarted (the connection is
lost, and opened again with growing pauses), or it is frozen (a call does not return: it is waited for once, 5 s long,
and keepalive ends it after 20 s). A loss and a return are each logged once, not at every attempt.
"""

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Final, Generic, Protocol, TypeVar

import libvirt

from fwdaemon.core.inventory import LibvirtObservation
from fwdaemon.core.report import Reason, ReasonKind, Trigger
from fwdaemon.core.types import Job
from fwdaemon.errors import KernelError, LibvirtUnavailableError, PortfwdError
from fwdaemon.kernel.process import Worker
from fwdaemon.triggers import Backoff, Budget

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.2
_LAST_PAUSE_S: Final = 10.0
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """How a connection is, and since when (UTC); `last_error` is the last one there was, `None` before the first."""

    uri: str
    connected: bool
    since: datetime
    last_error: str | None = None


class Connection(Protocol):
    """One connection to libvirt; each of these blocks."""

    def open(self) -> None:
        """Open. Raises `LibvirtUnavailableError`."""

    def listen(self) -> None:
        """Have libvirt send events; does nothing if it does. Raises `LibvirtUnavailableError`."""

    def deafen(self) -> None:
        """Have libvirt send none; does nothing if it does not. Raises `LibvirtUnavailableError`."""

    def observe(self) -> LibvirtObservation:
        """Take a fresh observation. Raises `LibvirtUnavailableError`."""

    def invalidate(self) -> None:
        """Have the next observation ask for everything, also for what no event was about. Does not block."""

    def relist(self) -> None:
        """Have the next observation find out which domains run, whether or not events say so. Does not block."""

    def close(self) -> None:
        """Close; does nothing if it is closed already."""


Connect = Callable[[str, Trigger, Callable[[str], None]], Connection]
"""Makes a connection to a URI; it calls the first with the reason to look again, the second when it is lost."""

T = TypeVar("T")


def growing_pauses() -> Iterator[float]:
    """Give the pauses between attempts, in seconds: 0.2, doubling up to 10, each up to a quarter shorter by chance."""
    pauses = Backoff(_FIRST_PAUSE_S, _LAST_PAUSE_S)
    while True:
        yield pauses.next() * random.uniform(0.75, 1.0)  # noqa: S311 - spreads attempts, guards nothing


class LibvirtLink:
    """One URI. `trigger` is called with a reason on the loop's thread.

    `pauses` gives those between attempts to connect, and `patience` is how long an answer is waited for, in seconds.
    """

    def __init__(
        self,
        uri: str,
        connect: Connect,
        trigger: Trigger,
        pauses: Callable[[], Iterator[float]] = growing_pauses,
        patience: float = 5.0,
    ) -> None:
        self.patience = patience
        self._pauses = pauses
        self.state = ConnectionState(uri, connected=False, since=_now())
        self._connect = connect
        self._trigger = trigger
        self._worker = Worker(f"libvirt {uri}", Job.LIBVIRT, uri)
        self._connection: Connection | None = None
        self._attempt = 0
        self._frozen, self._listens = False, True
        self._last: LibvirtObservation | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._task = asyncio.create_task(self._keep_connected(), name=f"libvirt {self.state.uri}")

    async def observe(self) -> LibvirtObservation | None:
        """Take a fresh observation, if it comes in time; otherwise give the last one, `None` if there never was any."""
        if self._connection is None or self._frozen:
            return self._last
        attempt = self._attempt
        observing = self._worker.submit(self._connection.observe)
        observing.add_done_callback(partial(self._observed, attempt))
        answered, _ = await asyncio.wait({observing}, timeout=self.patience)
        if not answered and attempt == self._attempt:
            self._frozen = True
            self._down(f"it has not answered for {self.patience:.0f} s")
        return self._last

    def invalidate(self) -> None:
        """Have the next observation ask for everything: an event may have been lost."""
        if self._connection is not None:
            self._connection.invalidate()

    def relist(self) -> None:
        """Have the next observation find out which domains run: no event says so now."""
        if self._connection is not None:
            self._connection.relist()

    def listen(self, *, events: bool) -> None:
        """Have libvirt send events from now on, or none; after that, the next observation asks for everything."""
        self._listens = events
        if self._connection is not None:
            change = self._connection.listen if events else self._connection.deafen
            self._worker.submit(change).add_done_callback(partial(self._changed, self._attempt))

    async def close(self) -> None:
        """Close the connection and end thread and task. A frozen libvirt may keep the thread until it answers."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._let_go()
        if not await self._worker.close(_CLOSE_S):
            _log.warning("libvirt at %s does not answer, so its connection could not be closed", self.state.uri)

    async def _keep_connected(self) -> None:
        while True:
            for pause in self._pauses():
                if await self._opened():
                    break
                await asyncio.sleep(pause)
            await self._lost.wait()
            self._let_go()

    async def _opened(self) -> bool:
        """Try to open. The first observation is part of it: a connection without an answer is none."""
        self._lost.clear()
        self._frozen = False
        self._attempt += 1
        connection = self._connect(
            self.state.uri, _OnThisLoop(self._trigger), _OnThisLoop(partial(self._closed, self._attempt))
        )
        listens = self._listens
        exposure = self._worker.submit(partial(_open, connection, listens=listens))
        try:
            self._last = await exposure
        except PortfwdError as error:  # no thread is available, either
            self._down(str(error))
            return False
        except asyncio.CancelledError:
            self._connection = connection  # closed by `close`, which cancels this, after the call that is under way
            raise
        self._connection = connection
        if self._listens is not listens:
            self.listen(events=self._listens)
        self._up()
        return True

    def _observed(self, attempt: int, observing: asyncio.Future[LibvirtObservation]) -> None:
        if observing.cancelled():
            return
        try:
            observation = observing.result()
        except PortfwdError as error:
            self._closed(attempt, str(error))
            return
        if attempt == self._attempt:
            self._last, self._frozen = observation, False
            self._up()

    def _changed(self, attempt: int, changing: asyncio.Future[None]) -> None:
        if not changing.cancelled() and isinstance(error := changing.exception(), PortfwdError):
            self._closed(attempt, str(error))

    def _closed(self, attempt: int, reason: str) -> None:
        """Take the news of a loss; what comes late, of a connection already replaced, is none."""
        if attempt == self._attempt:
            self._down(reason)
            self._lost.set()

    def _let_go(self) -> None:
        """Close the connection, after whatever call is under way on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._worker.submit(connection.close)

    def _up(self) -> None:
        if self.state.connected:
            return
        again = "" if self.state.last_error is None else " again"
        self.state = ConnectionState(self.state.uri, connected=True, since=_now(), last_error=self.state.last_error)
        _log.info("libvirt at %s answers%s", self.state.uri, again)
        self._trigger(Reason(ReasonKind.LIBVIRT, self.state.uri, f"answers{again}"))

    def _down(self, reason: str) -> None:
        before = self.state
        since = _now() if before.connected else before.since
        self.state = ConnectionState(before.uri, connected=False, since=since, last_error=reason)
        if before.connected:
            _log.warning("lost libvirt at %s (%s): forwards stay as they are", before.uri, reason)
        elif before.last_error is None:
            _log.warning("libvirt at %s is not there yet (%s): nothing is changed until it is", before.uri, reason)


def _open(connection: Connection, *, listens: bool) -> LibvirtObservation:
    """Open and take the first observation; if that fails, nothing stays open."""
    connection.open()
    try:
        if listens:
            connection.listen()
        return connection.observe()
    except LibvirtUnavailableError:
        connection.close()
        raise


class _OnThisLoop(Generic[T]):
    """Makes a function callable from libvirt's threads; the loop is woken once for all calls since it last was."""

    def __init__(self, function: Callable[[T], None]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._calls: deque[T] = deque()
        self._wakes = False

    def __call__(self, reason: T) -> None:
        self._calls.append(reason)
        if not self._wakes:
            self._wakes = True
            self._loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        self._wakes = False  # first, so that what comes meanwhile is either called here or wakes the loop again
        while self._calls:
            self._function(self._calls.popleft())


def _now() -> datetime:
    return datetime.now(UTC)


# libvirt's event loop, in a thread of its own, and what is done where more events come than may be received.
#
# Events and keepalive messages of every connection are served here, so it runs before the first connection is opened
# and until after the last is closed (https://libvirt.org/html/libvirt-libvirt-event.html#virEventRegisterDefaultImpl).
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
            KernelError: no thread or descriptor is available; to try again is fine.

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
