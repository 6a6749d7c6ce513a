"""Which rules count connections, and what they have counted, straight from the kernel's own form of a table.

No program runs for that, and no lock is taken: the kernel gives a table as a whole. As in nftables, only a rule that
translates counts connections. Sources: `struct ipt_entry`, `ip6t_entry` and `xt_entry_match` in linux/netfilter*/, and
`struct xt_comment_info` in linux/netfilter/xt_comment.h.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from fwdaemon.desired import Desired, Opening
from fwdaemon.legacy.info import table_entries
from fwdaemon.legacy.model import OWN_PREFIX, TableName, family_name
from fwdaemon.legacy.ruleset import rules_of
from fwdaemon.model import Family

Counter: TypeAlias = tuple[str, str, str]
"""A rule: the family and name of its table, its chain, its comment."""

_TRANSLATIONS: Final = ("DNAT ", "SNAT ")
# After what is matched: the offsets of the target and of the next entry, where it came from, packets and bytes. The
# last two are aligned as the machine does it.
_ENTRY: Final = {Family.IPV4: struct.Struct("@88xHHIQQ"), Family.IPV6: struct.Struct("@140xHHIQQ")}
_MATCH: Final = struct.Struct("=H29sB")
# A chain of somebody's begins with an entry whose target is named ERROR, and holds the chain's name.
_ERROR: Final = struct.Struct("=H29sB30s")


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
    layout, chain, start = _ENTRY[family], "", 0
    while start < len(entries):
        target, following, _, counted, _ = layout.unpack_from(entries, start)
        if name := _begun_chain(entries, start + target, following - target):
            chain = name
        elif chain.startswith(OWN_PREFIX):
            comment = _comment(entries, start + layout.size, start + target)
            yield (_table(family, table), chain, comment), counted
        start += following


def _begun_chain(entries: bytes, at: int, size: int) -> str:
    """Give the name of the chain that begins here; empty where none does."""
    if size < _ERROR.size:
        return ""
    _, kind, _, name = _ERROR.unpack_from(entries, at)
    return _word(name) if kind.startswith(b"ERROR\0") else ""


def _comment(entries: bytes, at: int, end: int) -> str:
    while at + _MATCH.size <= end:
        size, name, _ = _MATCH.unpack_from(entries, at)
        if _word(name) == "comment":
            return _word(entries[at + _MATCH.size : at + size])
        at += size
    return ""


def _word(text: bytes) -> str:
    return text.split(b"\0", 1)[0].decode(errors="replace")


def _table(family: Family, table: TableName) -> str:
    return f"{family_name(family)} {table.value}"
