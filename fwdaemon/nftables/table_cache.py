"""The tables of the state that was asked for last, brought up to date by the next, and what their rules count. Pure.

What `ruleset.tables` makes whole, this makes of what it made before: only port segments whose forwards came or went get
new dispatch chains. Everything else in the new table is the same object as in the old one, and need not be compared
with it.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from itertools import chain
from typing import NamedTuple, TypeAlias
from weakref import ref

from fwdaemon.core.exposures import Exposure, Forward
from fwdaemon.core.state import Counted, Desired, Dropped, by_family
from fwdaemon.core.types import PROTOCOLS, Address, Family
from fwdaemon.nftables.admission import DENY, terms
from fwdaemon.nftables.dispatch_chains import (
    EVERY_ADDRESS,
    LEAVING_AS,
    ONE_ADDRESS,
    TARGETS,
    TO_PUBLIC,
    DispatchChain,
    MapKeys,
    dispatch_chains,
    elements_of,
    of_addresses,
    of_segment,
)
from fwdaemon.nftables.model import Chain, Held, Step, Table
from fwdaemon.nftables.ruleset import frame, with_elements
from fwdaemon.resolve.segments import SegmentIndex


class TableCache:
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
            if any(terms(family, desired) != terms(family, before) for family in Family):
                before, pages = Desired(), {}
            self._tables = _turned(pages, before, desired)
            self._desired, self._pages = desired, pages
        return self._tables

    def exposures(self, family: Family, map_keys: MapKeys) -> Iterator[Exposure]:
        """Say which exposures these keys serve; a key of the kernel's that we do not want serves none."""
        page = self._pages.get(family)
        known = page.exposures if page else {}
        if map_keys.every:
            return chain.from_iterable(served for keys in known.values() for served in keys.values())
        return chain.from_iterable(known[name].get(key, ()) for name, key in map_keys.named if name in known)

    def served(self, found: Mapping[Family, MapKeys]) -> frozenset[Exposure]:
        """Name the exposures that are served under these keys."""
        return frozenset(chain.from_iterable(self.exposures(family, map_keys) for family, map_keys in found.items()))


class _Made(NamedTuple):
    """A table, and the frame it was made with."""

    frame: Table
    table: Table


class _Page:
    """One family: its port segments and its dispatch chains in the table, and the `exposures` of each key, by map."""

    def __init__(self, family: Family) -> None:
        self.exposures: defaultdict[str, dict[str, tuple[Exposure, ...]]] = defaultdict(dict)
        self._family = family
        self._segments = SegmentIndex()
        self._addresses: list[DispatchChain] = []
        self._chains: dict[str, Chain] = {}
        self._elements: defaultdict[str, dict[str, Held]] = defaultdict(dict)
        self._touched: list[DispatchChain] = []
        self._last: _Made | None = None

    def change(self, gone: Collection[Forward], come: Collection[Forward], desired: Desired) -> None:
        """Take out and put in what is different."""
        before, after = self._segments.change(gone, come)
        shared = terms(self._family, desired)
        old = [of_segment(segment, shared) for segment in before]
        new = [of_segment(segment, shared) for segment in after]
        addresses = list(of_addresses(self._family, desired))
        if addresses != self._addresses:
            known, wanted = set(self._addresses), set(addresses)
            old += [dispatch_chain for dispatch_chain in self._addresses if dispatch_chain not in wanted]
            new += [dispatch_chain for dispatch_chain in addresses if dispatch_chain not in known]
            self._addresses = addresses
        if old or new:
            self._replace(old, new)

    def table(self, desired: Desired) -> Table:
        """Give the table as it is now, the very same where nothing is new; what changes later does not change it."""
        bare = frame(self._family, desired)
        if self._last is None or self._touched or bare != self._last.frame:
            self._last = _Made(bare, with_elements(bare, self._chains, self._elements, self._step(bare)))
            self._touched = []
        return self._last.table

    def _step(self, bare: Table) -> Step | None:
        """Say what is new since the last table: in both frames, and what was touched; `None` where that is no less."""
        if self._last is None or len(self._touched) >= sum(map(len, self.exposures.values())):
            return None
        keys: dict[str, set[str]] = {name: set() for name in self._elements}
        for name, elements in elements_of(self._touched).items():
            keys[name].update(elements)
        chains = {*self._last.frame.chains, *bare.chains, *(dispatch_chain.chain for dispatch_chain in self._touched)}
        return Step(ref(self._last.table), chains, keys)

    def _replace(self, old: Collection[DispatchChain], new: Collection[DispatchChain]) -> None:
        """Change copies: tables that were given hold what is there now."""
        self._touched += [*old, *new]
        self._chains = dict(self._chains)
        leaving, coming = elements_of(old), elements_of(new)
        for name in leaving.keys() | coming.keys():
            self._elements[name] = dict(self._elements[name])
        for name, elements in leaving.items():
            for key in elements:
                del self._elements[name][key]
        for name, elements in coming.items():
            self._elements[name].update(elements)
        for name, key, chain_name, _, _, target, _ in old:
            del self.exposures[name][key]
            if target is None:
                del self._chains[chain_name]
        for name, key, chain_name, rules, exposures, target, _ in new:
            self.exposures[name][key] = exposures
            if target is None:
                self._chains[chain_name] = Chain(rules)


def _turned(pages: dict[Family, _Page], before: Desired, desired: Desired) -> dict[Family, Table]:
    """Bring the pages from one state to another, and give the tables."""
    gone, come = by_family(before.forwards - desired.forwards), by_family(desired.forwards - before.forwards)
    for family in desired.families | pages.keys():
        pages.setdefault(family, _Page(family)).change(gone[family], come[family], desired)
    return {family: pages[family].table(desired) for family in sorted(desired.families)}


# Which rules and elements count connections, and what they have counted. Pure.
#
# A rule that translates sees the first packet of each connection only, so its packets are connections; the bytes are
# those of first packets, and no use to anyone. Rules that only label see every packet of a flow that has not been
# answered yet, so they count nothing worth telling.
Counter: TypeAlias = tuple[str, str, str]
"""The family of a table, and a chain and a rule's comment, or a map and an element's key."""

_TRANSLATING = {*ONE_ADDRESS, *EVERY_ADDRESS, *TO_PUBLIC, LEAVING_AS}
_BLOCK = re.compile(r"\t(?:chain|map) (\S+) \{")
_RULE = re.compile(r'\bcounter packets (\d+) bytes \d+ .*comment "([^"]*)"$')
_LIMITING = re.compile(r"^\tset (?:rate|open)\.(?P<name>[0-9a-f]+) \{\n(?P<text>.*?)^\t\}", re.MULTILINE | re.DOTALL)
_LIMITED = re.compile(r"([0-9a-f.:]+) [^,{}]*counter packets ([1-9]\d*) bytes")
_ELEMENT = re.compile(r'(?:([0-9a-f.:]+) \. )?(\w+) \. (\d+) counter packets (\d+) bytes \d+ comment "[^"]*" : ')


def counting_rules(desired: Desired) -> Mapping[Counter, Exposure]:
    """Give what counts connections, each with its exposure."""
    return {
        (family.word, *counter): exposure
        for family in Family
        for dispatch_chain in dispatch_chains(family, desired)
        if dispatch_chain.map in _TRANSLATING and dispatch_chain.exposures
        for counter, exposure in _counters(dispatch_chain, dropping=False)
    }


def dropping_rules(desired: Desired) -> Mapping[Counter, Exposure]:
    """Give what counts first packets that were dropped, each with its exposure."""
    return {
        (family.word, *counter): exposure
        for family in (Family if desired.limited or desired.barred is not None else ())
        for dispatch_chain in dispatch_chains(family, desired)
        if dispatch_chain.exposures and dispatch_chain.target is None
        for counter, exposure in _counters(dispatch_chain, dropping=True)
    }


def _counters(dispatch_chain: DispatchChain, *, dropping: bool) -> Iterator[tuple[tuple[str, str], Exposure]]:
    if dispatch_chain.target is not None:
        yield (TARGETS[dispatch_chain.map], dispatch_chain.key), dispatch_chain.exposures[0]
    for rule, exposure in zip(dispatch_chain.rules, dispatch_chain.exposures, strict=False):
        if rule.expression.endswith("counter drop") is dropping:
            yield (dispatch_chain.chain, rule.comment), exposure


def denied_by_set(packets: Iterable[tuple[Counter, int]]) -> dict[str, int]:
    """Add up what was dropped because its source is in a set, by the set's name."""
    found: dict[str, int] = {}
    for (_, name, _), number in packets:
        if name.startswith(DENY):
            of_set = name.removeprefix(DENY)
            found[of_set] = found.get(of_set, 0) + number
    return found


def read_dropped(listings: Mapping[Family, str], refusing: Counted[Counter], desired: Desired) -> Dropped:
    """Read what was dropped from `nft list table` of each family; `refusing` adds up the rules that do."""
    packets = [packet for family, text in listings.items() for packet in read_packets(family, text)]
    limited = limited_sources("".join(listings.values()))
    return Dropped(refusing.of(desired, packets), denied_by_set(packets), limited)


def limited_sources(listing: str) -> dict[str, dict[Address, int]]:
    """Read from what `nft` lists, by what counts them, whose first packets were dropped over a limit, and how many."""
    found: dict[str, dict[Address, int]] = {}
    for block in _LIMITING.finditer(listing):
        of_set = found.setdefault(block["name"], {})
        for element in _LIMITED.finditer(block["text"]):
            with suppress(ValueError):  # a set of others
                address = ip_address(element[1])
                of_set[address] = of_set.get(address, 0) + int(element[2])
    return found


def read_packets(family: Family, listing: str) -> Iterator[tuple[Counter, int]]:
    """Read the packets of each rule and element that counts any from `nft list table`."""
    block, name = "", family.word
    for line in listing.splitlines():
        if found := _BLOCK.match(line):
            block = found[1]
        elif elements := list(_ELEMENT.finditer(line)):
            yield from (((name, block, _counter_key(element)), int(element[4])) for element in elements)
        elif found := _RULE.search(line):
            yield (name, block, found[2]), int(found[1])


def _counter_key(element: re.Match[str]) -> str:
    """Write the key as we do."""
    address, protocol, port = element.group(1, 2, 3)
    known = PROTOCOLS.get(int(protocol), protocol) if protocol.isdecimal() else protocol
    return " . ".join([*([_plain(address)] if address else []), known, port])


def _plain(address: str) -> str:
    """Write an address as we do; what is none stands in a comment of others, and is no key."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address
