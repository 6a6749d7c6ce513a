"""Elements that other programs keep in sets of our tables: read, heard of, and put back.

`nft` takes seconds to list a hundred thousand of them, so they are read as the kernel lists them, and only where it is
not known what changed. Source: `NFTA_SET_ELEM_*` in linux/netfilter/nf_tables.h; a range is two elements there, where
it begins and where the next address is no longer in it.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from math import ceil
from typing import Final, NamedTuple

from fwdaemon.core.admission import Element, Place
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.kernel.external_sets import Externals, now
from fwdaemon.kernel.netlink import Message, attributes, nested
from fwdaemon.nftables.admission import DENY, LARGE, external_name, set_name, unfilled
from fwdaemon.nftables.model import TABLE_NAME, Chain, Rule, Table, element_lines, table_name

_log = logging.getLogger(__name__)


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
    """Say in which of our sets a message has elements; `None` is another's, or no set that others may fill."""
    found = attributes(message.body[_GENERIC:])
    name = found.get(_SET, b"").rstrip(b"\0").decode(errors="replace")
    family = _FAMILIES.get(message.body[0]) if message.body else None
    named = external_name(name)
    if family is None or named is None or found.get(_TABLE, b"").rstrip(b"\0") != TABLE_NAME.encode():
        return None
    return family, named


def bounds_of(message: Message) -> Iterator[Bound]:
    """Read the elements in a message; what is no address, as in a set of that name with another type, is none."""
    size = _FAMILIES[message.body[0]].bits // 8
    for _, element in nested(attributes(message.body[_GENERIC:]).get(_ELEMENTS, b"")):
        parts = attributes(element)
        flags = int.from_bytes(parts.get(_FLAGS, b""))
        key = attributes(parts.get(_KEY, b"")).get(_VALUE)
        if key is None or len(key) != size or flags & _CATCH_ALL:
            continue
        expires = parts.get(_EXPIRATION, parts.get(_TIMEOUT))
        left = int.from_bytes(expires) / 1000 if _TIMEOUT in parts and expires is not None else None
        yield Bound(int.from_bytes(key), bool(flags & _ENDS), left)


def paired(bounds: Iterable[Bound], family: Family) -> dict[Element, float | None]:
    """Make ranges of where they begin and end; each has the seconds that are left of it."""
    found: dict[Element, float | None] = {}
    begun: Bound | None = None
    for bound in sorted(bounds, key=lambda bound: (bound.key, not bound.is_end)):
        if begun is not None and begun.key < bound.key:
            found[Element(begun.key, bound.key - 1)] = begun.left
        begun = None if bound.is_end else bound
    if begun is not None:
        found[Element(begun.key, (1 << family.bits) - 1)] = begun.left
    return found


def announced(bounds: Iterable[Bound]) -> tuple[dict[Element, float | None], list[Bound]]:
    """Make ranges of bounds in the order in which the kernel announces them, and give those without an end apart.

    Of what is added once more though it is there, it announces but the beginning.
    """
    found: dict[Element, float | None] = {}
    alone: list[Bound] = []
    for bound in bounds:
        if not bound.is_end:
            alone.append(bound)
        elif alone and alone[-1].key < bound.key:
            begun = alone.pop()
            found[Element(begun.key, bound.key - 1)] = begun.left
    return found, alone


class Hearing:
    """Follows what others change in external sets: what is announced of one commit is reported once it is over."""

    def __init__(self, externals: Externals) -> None:
        self._externals = externals
        self._changes: defaultdict[Place, list[tuple[bool, list[Bound]]]] = defaultdict(list)

    def takes(self, message: Message, *, added: bool) -> bool:
        """Take a message about elements, if they are in an external set."""
        place = place_of(message)
        if place is None or place[1] not in self._externals.names:
            return False
        turns = self._changes[place]
        if not turns or turns[-1][0] is not added:  # one commit may add an element, delete it and add it again
            turns.append((added, []))
        turns[-1][1].extend(bounds_of(message))
        return True

    def committed(self) -> None:
        """Say what a commit has changed."""
        changes, self._changes = self._changes, defaultdict(list)
        for place, turns in changes.items():
            for added, bounds in turns:
                found = self._elements(place, bounds, added=added)
                self._externals.change(place, found if added else {}, () if added else found)

    def _elements(self, place: Place, bounds: Iterable[Bound], *, added: bool) -> dict[Element, float | None]:
        """Make elements of what was announced; one without an end goes on to the last address, or is there already."""
        found, alone = announced(bounds)
        known = self._externals.beginning(place) if alone else {}
        for begun in alone:
            if begun.key not in known:
                found[Element(begun.key, (1 << place[0].bits) - 1)] = begun.left
            elif not added:
                found[known[begun.key]] = None
        return {element: _until(left) for element, left in found.items()}


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

    @property
    def crowded(self) -> bool:
        """Whether others have very many elements in our sets."""
        return self._externals.number > LARGE

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

        Clients that such a set may deny are not let in until then.
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
    """Give a table that lets no client by which one of these sets may deny, until it is full again."""
    shut = {f"{DENY}{name}" for name in names} & table.chains.keys()
    closed = {name: Chain((Rule.of("drop", "filling"),)) for name in shut}
    return Table(table.family, {**table.chains, **closed}, table.sets, table.flags) if shut else table
