"""How several things are told in one sentence. Pure."""

from collections.abc import Sequence
from typing import Final

_MOST: Final = 3


def listed(items: Sequence[str]) -> str:
    """Name at most three, and say how many more there are: `a, b, c and 4 more`."""
    more = [f"{len(items) - _MOST} more"] if len(items) > _MOST else []
    *first, last = [*items[:_MOST], *more]
    return f"{', '.join(first)} and {last}" if first else last
