"""Keeps the places at which forwards answer on the loopback addresses, on a loop and thread of their own.

So neither many connections nor many ports hold up what else the daemon has to do, apart from the interpreter's lock.
"""

import asyncio
import errno
import resource
from collections.abc import Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Final

from fwdaemon.audit.journal import ARREARS
from fwdaemon.core.exposures import Forward
from fwdaemon.core.report import ApplyResult, Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Job, Protocol
from fwdaemon.errors import KernelError, shortage
from fwdaemon.hostnet.local_relays import Allowance, Duty, Endpoint, TcpRelay, UdpRelay, Want, duties
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.triggers import Budget

_MOST_CONNECTIONS: Final = 4096
# So long a pass waits for what is done at once unless the proxy is busy; what heals rules comes in the same thread.
_PATIENCE_S: Final = 0.1
_CLOSE_S: Final = 2.0
_LATE: Final = Fault(FaultKind.LOOPBACK_BUSY)


class LocalProxy:
    """Listens while something is to be answered, and not otherwise; what is taken by others is tried again.

    Datagrams that no client asked for take from `guests`.
    """

    def __init__(self, guests: Budget | None = None) -> None:
        self._running: tuple[asyncio.AbstractEventLoop, Thread] | None = None
        self._relays = _Relays(guests or budget_of_guests())
        self._asked: frozenset[Forward] | None = None
        self._wanted: Mapping[Endpoint, Duty] = {}
        self._under_way: Future[ApplyResult] | None = None
        self._last_result = ApplyResult()

    def apply(self, desired: Desired, *, full: bool = True) -> ApplyResult:
        """Answer for these forwards and no others, and return which places are taken, or that it is not so yet."""
        asked = desired.forwards if desired.localhost else frozenset[Forward]()
        if asked is self._asked and not full:
            return ApplyResult(faults=self._last_result.faults, short=self._last_result.short)
        if asked is not self._asked:
            self._wanted = duties(desired)
        self._asked = None  # what fails now is tried again at the next call
        is_idle = not self._wanted and self._running is None
        result = ApplyResult() if is_idle else self._done(self._wanted)
        if result is None:  # a pass follows where something was short
            return ApplyResult(faults=(_LATE,), short=True)
        self._asked, self._last_result = asked, result
        if not self._wanted:
            self._end()
        return result

    def close(self) -> None:
        """Stop listening, and end all connections."""
        if self._running is not None:
            thread = self._running[1]
            self._done({})
            self._end()
            thread.join(_CLOSE_S)

    def _end(self) -> None:
        """Have the loop end, without waiting for it."""
        if self._running is not None:
            self._running[0].call_soon_threadsafe(self._running[0].stop)
        self._running = self._asked = self._under_way = None

    def _done(self, wanted: Mapping[Endpoint, Duty]) -> ApplyResult | None:
        """Have it done on the proxy's own loop, which begins with the first of it; `None` if it is not done yet.

        While something is under way, nothing else is begun: what comes of it would be mixed.
        """
        if self._under_way is not None and not self._under_way.done():
            return None
        if self._running is None:
            self._running = _started()
        self._under_way = asyncio.run_coroutine_threadsafe(self._relays.apply(wanted), self._running[0])
        done = ARREARS.begin(Job.LOOPBACK)
        self._under_way.add_done_callback(lambda _: done())
        try:
            return self._under_way.result(_PATIENCE_S)
        except TimeoutError:
            return None


def _started() -> tuple[asyncio.AbstractEventLoop, Thread]:
    """Start a loop in a thread. Raises KernelError where no thread is available, and OSError for descriptors."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=_served, args=(loop,), name="proxy on loopback", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        loop.close()
        raise KernelError(f"no forward answers on 127.0.0.1 and ::1: {error}") from error
    return loop, thread


def _served(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


class _Relays:
    """All that listens. Its methods run on the proxy's own loop."""

    def __init__(self, guests: Budget) -> None:
        self._guests = guests
        self._open: dict[Endpoint, tuple[Duty, TcpRelay | UdpRelay]] = {}
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = files // 2
        self._allowance = Allowance(min(_MOST_CONNECTIONS, files // 8))  # each takes two
        self._want = Want("some who connect to 127.0.0.1 and ::1 wait, or are refused")
        self._short = False

    async def apply(self, wanted: Mapping[Endpoint, Duty]) -> ApplyResult:
        """Close and open what differs."""
        gone = [endpoint for endpoint, (duty, _) in self._open.items() if wanted.get(endpoint) != duty]
        ending = [task for endpoint in gone for task in self._open.pop(endpoint)[1].close()]
        if ending:
            await asyncio.wait(ending)
        self._short = False
        missing = [endpoint for endpoint in wanted if endpoint not in self._open]
        room = self._most - len(self._open)
        faults = [fault for endpoint in missing[:room] if (fault := self._opened(endpoint, wanted[endpoint]))]
        if left := len(missing[room:]):
            faults.append(Fault(FaultKind.LOOPBACK_PORTS, (str(left),)))
        changed = bool(gone) or len(faults) < len(missing)
        return ApplyResult(faults=tuple(faults), changed=changed, short=self._short)

    def _opened(self, endpoint: Endpoint, duty: Duty) -> Fault | None:
        """Listen at a place, or give why that cannot be."""
        try:
            self._open[endpoint] = duty, self._listening(endpoint, duty)
        except OSError as error:
            self._short |= shortage(error) is not None
            about = str(endpoint.protocol), str(endpoint.port), str(endpoint.address), duty.forward.domain
            if error.errno == errno.EADDRINUSE:
                return Fault(FaultKind.LOOPBACK_PORT_TAKEN, about)
            return Fault(FaultKind.LOOPBACK_PORT, about, str(error.strerror))
        return None

    def _listening(self, endpoint: Endpoint, duty: Duty) -> TcpRelay | UdpRelay:
        if endpoint.protocol is Protocol.TCP:
            return TcpRelay(endpoint, duty, self._allowance, self._want)
        return UdpRelay(endpoint, duty, self._allowance, self._guests, self._want)
