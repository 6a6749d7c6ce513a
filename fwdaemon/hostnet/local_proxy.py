"""Keeps the places at which forwards answer on the loopback addresses, on a loop and thread of their own.

So neither many connections nor many ports hold up what else the daemon has to do, apart from the interpreter's lock.
"""

import asyncio
import errno
import resource
from collections.abc import Mapping
from threading import Thread
from typing import Final

from fwdaemon.core.exposures import Forward
from fwdaemon.core.pace import Budget
from fwdaemon.core.report import ApplyResult
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.core.types import Protocol
from fwdaemon.errors import KernelError, shortage
from fwdaemon.hostnet.local_relays import Allowance, Duty, Place, TcpPlace, UdpPlace, Want, duties
from fwdaemon.kernel.process import budget_of_guests

_MOST_CONNECTIONS: Final = 4096
_PATIENCE_S: Final = 10.0


class LocalProxy:
    """Listens while something is to be answered, and not otherwise; what is taken by others is tried again.

    Datagrams that nobody asked for take from `guests`.
    """

    def __init__(self, guests: Budget | None = None) -> None:
        self._running: tuple[asyncio.AbstractEventLoop, Thread] | None = None
        self._places = _Places(guests or budget_of_guests())
        self._asked: frozenset[Forward] | None = None
        self._wanted: Mapping[Place, Duty] = {}
        self._told = ApplyResult()

    def apply(self, desired: Desired, *, full: bool = True) -> ApplyResult:
        """Answer for these forwards and no others, and tell which places are taken. Blocks until it is so."""
        asked = desired.forwards if desired.localhost else frozenset[Forward]()
        if asked is self._asked and not full:
            return ApplyResult(faults=self._told.faults, short=self._told.short)
        if asked is not self._asked:
            self._wanted = duties(desired)
        self._asked = None  # what fails now is tried again at the next call
        is_idle = not self._wanted and self._running is None
        self._told = ApplyResult() if is_idle else self._done(self._wanted)
        self._asked = asked
        if not self._wanted:
            self.close()
        return self._told

    def close(self) -> None:
        """Stop listening, and end all connections."""
        if self._running is None:
            return
        self._done({})
        (loop, thread), self._running, self._asked = self._running, None, None
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE_S)
        if not thread.is_alive():
            loop.close()

    def _done(self, wanted: Mapping[Place, Duty]) -> ApplyResult:
        """Have it done on the proxy's own loop, which begins with the first of it."""
        if self._running is None:
            self._running = _started()
        doing = asyncio.run_coroutine_threadsafe(self._places.apply(wanted), self._running[0])
        try:
            return doing.result(_PATIENCE_S)
        except TimeoutError:
            return ApplyResult(faults=("the proxy on 127.0.0.1 and ::1 does not answer: it is overloaded",))


def _started() -> tuple[asyncio.AbstractEventLoop, Thread]:
    """Start a loop in a thread. Raises KernelError where no thread is to be had, and OSError for descriptors."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="proxy on loopback", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        loop.close()
        raise KernelError(f"no forward answers on 127.0.0.1 and ::1: {error}") from error
    return loop, thread


class _Places:
    """All that listens. Its methods run on the proxy's own loop."""

    def __init__(self, guests: Budget) -> None:
        self._guests = guests
        self._open: dict[Place, tuple[Duty, TcpPlace | UdpPlace]] = {}
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = files // 2
        self._allowance = Allowance(min(_MOST_CONNECTIONS, files // 8))  # each takes two
        self._want = Want("some who connect to 127.0.0.1 and ::1 wait, or are refused")
        self._short = False

    async def apply(self, wanted: Mapping[Place, Duty]) -> ApplyResult:
        """Close and open what differs."""
        gone = [place for place, (duty, _) in self._open.items() if wanted.get(place) != duty]
        ending = [task for place in gone for task in self._open.pop(place)[1].close()]
        if ending:
            await asyncio.wait(ending)
        self._short = False
        missing = [place for place in wanted if place not in self._open]
        room = self._most - len(self._open)
        faults = [fault for place in missing[:room] if (fault := self._opened(place, wanted[place]))]
        if left := len(missing[room:]):
            faults.append(
                f"{left} ports of 127.0.0.1 and ::1 do not answer: too many files would be open (LimitNOFILE=)"
            )
        changed = bool(gone) or len(faults) < len(missing)
        return ApplyResult(faults=tuple(faults), changed=changed, short=self._short)

    def _opened(self, place: Place, duty: Duty) -> str:
        """Listen at a place, or say why that cannot be."""
        try:
            self._open[place] = duty, self._listening(place, duty)
        except OSError as error:
            self._short |= shortage(error) is not None
            reason = "a process of the host listens there" if error.errno == errno.EADDRINUSE else error.strerror
            where = f"{place.protocol} port {place.port} of {place.address}"
            return f"{where} does not lead to {shown(duty.forward.domain)}: {reason}"
        return ""

    def _listening(self, place: Place, duty: Duty) -> TcpPlace | UdpPlace:
        if place.protocol is Protocol.TCP:
            return TcpPlace(place, duty, self._allowance, self._want)
        return UdpPlace(place, duty, self._allowance, self._guests, self._want)
