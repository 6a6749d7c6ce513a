"""The entries of a legacy table in the kernel's own form, where names and comments are any bytes. Pure.

Sources: `struct ipt_entry` in linux/netfilter_ipv4/ip_tables.h, its IPv6 sister, and `struct xt_entry_match` and
`xt_error_target` in linux/netfilter/x_tables.h.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from fwdaemon.model import Family

Match: TypeAlias = tuple[bytes, int, bytes]
"""A match's name, revision and data."""

# What says which addresses, interfaces and protocol are matched: struct ipt_ip, and ip6t_ip6.
_HEADER: Final = {Family.IPV4: 84, Family.IPV6: 136}
# After that and a word of no use: the offsets of the target and of the next entry, where it came from, packets and
# bytes. The last two are aligned as the machine does it.
LAYOUT: Final = {family: struct.Struct(f"@{size + 4}xHHIQQ") for family, size in _HEADER.items()}
# The size with the data, name and revision, of a match as of a target.
_MATCH: Final = struct.Struct("=H29sB")
# A chain of somebody's begins with an entry whose target is named ERROR, and holds the chain's name.
_ERROR: Final = struct.Struct("=H29sB30s")


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule as the kernel holds it: its addresses and protocol, its matches, of which one can be there twice."""

    header: bytes
    matches: tuple[Match, ...]
    target: str

    @property
    def comment(self) -> str:
        """What it says of itself."""
        return comment(self.matches)


def decode(family: Family, raw: bytes, target: bytes = b"") -> Entry:
    """Read one entry; where it leads to a chain or a verdict, only libiptc can tell, and `target` is its word."""
    target_at, *_ = LAYOUT[family].unpack_from(raw)
    found = tuple(matches(raw, LAYOUT[family].size, target_at))
    return Entry(raw[: _HEADER[family]], found, word(target or _MATCH.unpack_from(raw, target_at)[1]))


def matches(entries: bytes, at: int, end: int) -> Iterator[Match]:
    """Read the matches of an entry."""
    while at + _MATCH.size <= end:
        size, name, revision = _MATCH.unpack_from(entries, at)
        yield name.split(b"\0", 1)[0], revision, entries[at + _MATCH.size : at + size]
        at += size


def comment(of: Iterable[Match]) -> str:
    """Give what a rule with these matches says of itself."""
    return next((word(data) for name, _, data in of if name == b"comment"), "")


def begun_chain(entries: bytes, at: int, size: int) -> str:
    """Give the name of the chain that begins with a target of this place and size; empty where none does.

    The table's last entry is like that, too, and its name is ERROR.
    """
    if size < _ERROR.size:
        return ""
    _, kind, _, name = _ERROR.unpack_from(entries, at)
    return word(name) if kind.startswith(b"ERROR\0") else ""


def word(text: bytes) -> str:
    """Read a text up to its end; what is not UTF-8 is nothing of ours, and only has to be unlike it."""
    return text.split(b"\0", 1)[0].decode(errors="replace")
