"""Watches the files of libvirt's DHCP servers, since libvirt has no event for a lease.

dnsmasq's helper replaces /var/lib/libvirt/dnsmasq/BRIDGE.status by rename when a lease comes or goes, and libvirt
writes NETWORK.hostsfile when reservations change. What is in them is libvirt's to tell; here they only say "look
again". libvirt's *reading* them must not, or every pass would cause the next.

A look at the leases spares most of the looks at everything else: a lease that is renewed, or that ends when its guest
has long gone, is no news. And it tells the first lease of a guest, which follows from its start, from what guests can
cause as often as they like.

The directory may not be there yet: then the nearest one above it is watched, until it is.
"""

import asyncio
import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.pace import Backoff, Budget
from fwdaemon.core.report import Reason, ReasonKind, Trigger

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent

_log = logging.getLogger(__name__)

DNSMASQ_DIRECTORY: Final = Path("/var/lib/libvirt/dnsmasq")

_CHANGES: Final = frozenset({"created", "modified", "moved", "deleted"})
_LEASES: Final = ".status"
_REASONS: Final = {".hostsfile": ReasonKind.RESERVATIONS}
# So long after its guest was seen last, a MAC address may be another guest's.
_FORGOTTEN_S: Final = 60.0


# Up to its version 6, watchdog remembers each rename for as long as it watches: it starts over after so many changes.
_RENEWED_AFTER: Final = 256
# What one event takes, at most, in watchdog's threads and in ours. Guests can ask for as many leases as they like, and
# each is several events.
_COSTS_S: Final = 0.00015
# Leases of some thousand guests; a flood of leases is longer, and all of it would be read at each of them.
_LARGEST: Final = 1 << 19
# To watch anew costs as much as some events.
_REST_S: Final = 1.0
# How soon it is tried again where nothing can be watched, doubled each time up to the second figure.
_AGAIN_S: Final = 1.0
_AGAIN_AT_MOST_S: Final = 30.0
# What an emitter logs as an error when it is stopped between two reads, as each is that we unschedule.
_STOPPED: Final = "called when the thread is inactive"


Leases: TypeAlias = Mapping[str, tuple[str, ...]]
"""The addresses of each MAC address, the newest lease first."""


class LeaseNews:
    """Tells news from repetition. `clock` gives a monotonic time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guests: AbstractSet[str] = frozenset()
        self._awaited: AbstractSet[str] = frozenset()
        self._had: dict[str, float] = {}
        self._known: dict[str, Leases] = {}

    def follow(self, guests: AbstractSet[str], awaited: AbstractSet[str]) -> None:
        """Say which MAC addresses guests have, and of which nobody has told an address yet.

        A guest has one first lease, also where it gives that back or reboots: it could have many of them otherwise.
        """
        now = self._clock()
        seen = {mac: now if mac in guests else since for mac, since in self._had.items()}
        self._had = {mac: since for mac, since in seen.items() if now - since < _FORGOTTEN_S}
        self._guests, self._awaited = guests, awaited - self._had.keys()

    def kind(self, bridge: str, now: Leases | None) -> ReasonKind | None:
        """Give what the file of a bridge tells, `None` for nothing; a file that cannot be read may tell anything."""
        before = self._known.pop(bridge, None)
        if now is None:
            return ReasonKind.LEASES
        self._known[bridge], known = now, before or {}
        changed = {mac for mac in now.keys() | known.keys() if now.get(mac) != known.get(mac)}
        if first := self._awaited & now.keys():
            self._awaited -= first
            self._had |= dict.fromkeys(first, self._clock())
            return ReasonKind.FIRST_LEASE
        is_news = before is None or changed & self._guests or changed & now.keys()
        return ReasonKind.LEASES if is_news else None


def read_leases(text: bytes | None) -> Leases | None:
    """Read what dnsmasq's helper writes; `None` where that is none of its files, or too large to be worth it."""
    if text is None or len(text) > _LARGEST:
        return None
    found = defaultdict[str, list[tuple[float, str]]](list)
    try:
        for lease in json.loads(text):
            expiry = float(lease.get("expiry-time") or "inf")
            found[str(lease["mac-address"]).lower()].append((-expiry, str(lease["ip-address"])))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None
    return {mac: tuple(address for _, address in sorted(leases)) for mac, leases in found.items()}


class LeaseWatch:
    """Calls `trigger` with a reason, on the loop's thread, when leases or reservations change.

    watchdog's threads live from `start` to `close`. What they take is taken from `guests`.
    """

    def __init__(self, trigger: Trigger, guests: Budget, directory: Path = DNSMASQ_DIRECTORY) -> None:
        self._trigger, self._guests = trigger, guests
        self._directory = directory
        self._observer: Any = None  # watchdog's Observer is a variable, not a type
        self._watched: Path | None = None
        self._news = LeaseNews()
        self._received = 0
        self._resting: asyncio.TimerHandle | None = None
        self._warning, self._pauses = WarnOnce(), Backoff(_AGAIN_S, _AGAIN_AT_MOST_S)

    def start(self) -> None:
        """Watch. Where that cannot be done, it says so once, and tries again, ever more seldom."""
        logging.getLogger("watchdog.observers.inotify").addFilter(_is_news)
        self._loop = asyncio.get_running_loop()
        self._begin()

    def close(self) -> None:
        """Stop watchdog's threads and wait for their end."""
        if self._resting is not None:
            self._resting.cancel()
        if self._observer is not None and self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        self._observer = None

    def follow(self, guests: AbstractSet[str], awaited: AbstractSet[str]) -> None:
        """Say which MAC addresses guests have, and of which nobody has told an address yet."""
        self._news.follow(guests, awaited)

    def dispatch(self, event: "FileSystemEvent") -> None:
        """Take an event on watchdog's thread; this is all that watchdog asks of a handler."""
        if event.event_type in _CHANGES:
            # Only a move had a destination before watchdog 4.
            path, began = Path(os.fsdecode(getattr(event, "dest_path", "") or event.src_path)), time.thread_time()
            leases = read_leases(_content(path)) if path.suffix == _LEASES else None
            self._loop.call_soon_threadsafe(self._changed, path, leases, time.thread_time() - began)

    def _changed(self, path: Path, leases: Leases | None, cost: float) -> None:
        self._guests.spent(_COSTS_S + cost)
        if self._observer is None or self._resting is not None:
            return
        if path.parent == self._directory:
            if (kind := self._kind(path, leases)) is not None:
                self._trigger(Reason(kind, path.stem))
        elif self._aim() and self._watched == self._directory:
            self._trigger(Reason(ReasonKind.LEASE_DIRECTORY, str(self._directory)))
        self._received += 1
        if rest := self._guests.rest():
            self._rest(max(rest, _REST_S))
        elif self._received >= _RENEWED_AFTER:
            self._renew()

    def _kind(self, path: Path, leases: Leases | None) -> ReasonKind | None:
        with self._guests.charged(time.thread_time):
            return self._news.kind(path.stem, leases) if path.suffix == _LEASES else _REASONS.get(path.suffix)

    def _rest(self, seconds: float) -> None:
        self._observer.unschedule_all()
        self._resting = self._loop.call_later(seconds, self._renew)

    def _renew(self) -> None:
        """Watch anew. What changes between the two watches is heard by neither."""
        with self._guests.charged(time.thread_time):
            begun = self._begin()
        if begun:
            self._trigger(Reason(ReasonKind.LEASES_WATCHED))

    def _begin(self) -> bool:
        self._resting = None
        self._received, self._watched = 0, None
        return self._aim()

    def _aim(self) -> bool:
        """Watch the directory, or the nearest above it; whether that changed."""
        try:
            if self._observer is None:
                self._observer = _started_observer()
            moved = self._aimed()
        except (OSError, RuntimeError) as error:  # no watch, descriptor or thread is to be had
            self._later(error)
            return False
        self._warning.settle(f"{self._directory} is watched again")
        self._pauses.settle()
        return moved

    def _later(self, error: OSError | RuntimeError) -> None:
        self._warning.warn(
            f"DHCP leases are noticed with delay, as {self._directory} cannot be watched, trying again: {error}"
        )
        if self._observer is not None:
            self._observer.unschedule_all()
        self._resting = self._loop.call_later(self._pauses.next(), self._renew)

    def _aimed(self) -> bool:
        """Repeat until nothing more appears."""
        moved = False
        while (nearest := self._nearest()) != self._watched:
            self._observer.unschedule_all()
            _have_threads(_THREADS)
            self._observer.schedule(self, str(nearest), recursive=False)
            self._watched, moved = nearest, True
        return moved

    def _nearest(self) -> Path:
        return next(path for path in (self._directory, *self._directory.parents) if path.is_dir())


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # it has gone
        return None


# How many threads a watch takes. Where one of them cannot start, watchdog 6.0 loses the descriptors of the watch.
_THREADS: Final = 2


def _have_threads(number: int) -> None:
    """Raise RuntimeError where so many more threads cannot be started."""
    over = threading.Event()
    begun: list[threading.Thread] = []
    try:
        for _ in range(number):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            begun.append(thread)
    finally:
        over.set()
        for thread in begun:
            thread.join()


def _started_observer() -> Any:
    """Make one and start it: from Python 3.13 on, one that could not be started never can."""
    from watchdog.observers import Observer  # noqa: PLC0415 - only `run` needs it

    observer = Observer()  # from watchdog 6 on, this starts a thread already
    observer.start()
    return observer


def _is_news(record: logging.LogRecord) -> bool:
    """Whether something that watchdog logs is worth a line."""
    return _STOPPED not in record.getMessage()
