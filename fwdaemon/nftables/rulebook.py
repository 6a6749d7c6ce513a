"""The tables of the state that was asked for last, brought up to date by what is different in the next. Pure.

What `ruleset.tables` makes whole, this makes of what it made before: only slots whose forwards came or went get new
branches. Everything else in the new table is the same object as in the old one, by which `difference` passes it over.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from fwdaemon.desired import Desired, Forward, Opening
from fwdaemon.model import Family
from fwdaemon.nftables.branches import TARGETS, Branch, of_addresses, of_slot
from fwdaemon.nftables.model import Chain, Table, Target
from fwdaemon.nftables.places import Place, Places
from fwdaemon.nftables.ruleset import frame, with_elements
from fwdaemon.slots import SlotIndex


class Rulebook:
    """Makes tables, and remembers those of one state."""

    def __init__(self) -> None:
        self._desired = Desired()
        self._pages: dict[Family, _Page] = {}
        self._tables: dict[Family, Table] = {}

    def tables(self, desired: Desired) -> dict[Family, Table]:
        """Make the table of each family that needs one, equal to those of `ruleset.tables`."""
        if desired is not self._desired:
            before, pages = self._desired, self._pages
            # A mistake on the way leaves nothing half done behind.
            self._desired, self._pages = Desired(), {}
            if desired.mark != before.mark:
                before, pages = Desired(), {}
            self._tables = _turned(pages, before, desired)
            self._desired, self._pages = desired, pages
        return self._tables

    def openings(self, family: Family, places: Places) -> Iterator[Opening]:
        """Tell which openings are in these places; a place of the kernel's that we do not want has none."""
        page = self._pages.get(family)
        known = page.openings if page else {}
        served = known.values() if places.every else (known.get(place, ()) for place in places.named)
        return chain.from_iterable(served)


class _Page:
    """One family: its slots, and what its branches are in the table. `openings` are those of each place."""

    def __init__(self, family: Family) -> None:
        self.openings: dict[Place, tuple[Opening, ...]] = {}
        self._family = family
        self._slots = SlotIndex()
        self._addresses: list[Branch] = []
        self._chains: dict[str, Chain] = {}
        self._elements: defaultdict[str, dict[str, str | Target | None]] = defaultdict(dict)

    def change(self, gone: Collection[Forward], come: Collection[Forward], desired: Desired) -> None:
        """Take out and put in what is different."""
        before, after = self._slots.change(gone, come)
        old = [of_slot(slot, desired.mark) for slot in before]
        new = [of_slot(slot, desired.mark) for slot in after]
        addresses = list(of_addresses(self._family, desired))
        if addresses != self._addresses:
            old, new = old + self._addresses, new + addresses
            self._addresses = addresses
        if old or new:
            self._replace(old, new)

    def table(self, desired: Desired) -> Table:
        """Give the table as it is now; what is changed later does not change it."""
        return with_elements(frame(self._family, desired), self._chains, self._elements)

    def _replace(self, old: Iterable[Branch], new: Iterable[Branch]) -> None:
        """Change copies: tables that were given hold what is there now."""
        self._chains = dict(self._chains)
        self._elements = defaultdict(dict, {name: dict(elements) for name, elements in self._elements.items()})
        for branch in old:
            self._take_out(branch)
        for branch in new:
            self._put_in(branch)

    def _take_out(self, branch: Branch) -> None:
        del self.openings[branch.place], self._elements[branch.map][branch.key]
        if branch.target is None:
            del self._chains[branch.chain]
        else:
            del self._elements[TARGETS[branch.map]][branch.key]

    def _put_in(self, branch: Branch) -> None:
        self.openings[branch.place] = branch.openings
        self._elements[branch.map][branch.key] = branch.chain
        if branch.target is None:
            self._chains[branch.chain] = Chain(branch.rules)
        else:
            self._elements[TARGETS[branch.map]][branch.key] = branch.target


def _turned(pages: dict[Family, _Page], before: Desired, desired: Desired) -> dict[Family, Table]:
    """Bring the pages from one state to another, and give the tables."""
    gone, come = _by_family(before.forwards - desired.forwards), _by_family(desired.forwards - before.forwards)
    for family in desired.families | pages.keys():
        pages.setdefault(family, _Page(family)).change(gone[family], come[family], desired)
    return {family: pages[family].table(desired) for family in sorted(desired.families)}


def _by_family(forwards: Iterable[Forward]) -> defaultdict[Family, list[Forward]]:
    found: defaultdict[Family, list[Forward]] = defaultdict(list)
    for forward in forwards:
        found[forward.family].append(forward)
    return found
