"""What other programs keep in external sets, as it was seen last, whichever rule system has them.

How it is read and put back is the business of the backends.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from threading import Lock

from fwdaemon.core.admission import Element, Elements, Place, Ranges


def now() -> float:
    """Give the time in seconds, by a clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Externals:
    """The elements of external sets, as they were seen last; used by several threads.

    Times are seconds of one clock that nobody sets. `names` are the sets there are. `news` is called, on the thread
    that saw them, where there are more elements or fewer; `remembered` are places where nothing was seen yet, of which
    only what an earlier run wrote down is known.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[Place, dict[Element, float | None]] = {}
        self._added = False
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

    def ranges(self, now: float) -> dict[Place, Ranges]:
        """Give who is in them."""
        return {place: Ranges(elements) for place, elements in self.everything(now).items()}

    def replace(self, place: Place, elements: Elements) -> None:
        """Take what a set holds, whatever was known of it."""
        with self._lock:
            before = self._held.get(place, {})
            self._held[place] = dict(elements)
            self.doubted.discard(place)
            self._added |= bool(elements.keys() - before.keys())
        if before.keys() != elements.keys():
            self.news()

    def change(self, place: Place, added: Elements, removed: Iterable[Element]) -> None:
        """Take what has just been added to a set, and removed from it."""
        with self._lock:
            held = self._held.setdefault(place, {})
            for element in removed:
                held.pop(element, None)
            self._added |= bool(added.keys() - held.keys())
            held.update(added)
        self.news()

    def take_added(self) -> bool:
        """Tell whether there was anything more since the last time."""
        with self._lock:
            added, self._added = self._added, False
        return added
