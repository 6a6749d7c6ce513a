"""Reports to systemd how we are: ready, reloading, stopping, in what state, and alive (sd_notify(3)).

Here one socket is opened at the start, and nothing waits: what cannot be sent now is sent later, in the same order.
Without systemd nothing happens. systemd-python's `daemon.notify` opens a socket for each message, so where no
descriptor is left it fails (235: EMFILE), and the watchdog starves; while systemd does not read, it waits.
"""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from fwdaemon.audit.journal import ARREARS
from fwdaemon.core.types import Job

_log = logging.getLogger(__name__)

# How soon it is tried again while the socket is full.
_AGAIN_S: Final = 0.2
# How often the watchdog is fed in the time that it allows; sd_watchdog_enabled(3) advises twice.
_FEEDS: Final = 4
# What runs in another thread may take so many times longer than the loop may take for a turn: ten thousand forwards in
# the iptables-legacy tables are legitimate work, and each program that is started has its own limit.
_LENIENCE: Final = 5


class Notifier:
    """Reports what is new, in order. On the loop's thread only.

    `environment` is where systemd says who listens (NOTIFY_SOCKET).
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # An abstract name is written with "@" for its leading null byte.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._waiting: deque[str] = deque()
        self._again: asyncio.TimerHandle | None = None
        self._status = ""
        self._read: Callable[[], object] | None = None

    def ready(self) -> None:
        """Say that start or reload is done."""
        self._queue("READY=1")

    def reloading(self) -> None:
        """Say that a reload has begun; systemd wants the time of it to tell two apart."""
        self._queue(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._queue("STOPPING=1")

    def status(self, text: str) -> None:
        """Say what `systemctl status` is to show, one line, unless it shows that already."""
        if text != self._status:
            self._status = text
            self._queue(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog. It needs this only while everything else gets through."""
        if not self._waiting:
            self._queue("WATCHDOG=1")

    def close(self) -> None:
        """Report nothing more."""
        if self._again is not None:
            self._again.cancel()
        self._socket.close()

    def _queue(self, message: str) -> None:
        if not self._address:
            return
        if message.startswith("STATUS=") and self._waiting and self._waiting[-1].startswith("STATUS="):
            self._waiting.pop()  # it has not been seen, and it is outdated
        self._waiting.append(message)
        if self._again is None:
            self._send()

    def _send(self) -> None:
        self._again = None
        while self._waiting:
            try:
                self._socket.sendto(self._waiting[0].encode(errors="replace"), self._address)
            except BlockingIOError:
                self._read = self._read or ARREARS.begin(Job.SYSTEMD)
                self._again = asyncio.get_running_loop().call_later(_AGAIN_S, self._send)
                return
            except OSError as error:  # systemd has gone, and took its socket with it
                _log.debug("cannot send %r to systemd: %s", self._waiting[0], error)
            self._waiting.popleft()
        if self._read is not None:
            self._read()
            self._read = None


class Watchdog:
    """Feeds systemd's watchdog while we are alive; when it is not fed, systemd ends us and starts us again.

    Alive means that the loop turns, since it is the loop that calls `feed`, and that nothing which has to end hangs.
    A daemon that waits for libvirt is alive. `environment` is where systemd says how long it waits (WATCHDOG_USEC,
    WATCHDOG_PID).
    """

    def __init__(self, notifier: Notifier, environment: Mapping[str, str] = os.environ) -> None:
        self._notifier = notifier
        self._limit = _watchdog_s(environment)
        self._fed = time.monotonic()  # systemd counts from READY=1 on
        self._begun: dict[object, tuple[str, float]] = {}
        self._hanging = ""

    @property
    def period(self) -> float:
        """How often `feed` is to be called at least, in seconds; without a watchdog that does not matter."""
        return self._limit / _FEEDS

    @contextmanager
    def bounded(self, what: str) -> Iterator[None]:
        """Be alive during this block only as long as it takes no more than five times the watchdog's time."""
        key = object()
        self._begun[key] = what, time.monotonic()
        try:
            yield
        finally:
            del self._begun[key]

    def feed(self) -> None:
        """Feed the watchdog if it is time to, and we are alive."""
        now = time.monotonic()
        if now - self._fed < self.period or self._hangs(now):
            return
        self._fed = now
        self._notifier.alive()

    def _hangs(self, now: float) -> bool:
        hanging = next((what for what, began in self._begun.values() if now - began > _LENIENCE * self._limit), "")
        if hanging and hanging != self._hanging:
            _log.error("%s hangs: systemd will end the daemon and start it again", hanging)
        self._hanging = hanging
        return bool(hanging)


class Pulse:
    """Reports to systemd all the time that we are alive, and what `status` gives, whenever that is new.

    The status is compared with what was last sent each `period`, and `soon` after something that may have changed it,
    in seconds. `beats` are called each time before.
    """

    def __init__(
        self,
        status: Callable[[], str],
        *beats: Callable[[], None],
        period: float = 5.0,
        soon: float = 1.0,
    ) -> None:
        self.notifier = Notifier()
        self.watchdog = Watchdog(self.notifier)
        self._status, self._beats = status, beats
        self._period, self._soon = period, soon
        self._next: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin, and go on until `end`."""
        self.watchdog.feed()
        for beat in self._beats:
            beat()
        self.notifier.status(self._status())
        self._next = asyncio.get_running_loop().call_later(min(self._period, self.watchdog.period), self.begin)

    def soon(self) -> None:
        """Compare the status soon: something was done."""
        loop = asyncio.get_running_loop()
        if self._next is not None and self._next.when() > loop.time() + self._soon:
            self._next.cancel()
            self._next = loop.call_later(self._soon, self.begin)

    async def ready_after(self, first: asyncio.Event, patience: float, missing: Callable[[], str]) -> None:
        """Say that we are ready when `first` is set, or after `patience` seconds; then log what is `missing`."""
        try:
            await asyncio.wait_for(first.wait(), patience)
        except TimeoutError:
            if what := missing():
                _log.warning("%s: what the kernel holds stays as it is until then", what)
        self.ready()

    def ready(self) -> None:
        """Say that start or reload is done, and how we are now."""
        self.notifier.status(self._status())
        self.notifier.ready()

    def end(self) -> None:
        """Report nothing more."""
        if self._next is not None:
            self._next.cancel()
        self.notifier.close()


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Give the seconds within which systemd has to be fed; infinity where it watches another process, or none."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if is_ours and microseconds.isdecimal() else float("inf")
