"""Finds what has to do with a range of ports without looking at everything. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Final, Generic, TypeVar

from fwdaemon.model import PortRange

_T = TypeVar("_T")

# What has more ports than this is looked at each time: else it would have to be looked for far below each port.
_WIDE: Final = 64
_HIGHEST: Final = 65535


class PortIndex(Generic[_T]):
    """Items by the ports that each of them has."""

    def __init__(self, items: Iterable[tuple[PortRange, _T]]) -> None:
        ordered = sorted(items, key=itemgetter(0))
        self._wide = [item for item in ordered if item[0].width > _WIDE]
        self._narrow = [item for item in ordered if item[0].width <= _WIDE]
        self._firsts = [ports.first for ports, _ in self._narrow]

    def meeting(self, ports: PortRange) -> Iterator[_T]:
        """Give the items that have any of these ports."""
        begin = bisect_left(self._firsts, ports.first - _WIDE + 1)
        end = bisect_right(self._firsts, ports.last)
        for found, item in self._narrow[begin:end]:
            if found.last >= ports.first:
                yield item
        for found, item in self._wide:
            if found.overlaps(ports):
                yield item


class PortSet:
    """Ports by their numbers; whether a range has one of them is told without looking at each, however wide it is."""

    def __init__(self, ranges: Iterable[PortRange]) -> None:
        self._marks = bytearray(_HIGHEST + 1)
        for ports in ranges:
            self._marks[ports.first : ports.last + 1] = b"\1" * ports.width

    def met_by(self, ranges: Iterable[PortRange]) -> list[bool]:
        """Tell of each range whether it has one of them; there may be thousands, nearly all of one port."""
        marks, ends = self._marks, map(attrgetter("first", "last"), ranges)
        return [marks[first] > 0 if first == last else marks.find(1, first, last + 1) >= 0 for first, last in ends]
