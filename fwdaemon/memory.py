"""Keeps the program small: what thousands of forwards take for a moment, C library and Python would keep for later."""

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

# glibc's <malloc.h>; see mallopt(3).
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_LARGE = 128 << 10
_COLLECTED_EVERY_S: Final = 60.0


class _Collection:
    """When all of Python's objects were last looked through, by `time.monotonic`; `None` before the first time."""

    at: float | None = None


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

    What is made for thousands of forwards stays, so that all but the last look finds nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(0)


def give_back() -> None:
    """Give back what is free; it takes a millisecond, and some more once a minute at most."""
    now = time.monotonic()
    if _Collection.at is None or now >= _Collection.at + _COLLECTED_EVERY_S:
        _collect(first=_Collection.at is None)
        _Collection.at = now
    if (trim := _function("malloc_trim")) is not None:
        trim(0)


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
