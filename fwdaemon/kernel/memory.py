"""Memory, descriptors and threads: kept small, and what is done where none is left."""

import asyncio
import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.errors import PortfwdError, shortage
from fwdaemon.triggers import Backoff

# Keeps the program small: what thousands of forwards take for a moment, C library and Python would keep for later.

# glibc's <malloc.h>; see mallopt(3).
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_LARGE = 128 << 10
_COLLECTED_EVERY_S: Final = 60.0


def be_frugal() -> None:
    """Have all threads share one heap, and large blocks go back to the system once they are free.

    By itself, glibc gives a heap to each thread, and takes what was large once for small from then on. Does nothing
    with other C libraries.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGE)


@contextmanager
def collecting_later() -> Iterator[None]:
    """Have Python look through new objects once, at the end, and not after each few hundred of them.

    What is made for thousands of forwards stays, so that all collections but the last find nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(0)


class Thrift:
    """Knows when all of Python's objects were last looked through, by `clock`; there is one for a program."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._collected: float | None = None

    def give_back(self) -> None:
        """Give back what is free; it takes a millisecond, and some more once a minute at most."""
        now = self._clock()
        if self._collected is None or now >= self._collected + _COLLECTED_EVERY_S:
            _collect(first=self._collected is None)
            self._collected = now
        if (trim := _function("malloc_trim")) is not None:
            trim(0)


give_back: Final = Thrift().give_back


def _collect(*, first: bool) -> None:
    """Let go of what refers to itself, and of Python's stores of empty objects, for which that takes a full collection.

    Up to 2,000 tuples of each size are kept (PyTuple_MAXFREELIST in CPython), some megabytes, and Python looks through
    all objects by itself only when a quarter of them is new, which hardly ever happens here. What was there the first
    time stays, so that no later collection looks through it.
    """
    gc.collect()
    if first:
        gc.freeze()


@cache  # each time the library is opened, ctypes makes a class anew
def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)


# What is done where this program has no descriptor, thread or memory left: it is tried again, and reported once.
#
# For a client, asyncio tries to accept again each second, up to a hundred times for each socket, and logs every
# time.
_log = logging.getLogger(__name__)

# How long such news are not repeated, doubled each time up to the second figure.
_PAUSE_S = 60.0
_PAUSE_AT_MOST_S = 3600.0
# How soon something is tried again, or a thread, doubled each time up to the third figure.
_AGAIN_S, _THREAD_AGAIN_S = 0.5, 1.0
_AGAIN_AT_MOST_S = 30.0


def have_threads(number: int) -> None:
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


async def begun(begin: Callable[[], None], again: float = _AGAIN_S) -> None:
    """Call this until nothing is short, with pauses that grow from `again` seconds on; a shortage is reported once."""
    pauses, warning = Backoff(again, _AGAIN_AT_MOST_S), WarnOnce()
    while True:
        try:
            begin()
        except (PortfwdError, OSError) as error:
            if (short := shortage(error)) is None:
                raise
            warning.warn(f"{short}: what the daemon listens to is not there yet; trying again, less and less often")
        else:
            warning.settle("what the daemon listens to is there now")
            return
        await asyncio.sleep(pauses.next())


class Beside:
    """Begins a thread when there is something to do, which ends once that is done.

    What failed, as no thread is to be had, is tried again by who calls `begin` at `due`, a time of `clock`: after
    pauses that grow. It is reported once, as what is `missing` meanwhile, and once more when it is over.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], None],
        missing: str,
        clock: Callable[[], float] = time.monotonic,
        pauses: Backoff | None = None,
    ) -> None:
        self._name, self._run, self._missing = name, run, missing
        self._clock = clock
        self._pauses = pauses or Backoff(_THREAD_AGAIN_S, _AGAIN_AT_MOST_S)
        self._warning = WarnOnce()
        self.due: float | None = None

    def begin(self, *, at_once: bool = False) -> bool:
        """Begin, and tell whether that was done: not before what failed is due, unless `at_once`."""
        if not at_once and self.due is not None and self._clock() < self.due:
            return False
        self.due = None
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as error:
            self.failed(error)
            return False
        return True

    def failed(self, error: Exception) -> None:
        """Note that it could not be done, from its thread or for want of one."""
        self.due = self._clock() + self._pauses.next()
        self._warning.warn(f"{self._missing}: {shortage(error) or error}; trying again, less and less often")

    def done(self) -> None:
        """Note that it was done."""
        self._pauses.settle()
        self._warning.settle(f"over: {self._missing}")


class ShortageHandler:
    """An exception handler for a loop: reports a shortage once in a while, and everything else as asyncio does."""

    def __init__(self) -> None:
        self._again_at = float("-inf")
        self._pauses = Backoff(_PAUSE_S, _PAUSE_AT_MOST_S)

    def __call__(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Take what asyncio reports."""
        error = context.get("exception")
        if not isinstance(error, OSError) or shortage(error) is None:
            loop.default_exception_handler(dict(context))
        elif time.monotonic() >= self._again_at:
            _log.error("no client is accepted until there is room again: %s", error.strerror)
            self._again_at = time.monotonic() + self._pauses.next()
