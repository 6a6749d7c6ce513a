"""Keeps the program small: what thousands of forwards take for a moment, the C library would keep for later."""

import ctypes
from functools import cache
from typing import Any

# glibc's <malloc.h>; see mallopt(3).
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_LARGE = 128 << 10


def be_frugal() -> None:
    """Have all threads share one heap, and large blocks go back to the system once they are free.

    By itself, glibc gives a heap to each thread, and takes what was large once for small from then on. Does nothing
    with other C libraries.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Give back what is free; it takes a millisecond. Does nothing where the C library has no such call."""
    if (trim := _function("malloc_trim")) is not None:
        trim(0)


@cache  # each time the library is opened, ctypes makes a class anew
def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
