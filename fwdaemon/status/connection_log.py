"""Writes to the journal when connections of forwards with `log` begin and end, in a thread of its own.

The kernel reports both. What cannot be read or written in time is counted, and holds up neither connections nor the
daemon: the thread takes a small share of a core, and so many lines a second. Meanwhile the kernel keeps what it has
room for, and counts the rest. A filter in the kernel keeps away what no guest with such a forward answers.
"""

import asyncio
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fwdaemon.audit.throttle import LoggedConnection, Ration, WarnOnce, connection, unlogged
from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.conntrack import CONNECTIONS, answered_by, dropped, netfilter_socket
from fwdaemon.kernel.conntrack_listing import Event, EventKind, read_event
from fwdaemon.kernel.netlink import messages
from fwdaemon.kernel.packets import Field, attach
from fwdaemon.resolve.flows import Carriers, Flow
from fwdaemon.triggers import Budget

_log = logging.getLogger(__name__)

# Which connections are logged, and what is known of each. Pure.
_MOST_OPEN: Final = 1 << 15


class Followed(NamedTuple):
    """What is followed of a state: forwards that lead to guests with a logged one, by guest and label."""

    guests: frozenset[Address] = frozenset()
    forwards: frozenset[Forward] = frozenset()
    label: int = 0

    @classmethod
    def of(cls, desired: Desired) -> "Followed":
        """Give what a state asks for; nothing where no forward has `log`."""
        guests = frozenset(forward.target for forward in desired.logged)
        found = (
            frozenset(forward for forward in desired.forwards if forward.target in guests) if guests else frozenset()
        )
        return cls(guests, found, desired.label)


@dataclass(slots=True)
class _Known:
    forward: Forward
    began: float
    closed: float | None = None


class OpenConnections:
    """Finds the events of connections to be logged, and remembers when those began that are open."""

    def __init__(self, most: int = _MOST_OPEN) -> None:
        self._most = most
        self._known: dict[tuple[int, Address, int], _Known] = {}
        self._followed = Carriers(()), 0

    def follow(self, followed: Followed) -> None:
        """Log those of these forwards from now on; an open one that was logged ends with a line in any case."""
        self._followed = Carriers(followed.forwards), followed.label

    def logged(self, event: Event, now: float) -> LoggedConnection | None:
        """Give what is to be written of an event, `now` by a monotonic clock; `None` if nothing is.

        A connection that began is ours by our label. One that ended shows none: it is ours if it is known, or if it was
        translated as one of these forwards does. One of TCP took until it was closed, not until it was forgotten.
        """
        (carriers, label), key = self._followed, (event.number, event.flow.source, event.source_port)
        match event.kind:
            case EventKind.BEGAN:
                forward = _forward(carriers, event.flow) if event.has(label) else None
                if forward is not None:
                    self._remember(key, _Known(forward, now))
                return _told(forward, event, None)
            case EventKind.CLOSED:
                if key in self._known:
                    self._known[key].closed = now
                return None
        if (known := self._known.pop(key, None)) is not None:
            return _told(known.forward, event, (known.closed or now) - known.began)
        return _told(_forward(carriers, event.flow) if event.flow.translated else None, event, None)

    def _remember(self, key: tuple[int, Address, int], known: _Known) -> None:
        if len(self._known) >= self._most:  # that the oldest ended may have been lost
            del self._known[next(iter(self._known))]
        self._known[key] = known


def _forward(carriers: Carriers, flow: Flow) -> Forward | None:
    """Give the logged forward that carries a flow; one on its very address goes before those on every address."""
    found = [item for item in carriers.carriers(flow) if isinstance(item, Forward)]
    on_address = [item for item in found if item.listen is not None]
    return next((item for item in on_address or found if item.log is not None), None)


def _told(forward: Forward | None, event: Event, seconds: float | None) -> LoggedConnection | None:
    if forward is None or forward.log is None:
        return None
    flow, client = event.flow, forward.log.cut(event.flow.source)
    return LoggedConnection(
        event.kind is EventKind.ENDED,
        forward.owner,
        forward.protocol,
        client,
        event.source_port if client == flow.source else None,
        (flow.destination, flow.destination_port),
        (flow.server, flow.server_port),
        event.number,
        seconds,
        event.size,
    )


# The thread that reads and writes.

# journald drops what a service writes beyond 10,000 lines in 30 s, the audit included (journald.conf(5)).
_LINES_A_SECOND: Final = 100.0
_LINES_AT_ONCE: Final = 1000.0
_SHARE: Final = 0.05
_STOCK_S: Final = 0.5
# Each event takes about 800 bytes of it.
_BUFFER: Final = 1 << 21
_DATAGRAM: Final = 1 << 16
_AT_ONCE: Final = 128
# Longer filters than the kernel takes, of 4,096 instructions.
_MOST_GUESTS: Final = 512
_TELL_EACH_S: Final = 60.0
# How long it is read on where no forward has `log` any more: their connections are ended meanwhile.
_LINGER_S: Final = 5.0
_EVENTS: Final = "net.netfilter.nf_conntrack_events"


class ConnectionLog:
    """Follows the states it is given; while none has forwards with `log`, there is no thread. On the loop's thread."""

    def __init__(self, budget: Budget | None = None, ration: Ration | None = None, buffer: int = _BUFFER) -> None:
        self._writer = _Writer(
            budget or Budget(time.monotonic, None, _SHARE, _STOCK_S),
            ration or Ration(_LINES_A_SECOND, _LINES_AT_ONCE),
        )
        self._buffer = buffer
        self._desired: Desired | None = None
        self._followed = Followed()
        self._reader: _Reader | None = None
        self._warning = WarnOnce()

    @property
    def lost(self) -> int:
        """How many begins and ends were not written, since the start; it may count some of unlogged connections."""
        return self._writer.lost

    def follow(self, desired: Desired) -> None:
        """Log the connections of this state's forwards from now on."""
        if desired is self._desired:
            return
        followed = Followed.of(desired)
        if followed != self._followed:
            self._writer.open.follow(followed)
        try:
            if self._reader is not None and not self._reader.goes_on(followed.guests):
                self._reader = None
            if followed.guests and self._reader is None:
                self._reader = _begun(_filter(followed.guests), self._buffer, self._writer)
        except (OSError, RuntimeError) as error:  # no descriptor or thread is available
            self._warning.warn(f"connections are not logged: {error}; trying again")
            return
        self._warning.settle("connections are logged again")
        self._desired, self._followed = desired, followed

    async def close(self, patience: float) -> bool:
        """Log no more; whether the thread ended within so many seconds."""
        if self._reader is None:
            return True
        self._reader.end(0.0)
        return await asyncio.to_thread(self._reader.ended.wait, patience)


@dataclass(slots=True)
class _Writer:
    """Writes what is to be written of events, and counts what is not."""

    budget: Budget
    ration: Ration
    open: OpenConnections = field(default_factory=OpenConnections)
    lost: int = 0
    reported: int = 0
    reported_at: float = field(default_factory=time.monotonic)

    def write(self, events: Iterable[Event]) -> None:
        """Write a line for each that is to be logged, while there may be lines."""
        for event in events:
            now = time.monotonic()
            if (logged := self.open.logged(event, now)) is None:
                continue
            if self.ration.take(now):
                connection(logged)
            else:
                self.lost += 1

    def tell(self, *, at_once: bool = False) -> None:
        """Say how much was lost, once in a while."""
        now, number = time.monotonic(), self.lost - self.reported
        if number and (at_once or now >= self.reported_at + _TELL_EACH_S):
            unlogged(number, now - self.reported_at)
            self.reported, self.reported_at = self.lost, now


@dataclass(slots=True)
class _Reader:
    """One socket, and the thread that reads it until it is to end; `wake` has it notice that something changed."""

    source: socket.socket
    wake: int
    writer: _Writer
    ended: threading.Event = field(default_factory=threading.Event)
    dropped: int = 0
    _until: float = math.inf
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def goes_on(self, guests: Collection[Address]) -> bool:
        """Read what these guests answer, or for a moment what those of before do: their connections end just now.

        False where it has ended meanwhile.
        """
        if not guests:
            self.end(_LINGER_S)
            return True
        with self._turn:
            if self.ended.is_set():
                return False
            self._until = math.inf
            attach(self.source, _filter(guests))
        return True

    def end(self, seconds: float) -> None:
        """End in so many seconds, or before."""
        with self._turn:
            if not self.ended.is_set():
                self._until = min(self._until, time.monotonic() + seconds)
                os.eventfd_write(self.wake, 1)

    def run(self) -> None:
        """Read to the end."""
        try:
            self._read_on()
        except Exception:  # noqa: BLE001  the daemon outlives a mistake of its own, and shows where it is
            _log.exception("this is a bug in kvm-portfwd; connections are not logged")
        finally:
            with self._turn:
                self._close()

    def _close(self) -> None:
        if not self.ended.is_set():
            self.ended.set()
            self.source.close()
            os.close(self.wake)

    def _is_over(self) -> bool:
        with self._turn:
            if time.monotonic() < self._until:
                return False
            self._read()
            self.writer.tell(at_once=True)  # before the end is known: nothing is written after that
            self._close()
        return True

    def _read_on(self) -> None:
        waking, both = select.poll(), select.poll()
        waking.register(self.wake, select.POLLIN)
        both.register(self.wake, select.POLLIN)
        both.register(self.source, select.POLLIN)
        while not self._is_over():
            left = min(self._until - time.monotonic(), _TELL_EACH_S)
            if any(file == self.wake for file, _ in both.poll(max(left, 0.0) * 1000)):
                os.eventfd_read(self.wake)
            with self.writer.budget.charged(time.thread_time):
                self._read()
            self.writer.tell()
            # While it waits, the kernel keeps what it has room for.
            if rest := self.writer.budget.rest():
                waking.poll(rest * 1000)

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                datagram = self.source.recv(_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                break
            self.writer.write(filter(None, map(read_event, messages(datagram))))
        number = dropped(self.source)
        self.writer.lost += number - self.dropped
        self.dropped = number


def _begun(filters: list[list[Field]], buffer: int, writer: _Writer) -> _Reader:
    """Open the socket, in the network namespace of this thread, and begin to read it.

    Raises:
        OSError: the kernel refused, or reports no connections.
        RuntimeError: no thread is available.

    """
    if sysctl.read(_EVENTS) == "0":
        raise OSError(f"{_EVENTS} is 0")
    with ExitStack() as stack:
        source = stack.enter_context(netfilter_socket(CONNECTIONS, filters, buffer))
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, wake)
        reader = _Reader(source, wake, writer)
        threading.Thread(target=reader.run, name="connection log", daemon=True).start()
        stack.pop_all()
    return reader


def _filter(guests: Collection[Address]) -> list[list[Field]]:
    return answered_by(guests, _MOST_GUESTS)
