"""Logic with a third value: what cannot be told is never taken for a yes or a no (Kleene's strong logic). Pure."""

from collections.abc import Iterable
from enum import IntEnum


class Truth(IntEnum):
    """The values, in the order that makes *and* the least of several and *or* the greatest."""

    NO = 0
    UNKNOWN = 1
    YES = 2


def told(known: bool) -> Truth:  # noqa: FBT001  a plain truth value is what it turns into one of ours
    """Give the value of what is known."""
    return Truth.YES if known else Truth.NO


def negated(truth: Truth) -> Truth:
    """Give the opposite; of what cannot be told it cannot be told either."""
    return Truth(Truth.YES - truth)


def all_of(truths: Iterable[Truth]) -> Truth:
    """Tell whether every one holds; of none, yes."""
    return min(truths, default=Truth.YES)


def any_of(truths: Iterable[Truth]) -> Truth:
    """Tell whether one of them holds; of none, no."""
    found = Truth.NO
    for truth in truths:
        if truth is Truth.YES:
            return truth
        found = max(found, truth)
    return found
