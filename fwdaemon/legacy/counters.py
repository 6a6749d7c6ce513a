"""Which rules count connections, and what they have counted, straight from the kernel's own form of a table.

No program runs for that, and no lock is taken: the kernel gives a table as a whole. As in nftables, only a rule that
translates counts connections.
"""

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from fwdaemon.desired import Desired, Opening
from fwdaemon.legacy.entry import LAYOUT, begun_chain, comment, matches
from fwdaemon.legacy.info import table_entries
from fwdaemon.legacy.model import OWN_PREFIX, TableName, family_name
from fwdaemon.legacy.ruleset import rules_of
from fwdaemon.model import Family

Counter: TypeAlias = tuple[str, str, str]
"""A rule: the family and name of its table, its chain, its comment."""

_TRANSLATIONS: Final = ("DNAT ", "SNAT ")


def counting_rules(desired: Desired) -> Mapping[Counter, Opening]:
    """Give the rules that count connections, each with its opening."""
    return {
        (_table(family, table), chain, rule.comment): opening
        for family in Family
        for table, chain, opening, rule in rules_of(desired, family)
        if rule.target.startswith(_TRANSLATIONS)
    }


def packets(family: Family) -> Iterator[tuple[Counter, int]]:
    """Read the packets of each translating rule in chains of ours.

    Raises:
        KernelError: the kernel does not tell.

    """
    yield from read_packets(family, TableName.NAT, table_entries(family, TableName.NAT))


def read_packets(family: Family, table: TableName, entries: bytes) -> Iterator[tuple[Counter, int]]:
    """Read them from one table's entries."""
    layout, chain, start = LAYOUT[family], "", 0
    while start < len(entries):
        target, following, _, counted, _ = layout.unpack_from(entries, start)
        if name := begun_chain(entries, start + target, following - target):
            chain = name
        elif chain.startswith(OWN_PREFIX):
            said = comment(matches(entries, start + layout.size, start + target))
            yield (_table(family, table), chain, said), counted
        start += following


def _table(family: Family, table: TableName) -> str:
    return f"{family_name(family)} {table.value}"
