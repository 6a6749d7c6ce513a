"""What other programs keep in external sets, of whichever rule system, as it was seen last."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from threading import Lock
from typing import Final, NamedTuple

from fwdaemon.core.admission import Element, Elements, Place, Ranges
from fwdaemon.core.types import Address, Family


def now() -> float:
    """Give the time in seconds, by a clock that cannot be set and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# To look for the connections of more addresses than these, one by one, is more work than to look at all.
_ONE_BY_ONE: Final = 8


class Added(NamedTuple):
    """What there is more: a few `addresses`, or `many`."""

    addresses: frozenset[Address] = frozenset()
    many: bool = False

    def more(self, place: Place, elements: Collection[Element]) -> "Added":
        """Give that and some elements more."""
        if self.many or len(elements) > _ONE_BY_ONE or any(element.first != element.last for element in elements):
            return Added(many=self.many or bool(elements))
        kind = IPv4Address if place[0] is Family.IPV4 else IPv6Address
        addresses = self.addresses.union(kind(element.first) for element in elements)
        return Added(addresses) if len(addresses) <= _ONE_BY_ONE else Added(many=True)


class Externals:
    """The elements of external sets, as they were seen last; used by several threads.

    Times are seconds of one `clock` that cannot be set. `names` are the sets there are. `news` is called, on the thread
    that saw them, where there are more elements or fewer; `remembered` are places where nothing was seen yet, of which
    only what an earlier run wrote down is known.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self._lock, self._clock = Lock(), clock
        self._held: dict[Place, dict[Element, float | None]] = {}
        self._added = Added()
        self.names: frozenset[str] = frozenset()
        self.doubted: set[Place] = set()
        self.news: Callable[[], object] = lambda: None

    def remember(self, places: Mapping[Place, Elements]) -> None:
        """Take what an earlier run saw."""
        with self._lock:
            self._held |= {place: dict(elements) for place, elements in places.items()}
            self.doubted |= places.keys()

    def is_seen(self, place: Place) -> bool:
        """Whether it is known what is in a set."""
        with self._lock:
            return place in self._held and place not in self.doubted

    def doubt(self) -> None:
        """Have all sets read again: some changes went unheard."""
        with self._lock:
            self.doubted |= self._held.keys()

    def beginning(self, place: Place) -> dict[int, Element]:
        """Give the elements of a set by their first addresses."""
        with self._lock:
            return {element.first: element for element in self._held.get(place, {})}

    @property
    def number(self) -> int:
        """How many elements there are, also of those that have ended."""
        with self._lock:
            return sum(map(len, self._held.values()))

    def left(self, place: Place, now: float) -> dict[Element, float | None]:
        """Give the elements of a set, each with the seconds that are left of it."""
        with self._lock:
            held = dict(self._held.get(place, {}))
        left = {element: None if end is None else end - now for element, end in held.items()}
        return {element: rest for element, rest in left.items() if rest is None or rest > 0}

    def everything(self, now: float) -> dict[Place, dict[Element, float | None]]:
        """Give those of all sets."""
        with self._lock:
            places = [place for place in self._held if place[1] in self.names]
        return {place: self.left(place, now) for place in places}

    def ranges(self) -> dict[Place, Ranges]:
        """Give who is in them now."""
        return {place: Ranges(elements) for place, elements in self.everything(self._clock()).items()}

    def replace(self, place: Place, elements: Elements) -> None:
        """Take what a set holds, whatever was known of it."""
        with self._lock:
            before = self._held.get(place, {})
            self._held[place] = dict(elements)
            self.doubted.discard(place)
            self._note(place, elements.keys() - before.keys())
        if before.keys() != elements.keys():
            self.news()

    def change(self, place: Place, added: Elements, removed: Iterable[Element]) -> None:
        """Take what has just been added to a set, and removed from it."""
        with self._lock:
            held = self._held.setdefault(place, {})
            for element in removed:
                held.pop(element, None)
            self._note(place, added.keys() - held.keys())
            held.update(added)
        self.news()

    def take_added(self) -> Added:
        """Say what there was more since the last time."""
        with self._lock:
            added, self._added = self._added, Added()
        return added

    def _note(self, place: Place, elements: Collection[Element]) -> None:
        self._added = self._added.more(place, elements)
