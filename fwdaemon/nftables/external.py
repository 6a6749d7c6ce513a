"""Elements that other programs keep in sets of our tables: read, heard of, and put back.

`nft` takes seconds to list a hundred thousand of them, so they are read as the kernel lists them, and only where it is
not known what changed. Source: `NFTA_SET_ELEM_*` in linux/netfilter/nf_tables.h; a range is two elements there, where
it begins and where the next address is no longer in it.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from math import ceil
from threading import Lock
from typing import Final, NamedTuple

from fwdaemon.core.admission import Element, Elements, Place, Ranges
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.kernel.netlink import Message, attributes, nested
from fwdaemon.nftables.admission import DENY, LARGE, external_name, set_name, unfilled
from fwdaemon.nftables.model import TABLE_NAME, Chain, Rule, Table, element_lines, table_name

_log = logging.getLogger(__name__)


# What other programs keep in external sets, as it was seen last.
def now() -> float:
    """Give the time in seconds, by a clock that nobody sets and that goes on while the machine sleeps."""
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

    Times are seconds of one clock that nobody sets. `names` are the sets there are. `news` is called, on the thread
    that saw them, where there are more elements or fewer; `remembered` are places where nothing was seen yet, of which
    only what an earlier run wrote down is known.
    """

    def __init__(self) -> None:
        self._lock = Lock()
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
        """Tell what there was more since the last time."""
        with self._lock:
            added, self._added = self._added, Added()
        return added

    def _note(self, place: Place, elements: Collection[Element]) -> None:
        self._added = self._added.more(place, elements)


# --- as the kernel has it ---------------------------------------------------------------------------------------------

# NFTA_SET_ELEM_LIST_TABLE, _SET and _ELEMENTS; NFTA_SET_ELEM_KEY, _FLAGS, _TIMEOUT and _EXPIRATION; NFTA_DATA_VALUE.
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_KEY, _FLAGS, _TIMEOUT, _EXPIRATION, _VALUE = 1, 3, 4, 5, 1
_ENDS, _CATCH_ALL = 1, 2  # NFT_SET_ELEM_INTERVAL_END and NFT_SET_ELEM_CATCHALL
_GENERIC: Final = 4  # struct nfgenmsg; its first byte is the family
_FAMILIES: Final = {family.domain: family for family in Family}


class Bound(NamedTuple):
    """Where a range begins, or the first address behind it, and how many seconds are left of it, if it ends."""

    key: int
    is_end: bool
    left: float | None = None


def place_of(message: Message) -> Place | None:
    """Tell in which of our sets a message has elements; `None` is another's, or no set that others may fill."""
    found = attributes(message.body[_GENERIC:])
    name = found.get(_SET, b"").rstrip(b"\0").decode(errors="replace")
    family = _FAMILIES.get(message.body[0]) if message.body else None
    named = external_name(name)
    if family is None or named is None or found.get(_TABLE, b"").rstrip(b"\0") != TABLE_NAME.encode():
        return None
    return family, named


def bounds_of(message: Message) -> Iterator[Bound]:
    """Read the elements in a message."""
    for _, element in nested(attributes(message.body[_GENERIC:]).get(_ELEMENTS, b"")):
        parts = attributes(element)
        flags = int.from_bytes(parts.get(_FLAGS, b""))
        key = attributes(parts.get(_KEY, b"")).get(_VALUE)
        if key is None or flags & _CATCH_ALL:
            continue
        expires = parts.get(_EXPIRATION, parts.get(_TIMEOUT))
        left = int.from_bytes(expires) / 1000 if _TIMEOUT in parts and expires is not None else None
        yield Bound(int.from_bytes(key), bool(flags & _ENDS), left)


def paired(bounds: Iterable[Bound], family: Family) -> dict[Element, float | None]:
    """Make ranges of where they begin and end; each has the seconds that are left of it."""
    found: dict[Element, float | None] = {}
    begun: Bound | None = None
    for bound in sorted(bounds, key=lambda bound: (bound.key, not bound.is_end)):
        if begun is not None:
            found[Element(begun.key, bound.key - 1)] = begun.left
        begun = None if bound.is_end else bound
    if begun is not None:
        found[Element(begun.key, (1 << family.bits) - 1)] = begun.left
    return found


class Hearing:
    """Follows what others change in external sets: what is announced of one commit is told once it is over."""

    def __init__(self, externals: Externals) -> None:
        self._externals = externals
        self._changes: dict[Place, tuple[list[Bound], list[Bound]]] = defaultdict(lambda: ([], []))

    def takes(self, message: Message, *, added: bool) -> bool:
        """Take a message about elements, if they are in an external set."""
        place = place_of(message)
        if place is None or place[1] not in self._externals.names:
            return False
        self._changes[place][not added].extend(bounds_of(message))
        return True

    def committed(self) -> None:
        """Tell what a commit has changed."""
        changes, self._changes = self._changes, defaultdict(lambda: ([], []))
        for place, (added, removed) in changes.items():
            ends = {element: _until(left) for element, left in paired(added, place[0]).items()}
            self._externals.change(place, ends, paired(removed, place[0]))


def _until(left: float | None) -> float | None:
    return None if left is None else now() + left


# --- kept ------------------------------------------------------------------------------------------------------------


class ExternalKeeper:
    """Knows what is in external sets of our tables, and puts it back where these had to be made again."""

    def __init__(self, externals: Externals, listed: Callable[[Family, str], Iterable[Message]]) -> None:
        """Take what lists the elements of a set of our table in the kernel."""
        self._externals, self._listed = externals, listed
        self._pending: set[Place] = set()
        self._gives_up = False

    def expect(self, desired: Desired) -> None:
        """Say which sets there are."""
        self._externals.names = frozenset(item.name for item in desired.sets if item.external)

    def read(self, tables: Mapping[Family, Table]) -> None:
        """Read what is in sets of which that is not known.

        A table without our chains was made by others after a wipe, so what was known before is put back.
        """
        for place in external_places(tables):
            family, name = place
            if name not in self._externals.names or self._externals.is_seen(place):
                continue
            before = self._externals.left(place, now())
            messages = self._listed(family, set_name(name, family, 0))
            there = paired((bound for message in messages for bound in bounds_of(message)), family)
            self._externals.replace(place, {element: _until(left) for element, left in there.items()})
            if "forwards" not in tables[family].chains:
                missing = {element: _until(left) for element, left in before.items() if element not in there}
                self._externals.change(place, missing, ())
                self._pending.add(place)

    def quickly(self, made: Mapping[Family, Table]) -> tuple[dict[Family, Table], str]:
        """Give tables that are made in no time, and what puts elements back; a large set is filled by the next pass.

        Whom such a set may deny is not let in until then.
        """
        places = set(external_places(made))
        slow = {place for place in places if len(self._externals.left(place, now())) > LARGE}
        self._pending |= slow
        tables = {
            family: _shut_for(unfilled(table), [name for kind, name in slow if kind is family])
            for family, table in made.items()
        }
        return tables, self._refilling(places - slow)

    def refilling(self, places: Collection[Place]) -> str:
        """Write what puts elements back into sets that are being made, and into those that wait for it."""
        return "" if self._gives_up else self._refilling(self._pending.union(places))

    def _refilling(self, places: Iterable[Place]) -> str:
        return "".join(f"{line}\n" for place in sorted(places) for line in _put_back(self._externals, place))

    def done(self) -> None:
        """Say that this was committed."""
        self._pending.clear()
        self._gives_up = False

    def give_up(self) -> None:
        """Put nothing back the next time: all else goes before what the kernel may have refused."""
        if not self._gives_up and self._externals.names:
            _log.warning("what others had put into sets may be lost: the kernel refused to take it back")
        self._gives_up = True


def external_places(tables: Mapping[Family, Table]) -> Iterator[Place]:
    """Give the external sets of tables."""
    for family, table in tables.items():
        for name, item in table.sets.items():
            if item.type.external and (named := external_name(name)) is not None:
                yield family, named


def _put_back(externals: Externals, place: Place) -> Iterator[str]:
    family, name = place
    where = f"{table_name(family)} {set_name(name, family, 0)}"
    texts = [_written(family, element, left) for element, left in externals.left(place, now()).items()]
    return element_lines("add", where, texts)


def _written(family: Family, element: Element, left: float | None) -> str:
    kind = IPv4Address if family is Family.IPV4 else IPv6Address
    first, last = kind(element.first), kind(element.last)
    timeout = "" if left is None else f" timeout {ceil(left)}s"
    return f"{first if first == last else f'{first}-{last}'}{timeout}"


def _shut_for(table: Table, names: Iterable[str]) -> Table:
    """Give a table that lets nobody by whom one of these sets may deny, until it is full again."""
    shut = {f"{DENY}{name}" for name in names} & table.chains.keys()
    closed = {name: Chain((Rule.of("drop", "filling"),)) for name in shut}
    return Table(table.family, {**table.chains, **closed}, table.sets, table.flags) if shut else table
